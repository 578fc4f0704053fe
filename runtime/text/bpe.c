/* BPE: the merge loop. Reading the model from JSON is in bpe_model.c. */
#include "bpe.h"

#include <stdlib.h>
#include <string.h>

#include "utf8.h"
#include "weft/log.h"

#define NONE UINT32_MAX

/* A token of the word in the making; merged away when id is NONE. */
struct weft_bpe_symbol {
    uint32_t id;
    uint32_t previous; /* index, NONE at the end */
    uint32_t next;
};

/* The pair that begins at symbol `position` would become `id`. Smallest (rank, position) first. */
struct weft_bpe_candidate {
    uint32_t rank;
    uint32_t position;
    uint32_t id;
};

void weft_bpe_scratch_fini(struct weft_bpe_scratch *scratch)
{
    free(scratch->symbols);
    free(scratch->heap);
    weft_bytes_fini(&scratch->key);
    *scratch = (struct weft_bpe_scratch){0};
}

/* ---- characters to symbols ---- */

static enum weft_status add_symbol(struct weft_bpe_scratch *scratch, uint32_t id)
{
    size_t index = scratch->symbol_count;

    if (index == scratch->symbol_capacity) {
        WEFT_TRY(
            weft_array_reserve(&scratch->symbols, &scratch->symbol_capacity, index + 1, sizeof(scratch->symbols[0])));
    }
    scratch->symbols[index] = (struct weft_bpe_symbol){
        .id = id, .previous = index == 0 ? NONE : (uint32_t)index - 1, .next = (uint32_t)index + 1};
    scratch->symbol_count++;
    return WEFT_OK;
}

/* *id_out <- the token of one character, dressed with prefix and suffix where they apply; -1 when there is none. */
static enum weft_status find_char(const struct weft_bpe *bpe, struct weft_bytes *key, const char *text, size_t size,
                                  bool is_first, bool is_last, int32_t *id_out)
{
    bool has_prefix = !is_first && bpe->prefix_size > 0, has_suffix = is_last && bpe->suffix_size > 0;

    if (bpe->prefix_size == 0 && bpe->suffix_size == 0) {
        size_t length;
        uint32_t code = weft_utf8_read(text, &length);
        *id_out = code < WEFT_BPE_TABLE_SIZE ? bpe->char_ids[code] : weft_vocab_find(&bpe->vocab, text, size);
        return WEFT_OK;
    }
    key->size = 0;
    WEFT_TRY(weft_bytes_append(key, bpe->prefix, has_prefix ? bpe->prefix_size : 0));
    WEFT_TRY(weft_bytes_append(key, text, size));
    WEFT_TRY(weft_bytes_append(key, bpe->suffix, has_suffix ? bpe->suffix_size : 0));
    *id_out = weft_vocab_find(&bpe->vocab, key->data, key->size);
    return WEFT_OK;
}

static bool has_all_bytes(const struct weft_bpe *bpe, const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (bpe->byte_ids[(unsigned char)text[i]] < 0) {
            return false;
        }
    }
    return true;
}

/*
 * A character outside the vocabulary: its bytes, or the unknown token. *is_unk_pending: an unknown token that waits for
 * the next known character, so that a run of unknowns can fuse. Byte tokens overtake it, as in the package.
 */
static enum weft_status add_unknown(const struct weft_bpe *bpe, struct weft_bpe_scratch *scratch, const char *text,
                                    size_t size, bool *is_unk_pending)
{
    /* The package looks up the bytes of the dressed character; find_char() has left it in the key. */
    bool is_dressed = bpe->prefix_size > 0 || bpe->suffix_size > 0;
    const char *bytes = is_dressed ? scratch->key.data : text;
    size_t byte_count = is_dressed ? scratch->key.size : size;

    if (bpe->has_byte_fallback && has_all_bytes(bpe, bytes, byte_count)) {
        for (size_t i = 0; i < byte_count; i++) {
            WEFT_TRY(add_symbol(scratch, (uint32_t)bpe->byte_ids[(unsigned char)bytes[i]]));
        }
        return WEFT_OK;
    }
    if (bpe->unk_text == NULL) {
        return WEFT_OK;
    }
    if (bpe->unk_id < 0) {
        weft_log(WEFT_LOG_ERROR, "text/bpe", "\"%.*s\" is not in the vocabulary, nor is the unknown token \"%s\"",
                 (int)size, text, bpe->unk_text);
        return WEFT_ERR_FORMAT;
    }
    if (*is_unk_pending && !bpe->is_unk_fused) {
        WEFT_TRY(add_symbol(scratch, (uint32_t)bpe->unk_id));
    }
    *is_unk_pending = true;
    return WEFT_OK;
}

