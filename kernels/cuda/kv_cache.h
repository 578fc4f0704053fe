/*
 * The paged KV cache on the GPU. One block of memory per (layer, page, KV head), keys first, then values:
 *   keys    [EP / n][16 positions][n], n elements in 16 bytes: threads are positions, and read whole lines
 *   values  [16 positions][EP]: threads are elements of the head
 * EP is E rounded up to 8; the padding stays zero.
 */
#ifndef WEFT_CUDA_KV_CACHE_H
#define WEFT_CUDA_KV_CACHE_H

#include "cuda/device_cuda.h"

/* Keys are read in units of so many bytes. */
static const uint32_t WEFT_CUDA_KEY_UNIT = 16;
/* Head sizes that attention.cu has room for. */
static const uint32_t WEFT_CUDA_HEAD_SIZE_MAX = 512;

struct weft_kv_cache {
    struct weft_kv_desc desc;
    uint32_t piece_max;        /* weft_cuda_decode_pieces_max() */
    uint32_t padded_head_size; /* EP */
    size_t key_size;           /* bytes of one block's keys, and of its values */
    unsigned char *blocks;     /* [L][page_count][G][2 key_size], device memory, owned */
};

/* The cache of one layer, as kernels get it. */
struct weft_cuda_kv_layer {
    unsigned char *blocks; /* [page_count][G][2 key_size] */
    size_t key_size;
    uint32_t padded_head_size;
    uint32_t kv_head_count;
};

static inline struct weft_cuda_kv_layer weft_cuda_kv_layer(const struct weft_kv_cache *cache, uint32_t layer)
{
    size_t size = 2 * cache->key_size * cache->desc.kv_head_count * cache->desc.page_count;
    struct weft_cuda_kv_layer out = {cache->blocks + layer * size, cache->key_size, cache->padded_head_size,
                                     cache->desc.kv_head_count};

    return out;
}

static __device__ __forceinline__ unsigned char *weft_cuda_kv_keys(const struct weft_cuda_kv_layer *layer,
                                                                   uint32_t page, uint32_t kv_head)
{
    return layer->blocks + ((size_t)page * layer->kv_head_count + kv_head) * 2 * layer->key_size;
}

/* ---- the sequences of a step in device memory ---- */

struct weft_cuda_sequence {
    uint32_t token_begin;
    uint32_t token_count;
    uint32_t position;
    uint32_t page_first;  /* of the pages of all sequences */
    uint32_t piece_first; /* of attention's pieces of all sequences with one token */
};

struct weft_cuda_sequences {
    const struct weft_cuda_sequence *sequences; /* [count] */
    const uint32_t *pages;
    uint32_t count;
};

/* The last sequence that begins at or before `token`, empty ones passed over. */
static __device__ __forceinline__ struct weft_cuda_sequence
weft_cuda_find_sequence(const struct weft_cuda_sequences *table, uint32_t token)
{
    uint32_t low = 0;
    uint32_t high = table->count;

    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;

        if (table->sequences[middle].token_begin <= token) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return table->sequences[low];
}

/* The table as it lies in memory: `count` sequences, those that the batch has not are empty; then all pages. */
size_t weft_cuda_sequences_size(const struct weft_batch *batch, uint32_t count);
void weft_cuda_sequences_fill(const struct weft_batch *batch, uint32_t count, void *host);
/* Uploads them; the same for every layer of a step, so only the first call of a step copies. */
struct weft_cuda_sequences weft_cuda_upload_sequences(struct weft_cuda_device *device, const struct weft_batch *batch);

#endif
