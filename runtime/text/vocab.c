/* Open addressing with linear probing, at most half full; the slot count is a power of two. */
#include "vocab.h"

#include <stdlib.h>
#include <string.h>

#include "buffer.h"
#include "weft/log.h"

enum { POOL_BLOCK_SIZE = 256 * 1024 };

struct weft_merge_slot {
    uint32_t left;
    uint32_t right;
    uint32_t rank;
    uint32_t id; /* UINT32_MAX: empty */
};

static uint64_t mix(uint64_t value)
{
    value ^= value >> 32;
    value *= 0x9E3779B97F4A7C15u; /* 2^64 / golden ratio */
    return value ^ value >> 29;
}

static uint64_t hash_text(const char *text, size_t size)
{
    uint64_t hash = size, word;

    while (size >= 8) {
        memcpy(&word, text, 8);
        hash = mix(hash ^ word) * 0xD6E8FEB86659FD93u;
        text += 8;
        size -= 8;
    }
    word = 0;
    for (size_t i = 0; i < size; i++) {
        word = word << 8 | (unsigned char)text[i];
    }
    return mix(mix(hash ^ word) * 0xD6E8FEB86659FD93u);
}

static size_t slot_count_for(size_t count)
{
    size_t slots = 16;

    while (slots / 2 < count) {
        slots *= 2;
    }
    return slots;
}

static void *alloc_slots(size_t count, size_t size)
{
    void *slots = calloc(count, size);

    if (slots == NULL) {
        weft_log(WEFT_LOG_ERROR, "text/vocab", "out of memory for a table of %zu entries", count);
    }
    return slots;
}

enum weft_status weft_vocab_init(struct weft_vocab *vocab, struct weft_arena *arena, size_t count)
{
    *vocab = (struct weft_vocab){.arena = arena};
    vocab->slot_count = slot_count_for(count);
    vocab->slots = alloc_slots(vocab->slot_count, sizeof(vocab->slots[0]));
    return vocab->slots == NULL ? WEFT_ERR_MEMORY : WEFT_OK;
}

void weft_vocab_fini(struct weft_vocab *vocab)
{
    free(vocab->tokens);
    free(vocab->slots);
    *vocab = (struct weft_vocab){0};
}

/* The slot of text[size], or the empty one where it belongs. */
static size_t find_slot(const struct weft_vocab *vocab, const char *text, size_t size, uint64_t hash)
{
    size_t index = hash & (vocab->slot_count - 1);

    for (; vocab->slots[index] != 0; index = (index + 1) & (vocab->slot_count - 1)) {
        if (vocab->slots[index] >> 32 == hash >> 32) {
            const struct weft_vocab_token *token = &vocab->tokens[(uint32_t)vocab->slots[index] - 1];
            if (token->text != NULL && token->size == size && memcmp(token->text, text, size) == 0) {
                break;
            }
        }
    }
    return index;
}

static enum weft_status grow_slots(struct weft_vocab *vocab)
{
    struct weft_vocab larger = *vocab;

    larger.slot_count *= 2;
    larger.slots = alloc_slots(larger.slot_count, sizeof(larger.slots[0]));
    if (larger.slots == NULL) {
        return WEFT_ERR_MEMORY;
    }
    for (size_t i = 0; i < vocab->slot_count; i++) {
        if (vocab->slots[i] != 0) {
            const struct weft_vocab_token *token = &vocab->tokens[(uint32_t)vocab->slots[i] - 1];
            uint64_t hash = hash_text(token->text, token->size);
            larger.slots[find_slot(&larger, token->text, token->size, hash)] = vocab->slots[i];
        }
    }
    free(vocab->slots);
    *vocab = larger;
    return WEFT_OK;
}

/* A copy of text[size] and a NUL. The arena aligns every block to a cache line: too much for a hundred thousand words.
 */
static char *pool_text(struct weft_vocab *vocab, const char *text, size_t size)
{
    if (vocab->pool_size < size + 1) {
        size_t block = size + 1 > POOL_BLOCK_SIZE ? size + 1 : POOL_BLOCK_SIZE;
        vocab->pool = weft_arena_alloc(vocab->arena, block, 1);
        vocab->pool_size = vocab->pool == NULL ? 0 : block;
        if (vocab->pool == NULL) {
            return NULL;
        }
    }
    char *copy = vocab->pool;
    if (size > 0) {
        memcpy(copy, text, size);
    }
    copy[size] = '\0';
    vocab->pool += size + 1;
    vocab->pool_size -= size + 1;
    return copy;
}

enum weft_status weft_vocab_add(struct weft_vocab *vocab, const char *text, size_t size, uint32_t id)
{
    if (id >= vocab->count) {
        size_t old = vocab->count;
        WEFT_TRY(weft_array_reserve(&vocab->tokens, &vocab->capacity, (size_t)id + 1, sizeof(vocab->tokens[0])));
        memset(vocab->tokens + old, 0, ((size_t)id + 1 - old) * sizeof(vocab->tokens[0]));
        vocab->count = (size_t)id + 1;
    }
    if ((vocab->used + 1) * 2 > vocab->slot_count) {
        WEFT_TRY(grow_slots(vocab));
    }
    char *copy = pool_text(vocab, text, size);
    if (copy == NULL) {
        return WEFT_ERR_MEMORY;
    }
    uint64_t hash = hash_text(text, size);
    size_t slot = find_slot(vocab, text, size, hash);
    vocab->used += vocab->slots[slot] == 0;
    vocab->slots[slot] = hash >> 32 << 32 | (id + 1);
    vocab->tokens[id] = (struct weft_vocab_token){.text = copy, .size = (uint32_t)size};
    return WEFT_OK;
}

int32_t weft_vocab_find(const struct weft_vocab *vocab, const char *text, size_t size)
{
    size_t slot = find_slot(vocab, text, size, hash_text(text, size));

    return vocab->slots[slot] == 0 ? -1 : (int32_t)((uint32_t)vocab->slots[slot] - 1);
}

enum weft_status weft_merges_init(struct weft_merges *merges, size_t count)
{
    *merges = (struct weft_merges){.slot_count = slot_count_for(count)};
    merges->slots = alloc_slots(merges->slot_count, sizeof(merges->slots[0]));
    if (merges->slots == NULL) {
        return WEFT_ERR_MEMORY;
    }
    memset(merges->slots, 0xFF, merges->slot_count * sizeof(merges->slots[0]));
    return WEFT_OK;
}

void weft_merges_fini(struct weft_merges *merges)
{
    free(merges->slots);
    *merges = (struct weft_merges){0};
}

static struct weft_merge_slot *merge_slot(const struct weft_merges *merges, uint32_t left, uint32_t right)
{
    size_t index = mix((uint64_t)left << 32 | right) & (merges->slot_count - 1);

    while (merges->slots[index].id != UINT32_MAX &&
           (merges->slots[index].left != left || merges->slots[index].right != right)) {
        index = (index + 1) & (merges->slot_count - 1);
    }
    return &merges->slots[index];
}

void weft_merges_add(struct weft_merges *merges, uint32_t left, uint32_t right, struct weft_merge merge)
{
    *merge_slot(merges, left, right) =
        (struct weft_merge_slot){.left = left, .right = right, .rank = merge.rank, .id = merge.id};
}

bool weft_merges_find(const struct weft_merges *merges, uint32_t left, uint32_t right, struct weft_merge *out)
{
    const struct weft_merge_slot *slot = merge_slot(merges, left, right);

    if (slot->id == UINT32_MAX) {
        return false;
    }
    *out = (struct weft_merge){.rank = slot->rank, .id = slot->id};
    return true;
}
