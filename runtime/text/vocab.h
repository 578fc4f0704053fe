/*
 * The strings of a vocabulary, both ways, and the merges of a BPE model: hash tables that never change after open.
 * Spelling -> id by content, id -> spelling by index, (left id, right id) -> (rank, merged id).
 */
#ifndef WEFT_TEXT_VOCAB_H
#define WEFT_TEXT_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "weft/status.h"

/* Ids are array indices here: a larger one in a file is damage, not a vocabulary. */
#define WEFT_VOCAB_ID_MAX ((1 << 24) - 1)

struct weft_vocab_token {
    const char *text; /* NUL-terminated, NULL for a hole */
    uint32_t size;
};

struct weft_vocab {
    struct weft_arena *arena; /* borrowed; owns the strings */
    char *pool;               /* free part of the newest block of strings */
    size_t pool_size;
    struct weft_vocab_token *tokens; /* [count], by id; owned */
    size_t count;                    /* largest id + 1 */
    size_t capacity;
    uint64_t *slots; /* [slot_count] high 32 bits of the hash << 32 | id + 1, 0 empty; owned */
    size_t slot_count;
    size_t used;
};

struct weft_merge {
    uint32_t rank;
    uint32_t id;
};

struct weft_merges {
    struct weft_merge_slot *slots; /* [slot_count], owned */
    size_t slot_count;
};

/* Room for `count` tokens without growing. */
WEFT_MUST_CHECK enum weft_status weft_vocab_init(struct weft_vocab *vocab, struct weft_arena *arena, size_t count);
void weft_vocab_fini(struct weft_vocab *vocab);
/* Adds text[size] (copied) as `id` <= WEFT_VOCAB_ID_MAX; the caller has seen to it that both are new. */
WEFT_MUST_CHECK enum weft_status weft_vocab_add(struct weft_vocab *vocab, const char *text, size_t size, uint32_t id);
/* Id of text[size], -1 when there is none. */
int32_t weft_vocab_find(const struct weft_vocab *vocab, const char *text, size_t size);

/* Room for exactly `count` merges. */
WEFT_MUST_CHECK enum weft_status weft_merges_init(struct weft_merges *merges, size_t count);
void weft_merges_fini(struct weft_merges *merges);
/* At most `count` times. The same pair again: the later rank wins, as in the package. */
void weft_merges_add(struct weft_merges *merges, uint32_t left, uint32_t right, struct weft_merge merge);
/* False when the pair does not merge. */
bool weft_merges_find(const struct weft_merges *merges, uint32_t left, uint32_t right, struct weft_merge *out);

#endif
