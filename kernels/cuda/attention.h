/*
 * What attention's kernels get, shared by the kernel that walks pieces and the one that merges them.
 *
 * A tile is up to Q queries of one sequence and KV head, in order of token, then head, as on the CPU. An item is a tile
 * with the pieces that one block walks: all of them, or one piece when the work is split over the context. Items of a
 * tile lie together, in ascending order of pieces.
 */
#ifndef WEFT_CUDA_ATTENTION_H
#define WEFT_CUDA_ATTENTION_H

#include "cuda/kv_cache.h"

/* Positions of a piece, and threads of a block: part of the numerics contract. */
static const uint32_t WEFT_CUDA_PIECE = 256;

struct weft_cuda_item {
    uint32_t sequence;
    uint32_t tile;
    uint32_t piece_begin;
    uint32_t piece_count;
};

struct weft_cuda_attend {
    struct weft_cuda_kv_layer layer;
    struct weft_cuda_sequences table;
    const struct weft_cuda_item *items; /* [item_count], of one piece each when split */
    const struct weft_cuda_item *tiles; /* [tile_count], when split: their items begin at items[piece_begin] */
    uint32_t item_count;
    uint32_t segment; /* values in shared memory at a time: positions, a multiple of 16 */
    struct weft_heads heads;
    uint32_t window;
    float scale;
    const float *qkv;   /* [T, H + 2G, E] */
    float *out;         /* [T, H, E] */
    float2 *piece_sums; /* split: [G][item_count][Q] maximum and sum */
    float *piece_outs;  /* split: [G][item_count][Q][E] weighted values */
};

/* The queries of a tile. */
struct weft_cuda_tile {
    struct weft_cuda_sequence sequence;
    uint32_t head_begin; /* query heads of the KV head */
    uint32_t head_count;
    uint32_t query_begin; /* among the sequence's queries of this KV head */
    uint32_t count;       /* 0: there is no such tile */
};

/* Positions that a query sees: [begin, end). */
struct weft_cuda_seen {
    uint32_t begin;
    uint32_t end;
};

static __device__ __forceinline__ struct weft_cuda_tile
weft_cuda_tile_of(const struct weft_cuda_attend *args, const struct weft_cuda_item *item, uint32_t kv_head, uint32_t q)
{
    const struct weft_heads *heads = &args->heads;
    uint32_t begin = kv_head * heads->group_size;
    uint32_t end = begin + heads->group_size - heads->group_first;
    struct weft_cuda_tile tile;
    uint32_t query_count;

    begin = begin > heads->group_first ? begin - heads->group_first : 0;
    end = end < heads->head_count ? end : heads->head_count;
    tile.sequence = args->table.sequences[item->sequence];
    tile.head_begin = begin;
    tile.head_count = end - begin;
    tile.query_begin = item->tile * q;
    query_count = tile.sequence.token_count * tile.head_count;
    tile.count = tile.query_begin < query_count ? query_count - tile.query_begin : 0;
    tile.count = tile.count < q ? tile.count : q;
    return tile;
}

static __device__ __forceinline__ struct weft_cuda_seen
weft_cuda_seen_of(const struct weft_cuda_attend *args, const struct weft_cuda_tile *tile, uint32_t index)
{
    uint32_t token = (tile->query_begin + index) / tile->head_count;
    struct weft_cuda_seen seen = {0, tile->sequence.position + token + 1};

    seen.begin = args->window > 0 && seen.end > args->window ? seen.end - args->window : 0;
    return seen;
}

/* Row of [T, H] of a query: of out, and with another width of qkv. */
static __device__ __forceinline__ size_t weft_cuda_query_row(const struct weft_cuda_tile *tile, uint32_t index,
                                                             uint32_t heads_per_token)
{
    uint32_t token = tile->sequence.token_begin + (tile->query_begin + index) / tile->head_count;

    return static_cast<size_t>(token) * heads_per_token + tile->head_begin +
           (tile->query_begin + index) % tile->head_count;
}

/* attention_pieces.cu: queries per tile when `wanted` queries share a KV head; one of 1, 2, 4, 8, 16. */
uint32_t weft_cuda_attend_queries(uint32_t head_size, uint32_t wanted);
/* Walks the pieces of all items for all KV heads; sets args->segment. */
void weft_cuda_attend_pieces(struct weft_cuda_device *device, bool is_bf16, uint32_t q, struct weft_cuda_attend *args);
/* Once per device, before the first of these. */
void weft_cuda_attend_init(struct weft_cuda_device *device);

#endif
