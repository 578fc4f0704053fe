/* Pre-tokenizers: steps that cut the text into the words inside which BPE merges. */
#ifndef WEFT_TEXT_PRETOKENIZE_H
#define WEFT_TEXT_PRETOKENIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/json.h"
#include "regex.h"
#include "work.h"

/* What becomes of the separators ("behavior" of a Split). */
enum weft_split_behavior {
    WEFT_SPLIT_REMOVED,
    WEFT_SPLIT_ISOLATED,
    WEFT_SPLIT_CONTIGUOUS,
    WEFT_SPLIT_MERGED_WITH_PREVIOUS,
    WEFT_SPLIT_MERGED_WITH_NEXT,
};

enum weft_metaspace_scheme { WEFT_METASPACE_ALWAYS, WEFT_METASPACE_FIRST, WEFT_METASPACE_NEVER };

/* Primitive steps; one pre-tokenizer of the file becomes one to three of them. */
enum weft_pretokenizer_kind {
    WEFT_PRETOKENIZER_SPACE,       /* puts a space before a piece that has none */
    WEFT_PRETOKENIZER_METASPACE,   /* spaces to the replacement, one before the piece by scheme */
    WEFT_PRETOKENIZER_BYTE_LEVEL,  /* rewrites in the byte-level alphabet */
    WEFT_PRETOKENIZER_SPLIT,       /* at matches of regex */
    WEFT_PRETOKENIZER_SPLIT_CLASS, /* at characters of a class */
    WEFT_PRETOKENIZER_SPLIT_CHAR,  /* at one character */
};

struct weft_pretokenizer {
    enum weft_pretokenizer_kind kind;
    struct weft_regex *regex;          /* SPLIT */
    bool (*is_in_class)(uint32_t);     /* SPLIT_CLASS */
    uint32_t code;                     /* SPLIT_CHAR, METASPACE: the replacement */
    enum weft_split_behavior behavior; /* SPLIT* */
    bool is_inverted;                  /* SPLIT: what does not match separates */
    enum weft_metaspace_scheme scheme;
};

struct weft_pretokenizers {
    struct weft_pretokenizer *steps; /* [count], in the arena */
    size_t count;
    size_t capacity;
};

/* `object` is the member of tokenizer.json, may be NULL or null. On error *out is empty. */
WEFT_MUST_CHECK enum weft_status weft_pretokenizers_init(struct weft_pretokenizers *out, const char *name,
                                                         const json_t *object, struct weft_arena *arena);
void weft_pretokenizers_fini(struct weft_pretokenizers *pretokenizers);

WEFT_MUST_CHECK enum weft_status weft_pretokenizers_run(const struct weft_pretokenizers *pretokenizers,
                                                        struct weft_text_work *work);

/* Members replacement, prepend_scheme and add_prefix_space of a Metaspace; shared with the decoder. */
WEFT_MUST_CHECK enum weft_status weft_metaspace_read(const json_t *object, const char *path, uint32_t *code_out,
                                                     enum weft_metaspace_scheme *scheme_out);

#endif
