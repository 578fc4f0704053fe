/*
 * Stop strings: the text of an answer ends before the first of them, wherever token borders fall.
 *
 * Text goes in as it is decoded; what can no longer become part of a stop string comes out, the rest is held back.
 * Bytes, not characters: pieces end at character borders already, and so do stop strings that are UTF-8.
 */
#ifndef WEFT_ENGINE_STOP_H
#define WEFT_ENGINE_STOP_H

#include <stdbool.h>
#include <stddef.h>

#include "weft/status.h"

#define WEFT_STOP_COUNT_MAX 16
#define WEFT_STOP_SIZE_MAX  1024

struct weft_stop {
    char *strings[WEFT_STOP_COUNT_MAX]; /* owned */
    size_t sizes[WEFT_STOP_COUNT_MAX];
    size_t count;
    char *held; /* [held_size], owned, grows; its first given_size bytes were given out by the last call */
    size_t held_size;
    size_t given_size;
    size_t held_capacity;
};

/* Copies strings[count], each of 1 to WEFT_STOP_SIZE_MAX bytes, at most WEFT_STOP_COUNT_MAX. ERR_ARGUMENT (kept, not
 * logged), ERR_MEMORY. weft_stop_fini() is due only after success. */
WEFT_MUST_CHECK enum weft_status weft_stop_init(struct weft_stop *stop, const char *const *strings, size_t count);
void weft_stop_fini(struct weft_stop *stop);

/*
 * Adds text[size]. *out [*out_size] is what may be shown now, valid until the next call. *is_stopped_out: a stop string
 * is complete; *out ends just before it and everything after is dropped. ERR_MEMORY.
 */
WEFT_MUST_CHECK enum weft_status weft_stop_push(struct weft_stop *stop, const char *text, size_t size, const char **out,
                                                size_t *out_size, bool *is_stopped_out);

/* The answer ended otherwise: what was held back. */
void weft_stop_flush(struct weft_stop *stop, const char **out, size_t *out_size);

#endif