static enum weft_status add_word(const struct weft_bpe *bpe, struct weft_bpe_scratch *scratch, const char *word,
                                 size_t size)
{
    bool is_unk_pending = false;
    int32_t id;

    for (size_t at = 0, length; at < size; at += length) {
        length = weft_utf8_length((unsigned char)word[at]);
        WEFT_TRY(find_char(bpe, &scratch->key, word + at, length, at == 0, at + length == size, &id));
        if (id < 0) {
            WEFT_TRY(add_unknown(bpe, scratch, word + at, length, &is_unk_pending));
            continue;
        }
        if (is_unk_pending) {
            WEFT_TRY(add_symbol(scratch, (uint32_t)bpe->unk_id));
            is_unk_pending = false;
        }
        WEFT_TRY(add_symbol(scratch, (uint32_t)id));
    }
    return is_unk_pending ? add_symbol(scratch, (uint32_t)bpe->unk_id) : WEFT_OK;
}

/* ---- the heap of candidates ---- */

static bool is_before(const struct weft_bpe_candidate *a, const struct weft_bpe_candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->position < b->position;
}

static void sift_down(struct weft_bpe_candidate *heap, size_t count, size_t hole)
{
    struct weft_bpe_candidate moved = heap[hole];

    for (size_t child; (child = 2 * hole + 1) < count; hole = child) {
        if (child + 1 < count && is_before(&heap[child + 1], &heap[child])) {
            child++;
        }
        if (!is_before(&heap[child], &moved)) {
            break;
        }
        heap[hole] = heap[child];
    }
    heap[hole] = moved;
}

static void push_candidate(struct weft_bpe_scratch *scratch, struct weft_bpe_candidate candidate)
{
    size_t hole = scratch->heap_count++;

    while (hole > 0 && is_before(&candidate, &scratch->heap[(hole - 1) / 2])) {
        scratch->heap[hole] = scratch->heap[(hole - 1) / 2];
        hole = (hole - 1) / 2;
    }
    scratch->heap[hole] = candidate;
}

static struct weft_bpe_candidate pop_candidate(struct weft_bpe_scratch *scratch)
{
    struct weft_bpe_candidate top = scratch->heap[0];

    scratch->heap[0] = scratch->heap[--scratch->heap_count];
    if (scratch->heap_count > 1) {
        sift_down(scratch->heap, scratch->heap_count, 0);
    }
    return top;
}

/* ---- merging ---- */

static void push_pair(const struct weft_bpe *bpe, struct weft_bpe_scratch *scratch, uint32_t left, uint32_t right)
{
    struct weft_merge merge;

    if (weft_merges_find(&bpe->merges, scratch->symbols[left].id, scratch->symbols[right].id, &merge)) {
        push_candidate(scratch, (struct weft_bpe_candidate){.rank = merge.rank, .position = left, .id = merge.id});
    }
}

/*
 * Room for every candidate there can ever be: one per pair at first, then each merge removes a symbol and adds at most
 * two, having popped one.
 */
static enum weft_status fill_heap(const struct weft_bpe *bpe, struct weft_bpe_scratch *scratch)
{
    struct weft_merge merge;

