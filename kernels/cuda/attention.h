/*
 * What attention's kernels get, shared by the kernel that walks pieces and the one that merges them.
 *
 * A tile is up to Q queries of one sequence and KV head, in order of token, then head, as on the CPU. An item is a tile
 * with the pieces that one block walks: all of them, or when the work is split over the context some, whose sums it
 * leaves in slots of scratch memory, a slot per tile and piece, those of a tile together in ascending order.
 *
 * Sequences with many tokens have their items listed by the host. In decode blocks find their own from the table of
 * sequences, so that the grid does not depend on anybody's length: a tile's pieces are dealt to `split` blocks in
 * turns.
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
    const struct weft_cuda_item *items; /* of one piece each when split; NULL in decode */
    const struct weft_cuda_item *tiles; /* when split: their items begin at items[piece_begin] */
    uint32_t tiles_each;                /* decode: tiles per sequence */
    uint32_t split;                     /* decode: blocks per tile; the grid has [split][sequences][tiles_each] */
    uint32_t segment;                   /* values in shared memory at a time: positions, a multiple of 16 */
    struct weft_heads heads;
    uint32_t window;
    float scale;
    const float *qkv;   /* [T, H + 2G, E] */
    float *out;         /* [T, H, E] */
    float2 *piece_sums; /* split: [slot][G][Q] maximum and sum */
    float *piece_outs;  /* split: [slot][G][Q][E] weighted values */
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

/* Decode: what block x of the grid has, beginning with piece piece_begin of those that are seen. Blocks that find
 * nothing to do come last. */
static __device__ __forceinline__ struct weft_cuda_item weft_cuda_decode_item(const struct weft_cuda_attend *args,
                                                                              uint32_t x)
{
    uint32_t tile = x % (args->table.count * args->tiles_each);
    struct weft_cuda_item item;

    item.sequence = tile / args->tiles_each;
    item.tile = tile % args->tiles_each;
    item.piece_begin = x / (args->table.count * args->tiles_each);
    item.piece_count = 0;
    return item;
}

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
    if (args->items == NULL && tile.sequence.token_count != 1) {
        query_count = 0; /* empty, or not one of decode's */
    }
    tile.count = tile.query_begin < query_count ? query_count - tile.query_begin : 0;
    tile.count = tile.count < q ? tile.count : q;
    return tile;
}

static __device__ __forceinline__ struct weft_cuda_seen weft_cuda_clip(struct weft_cuda_seen seen, uint32_t begin,
                                                                       uint32_t end)
{
    seen.begin = seen.begin > begin ? seen.begin : begin;
    seen.end = seen.end < end ? seen.end : end;
    return seen;
}

static __device__ __forceinline__ struct weft_cuda_seen
weft_cuda_seen_of(const struct weft_cuda_attend *args, const struct weft_cuda_tile *tile, uint32_t index)
{
    uint32_t token = (tile->query_begin + index) / tile->head_count;
    struct weft_cuda_seen seen = {0, tile->sequence.position + token + 1};

    seen.begin = args->window > 0 && seen.end > args->window ? seen.end - args->window : 0;
    return seen;
}

/* Decode: the slot of a tile's piece 0. */
static __device__ __forceinline__ uint32_t weft_cuda_decode_slot(const struct weft_cuda_attend *args,
                                                                 const struct weft_cuda_sequence *sequence,
                                                                 uint32_t tile)
{
    return sequence->piece_first * args->tiles_each + tile * ((sequence->position + WEFT_CUDA_PIECE) / WEFT_CUDA_PIECE);
}

/* Pieces of a split tile that block x of the grid has: the first, the end, how far apart; piece 0's slot. */
struct weft_cuda_share {
    uint32_t begin;
    uint32_t end;
    uint32_t step;
    uint32_t slot;
};

static __device__ __forceinline__ struct weft_cuda_share
weft_cuda_share_of(const struct weft_cuda_attend *args, const struct weft_cuda_tile *tile, struct weft_cuda_seen seen,
                   const struct weft_cuda_item *item, uint32_t x)
{
    uint32_t end = (seen.end + WEFT_CUDA_PIECE - 1) / WEFT_CUDA_PIECE;
    uint32_t begin = seen.begin / WEFT_CUDA_PIECE;
    struct weft_cuda_share share;

    if (args->items == NULL) {
        share.begin = begin + item->piece_begin;
        share.end = end;
        share.step = args->split;
        share.slot = weft_cuda_decode_slot(args, &tile->sequence, item->tile);
    } else { /* one piece, which with fewer heads than others the tile may not see */
        bool is_seen = item->piece_begin >= begin && item->piece_begin < end;

        share.begin = item->piece_begin;
        share.end = share.begin + (is_seen ? 1 : 0);
        share.step = 1;
        share.slot = x - share.begin;
    }
    return share;
}

/* Row of [T, H] of a query: of out, and with another width of qkv. */
static __device__ __forceinline__ size_t weft_cuda_query_row(const struct weft_cuda_tile *tile, uint32_t index,
                                                             uint32_t heads_per_token)
{
    uint32_t token = tile->sequence.token_begin + (tile->query_begin + index) / tile->head_count;

    return static_cast<size_t>(token) * heads_per_token + tile->head_begin +
           (tile->query_begin + index) % tile->head_count;
}

/* What of the lengths of decoded sequences shows in the grid: nothing to decode; every tile by one block, as the
 * context is one piece or there are too many pieces in all; up to 8 pieces; more. */
enum weft_cuda_context { WEFT_CUDA_NO_CONTEXT, WEFT_CUDA_WHOLE, WEFT_CUDA_SHORT, WEFT_CUDA_LONG };
enum weft_cuda_context weft_cuda_context_of(const struct weft_kv_cache *cache, const struct weft_batch *batch);
/* What all ranks have alike, however many heads each has: where it differs from the above, no tile is split. */
enum weft_cuda_context weft_cuda_context_shared(const struct weft_batch *batch);
/* Pieces of a decode step's sequences in all, up to which it is split. */
uint32_t weft_cuda_decode_pieces_max(const struct weft_cuda_device *device, const struct weft_kv_desc *desc);
/* The first of the contexts that give the same grid to a table of `count` sequences. */
enum weft_cuda_context weft_cuda_context_merged(const struct weft_cuda_device *device,
                                                const struct weft_kv_cache *cache, uint32_t count,
                                                enum weft_cuda_context context);

/* attention_pieces.cu: queries per tile when `wanted` queries share a KV head; one of 1, 2, 4, 8, 16. */
uint32_t weft_cuda_attend_queries(uint32_t head_size, uint32_t wanted);
/* Walks the pieces of block_count items for all KV heads; sets args->segment. */
void weft_cuda_attend_pieces(struct weft_cuda_device *device, bool is_bf16, uint32_t q, uint32_t x_count,
                             struct weft_cuda_attend *args);
/* Once per device, before the first of these. */
void weft_cuda_attend_init(struct weft_cuda_device *device);

#endif
