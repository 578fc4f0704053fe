/*
 * The BPE model: characters of one word to ids, then merges in order of rank, leftmost first.
 *
 * The word is a linked list and the candidates a heap, so a word of n characters takes O(n log n): one megabyte of one
 * letter is no special case.
 */
#ifndef WEFT_TEXT_BPE_H
#define WEFT_TEXT_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/json.h"
#include "buffer.h"
#include "model_json.h"
#include "vocab.h"

/* Characters below this are looked up in a table instead of the hash: byte-level alphabet, Latin to Arabic. */
enum { WEFT_BPE_TABLE_SIZE = 0x800 };

/* U+2581, the space of SentencePiece. */
#define WEFT_BPE_MARK "\xE2\x96\x81"
enum { WEFT_BPE_MARK_SIZE = 3 };

struct weft_bpe {
    struct weft_vocab vocab;
    struct weft_merges merges;
    int32_t char_ids[WEFT_BPE_TABLE_SIZE]; /* id of the one-character token, -1 */
    int32_t byte_ids[256];                 /* id of "<0xHH>", -1 */
    bool has_byte_fallback;
    bool is_unk_fused;
    bool is_merge_ignored; /* a word that is a token as a whole is that token, whatever the merges say */
    bool is_cut_at_mark;   /* no merge joins a character other than U+2581 with a U+2581 behind it */
    const char *unk_text;  /* NULL: unknown characters vanish */
    int32_t unk_id;        /* -1 when unk_text is not in the vocabulary */
    const char *prefix;    /* continuing_subword_prefix, "" for none */
    size_t prefix_size;
    const char *suffix; /* end_of_word_suffix, "" for none */
    size_t suffix_size;
};

/* `model` is the member of a tokenizer.json without its `large` parts; `name` appears in errors. Strings go to `arena`.
 * On error *bpe is empty. */
WEFT_MUST_CHECK enum weft_status weft_bpe_init(struct weft_bpe *bpe, const char *name, const json_t *model,
                                               const struct weft_model_json *large, struct weft_arena *arena);
void weft_bpe_fini(struct weft_bpe *bpe);

/* Memory of one encode, reused from word to word. Zero-initialise. */
struct weft_bpe_scratch {
    struct weft_bpe_symbol *symbols;
    size_t symbol_capacity;
    size_t symbol_count;
    struct weft_bpe_candidate *heap;
    size_t heap_capacity;
    size_t heap_count;
    struct weft_bytes key;
};
void weft_bpe_scratch_fini(struct weft_bpe_scratch *scratch);

/* Appends the ids of word[size], valid UTF-8, at most UINT32_MAX bytes. ERR_MEMORY; ERR_FORMAT (logged) when unk_token
 * is needed and not in the vocabulary. */
WEFT_MUST_CHECK enum weft_status weft_bpe_encode(const struct weft_bpe *bpe, struct weft_bpe_scratch *scratch,
                                                 const char *word, size_t size, struct weft_words *ids_out);

#endif
