/* Normalizers: steps that rewrite the text before it is cut into words. */
#ifndef WEFT_TEXT_NORMALIZE_H
#define WEFT_TEXT_NORMALIZE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/arena.h"
#include "base/json.h"
#include "regex.h"
#include "work.h"

enum weft_normalizer_kind {
    WEFT_NORMALIZER_PREPEND,
    WEFT_NORMALIZER_REPLACE,
    WEFT_NORMALIZER_UNICODE,
    WEFT_NORMALIZER_LOWERCASE,
    WEFT_NORMALIZER_STRIP,
    WEFT_NORMALIZER_STRIP_ACCENTS,
    WEFT_NORMALIZER_NMT,
    WEFT_NORMALIZER_BYTE_LEVEL,
};

struct weft_normalizer {
    enum weft_normalizer_kind kind;
    const char *text; /* PREPEND: what; REPLACE: by what */
    size_t size;
    char single;              /* REPLACE: pattern that is one ASCII character, else NUL */
    struct weft_regex *regex; /* REPLACE: pattern otherwise */
    bool is_composed;         /* UNICODE: NFC, NFKC */
    bool is_compatible;       /* UNICODE: NFKC, NFKD */
    bool is_left;             /* STRIP */
    bool is_right;
};

struct weft_normalizers {
    struct weft_normalizer *steps; /* [count], in the arena */
    size_t count;
};

/* `object` is the member of tokenizer.json, may be NULL or null. On error *out is empty. */
WEFT_MUST_CHECK enum weft_status weft_normalizers_init(struct weft_normalizers *out, const char *name,
                                                       const json_t *object, struct weft_arena *arena);
void weft_normalizers_fini(struct weft_normalizers *normalizers);

/* Rewrites every piece that is text. */
WEFT_MUST_CHECK enum weft_status weft_normalizers_run(const struct weft_normalizers *normalizers,
                                                      struct weft_text_work *work);

/*
 * Appends text[size] with every match replaced by content[content_size]; shared with the decoders.
 * *is_head_io (may be NULL) is cleared when the first character was replaced by nothing.
 */
struct weft_replacement {
    const struct weft_regex *regex; /* NULL: single */
    char single;
    const char *content;
    size_t content_size;
};
WEFT_MUST_CHECK enum weft_status weft_text_replace(struct weft_bytes *out, const struct weft_replacement *replacement,
                                                   struct weft_regex_scratch *scratch, const char *text, size_t size,
                                                   bool *is_head_io);

#endif
