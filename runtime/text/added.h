/*
 * Added tokens: spellings that are found in the text before anything else and are never cut. Some are looked for in the
 * text as it came, the others ("normalized": true) in the normalized text, by their own normalized spelling.
 */
#ifndef WEFT_TEXT_ADDED_H
#define WEFT_TEXT_ADDED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/json.h"
#include "normalize.h"
#include "vocab.h"
#include "work.h"

/* Longer spellings are refused: the search walks along them at every byte of the text. */
enum { WEFT_ADDED_SIZE_MAX = 4096, WEFT_ADDED_COUNT_MAX = 1 << 20 };

struct weft_added_token {
    const char *text; /* as in the file */
    size_t size;
    const char *normal; /* as looked for in normalized text, and as decoded; text when it is the same */
    size_t normal_size;
    int32_t id;
    bool is_special;
    bool is_single_word;   /* only where no word character touches it */
    bool is_left_stripped; /* takes the white space before it along */
    bool is_right_stripped;
    bool is_normalized;
};

/* A tree of bytes: children are chained by `sibling`. Node 0 is the root; `first` is its children by byte. */
struct weft_added_trie {
    struct weft_added_node *nodes; /* [count], owned */
    size_t count;
    size_t capacity;
    uint32_t first[256]; /* 0: none */
};

struct weft_added {
    struct weft_added_token *tokens; /* [count], owned; in the order of the file, each spelling once */
    size_t count;
    struct weft_vocab index; /* spelling -> position in tokens */
    struct weft_added_trie raw;
    struct weft_added_trie normal;
};

/*
 * `list` is the member added_tokens, may be NULL. A token takes the id that its spelling has in `vocab`, else the next
 * free one: the package's rule, whatever the file says; a warning when it says otherwise. On error *out is empty.
 */
struct weft_added_args {
    const char *name;
    const json_t *list;
    const struct weft_vocab *vocab;
    const struct weft_normalizers *normalizers;
    struct weft_arena *arena;
};
WEFT_MUST_CHECK enum weft_status weft_added_init(struct weft_added *out, const struct weft_added_args *args);
void weft_added_fini(struct weft_added *added);

/* Cuts the added tokens out of every piece that is text. */
WEFT_MUST_CHECK enum weft_status weft_added_cut(const struct weft_added *added, bool is_normalized,
                                                struct weft_text_work *work);

/* The added token spelled text[size], NULL when there is none. */
const struct weft_added_token *weft_added_find(const struct weft_added *added, const char *text, size_t size);

#endif
