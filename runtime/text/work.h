/*
 * One encode in progress: the text as it is now, cut into pieces. Every step of a tokenizer either rewrites the text of
 * the pieces (normalizers, byte-level) or cuts them (added tokens, pre-tokenizers). Owned by one call of one thread.
 */
#ifndef WEFT_TEXT_WORK_H
#define WEFT_TEXT_WORK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bpe.h"
#include "buffer.h"
#include "regex.h"

struct weft_piece {
    size_t begin; /* bytes of work.text */
    size_t size;  /* never 0, unless id says what it is */
    int32_t id;   /* -1: text; otherwise an added token, done */
    bool is_head; /* begins where the original text begins */
};

struct weft_pieces {
    struct weft_piece *data;
    size_t count;
    size_t capacity;
};

/* Zero-initialise. */
struct weft_text_work {
    struct weft_bytes text;
    struct weft_pieces pieces;
    struct weft_bytes next_text; /* where a rewriting step puts its result */
    struct weft_pieces next_pieces;
    struct weft_words codes; /* code points, for Unicode normalization */
    struct weft_regex_scratch regex;
    struct weft_bpe_scratch bpe;
};

void weft_text_work_fini(struct weft_text_work *work);

/* Adds a piece to next_pieces; empty text is dropped, as in the package. */
WEFT_MUST_CHECK enum weft_status weft_text_work_add(struct weft_text_work *work, struct weft_piece piece);

/* Appends text[size], what becomes of one piece, to work->next_text; *is_head_io may be cleared. */
typedef enum weft_status weft_text_rewrite(struct weft_text_work *work, const void *step, const char *text, size_t size,
                                           bool *is_head_io);
/* Cuts one piece of work->text into next_pieces. */
typedef enum weft_status weft_text_cut(struct weft_text_work *work, const void *step, const struct weft_piece *piece);

/* Runs one of them over all pieces that are still text. ERR_LIMIT when the text outgrows 4 GiB. */
WEFT_MUST_CHECK enum weft_status weft_text_work_rewrite(struct weft_text_work *work, weft_text_rewrite *rewrite,
                                                        const void *step);
WEFT_MUST_CHECK enum weft_status weft_text_work_cut(struct weft_text_work *work, weft_text_cut *cut, const void *step);

/* Appends text[size] in the byte-level alphabet. */
WEFT_MUST_CHECK enum weft_status weft_text_append_byte_level(struct weft_bytes *out, const char *text, size_t size);

#endif