    WEFT_TRY(weft_array_reserve(&scratch->heap, &scratch->heap_capacity, 2 * scratch->symbol_count + 1,
                                sizeof(scratch->heap[0])));
    scratch->heap_count = 0;
    for (uint32_t i = 0; i + 1 < scratch->symbol_count; i++) {
        if (weft_merges_find(&bpe->merges, scratch->symbols[i].id, scratch->symbols[i + 1].id, &merge)) {
            scratch->heap[scratch->heap_count++] =
                (struct weft_bpe_candidate){.rank = merge.rank, .position = i, .id = merge.id};
        }
    }
    for (size_t i = scratch->heap_count / 2; i-- > 0;) {
        sift_down(scratch->heap, scratch->heap_count, i);
    }
    return WEFT_OK;
}

static enum weft_status merge_all(const struct weft_bpe *bpe, struct weft_bpe_scratch *scratch)
{
    struct weft_bpe_symbol *symbols = scratch->symbols;
    struct weft_merge merge;

    symbols[scratch->symbol_count - 1].next = NONE;
    WEFT_TRY(fill_heap(bpe, scratch));
    while (scratch->heap_count > 0) {
        struct weft_bpe_candidate best = pop_candidate(scratch);
        struct weft_bpe_symbol *left = &symbols[best.position];
        if (left->id == NONE || left->next == NONE) {
            continue; /* outdated: merged away, or has become the last */
        }
        struct weft_bpe_symbol *right = &symbols[left->next];
        if (!weft_merges_find(&bpe->merges, left->id, right->id, &merge) || merge.id != best.id) {
            continue; /* outdated: one of the two has changed */
        }
        left->id = best.id;
        left->next = right->next;
        right->id = NONE;
        if (left->next != NONE) {
            symbols[left->next].previous = best.position;
        }
        if (left->previous != NONE) {
            push_pair(bpe, scratch, left->previous, best.position);
        }
        if (left->next != NONE) {
            push_pair(bpe, scratch, best.position, left->next);
        }
    }
    return WEFT_OK;
}

static enum weft_status encode_part(const struct weft_bpe *bpe, struct weft_bpe_scratch *scratch, const char *part,
                                    size_t size, struct weft_words *ids_out)
{
    scratch->symbol_count = 0;
    WEFT_TRY(add_word(bpe, scratch, part, size));
    if (scratch->symbol_count > 1) {
        WEFT_TRY(merge_all(bpe, scratch));
    }
    WEFT_TRY(weft_words_reserve(ids_out, scratch->symbol_count));
    for (size_t i = 0; i < scratch->symbol_count; i++) {
        if (scratch->symbols[i].id != NONE) {
            ids_out->data[ids_out->count++] = scratch->symbols[i].id;
        }
    }
    return WEFT_OK;
}

/* Where the next run of marks begins, behind `begin`; size when there is none. */
static size_t next_mark(const char *word, size_t size, size_t begin)
{
    const char *end = word + size, *found;

    for (const char *at = word + begin + 1; at < end; at = found + WEFT_BPE_MARK_SIZE) {
        found = memmem(at, (size_t)(end - at), WEFT_BPE_MARK, WEFT_BPE_MARK_SIZE);
        if (found == NULL) {
            break;
        }
        if (found - word < WEFT_BPE_MARK_SIZE ||
            memcmp(found - WEFT_BPE_MARK_SIZE, WEFT_BPE_MARK, WEFT_BPE_MARK_SIZE) != 0) {
            return (size_t)(found - word);
        }
    }
    return size;
}

enum weft_status weft_bpe_encode(const struct weft_bpe *bpe, struct weft_bpe_scratch *scratch, const char *word,
                                 size_t size, struct weft_words *ids_out)
{
    size_t begin = 0;

    if (bpe->is_merge_ignored) {
        int32_t id = weft_vocab_find(&bpe->vocab, word, size);
        if (id >= 0) {
            return weft_words_push(ids_out, (uint32_t)id);
        }
    }
    /* In Llama 2's pipeline the whole text is one word; where no merge can cross, a heap of a few entries stays in the
     * cache: 5 times the speed. */
    while (begin < size) {
        size_t end = bpe->is_cut_at_mark ? next_mark(word, size, begin) : size;
        WEFT_TRY(encode_part(bpe, scratch, word + begin, end - begin, ids_out));
        begin = end;
    }
    return WEFT_OK;
}
