/*
 * Growable arrays for work of unknown size (one encode, one stream, one open): bytes and 32-bit items.
 *
 * Zero-initialise before use; fini returns to that state. A failed growth is logged here, once, and leaves the content
 * as it was.
 */
#ifndef WEFT_TEXT_BUFFER_H
#define WEFT_TEXT_BUFFER_H

#include <stddef.h>
#include <stdint.h>

#include "weft/status.h"

struct weft_bytes {
    char *data;
    size_t size;
    size_t capacity;
};

struct weft_words {
    uint32_t *data;
    size_t count;
    size_t capacity;
};

/* Room for `size` more bytes (words: `count` more items) behind the present content. */
WEFT_MUST_CHECK enum weft_status weft_bytes_reserve(struct weft_bytes *bytes, size_t size);
WEFT_MUST_CHECK enum weft_status weft_bytes_append(struct weft_bytes *bytes, const char *data, size_t size);
void weft_bytes_fini(struct weft_bytes *bytes);

WEFT_MUST_CHECK enum weft_status weft_words_reserve(struct weft_words *words, size_t count);
WEFT_MUST_CHECK enum weft_status weft_words_push(struct weft_words *words, uint32_t word);
void weft_words_fini(struct weft_words *words);

/*
 * *data_io, *capacity_io <- an array of at least `count` items of item_size bytes, old content kept; grows by doubling.
 * For arrays of structs.
 */
WEFT_MUST_CHECK enum weft_status weft_array_reserve(void *data_io, size_t *capacity_io, size_t count, size_t item_size);

#endif
