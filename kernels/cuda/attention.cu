/*
 * Attention: who works on what, and the merging of pieces that several blocks have worked on.
 *
 * A step's sequences are taken in two classes, those with one token (decode) and the others, each with a tile size of
 * its own. Few tiles and long contexts are split: one block per piece, then one per query that merges them in order.
 */
#include "cuda/attention.h"

#include <assert.h>
#include <stdlib.h>

#include "cuda/numeric_cuda.h"
#include "cuda/ptx.h"

static const uint32_t MERGE_THREADS = 128; /* pieces looked at together, and elements of the head */
static const int MERGE_ELEMENTS = WEFT_CUDA_HEAD_SIZE_MAX / MERGE_THREADS; /* per thread, at most */
static const size_t SPLIT_SIZE_MAX = 128 << 20; /* bytes of scratch; contexts that need more are not split */

/* ---- merging ---- */

/* A piece in the merge: o <- fmaf(o, a, piece * b). */
struct factors {
    float a;
    float b;
    float sum;
};

/* factors[thread] of `count` pieces, `before` the largest maximum of all pieces before them; returns the largest with
 * them. maxima[MERGE_THREADS] is scratch. */
static __device__ __forceinline__ float find_factors(const float2 *piece_sums, uint32_t stride, uint32_t count,
                                                     float before, float *maxima, struct factors *factors)
{
    uint32_t i = threadIdx.x;
    float2 own = i < count ? piece_sums[static_cast<size_t>(i) * stride] : make_float2(-INFINITY, 0);
    float all = before;
    float mine = before;
    float with;

    __syncthreads(); /* the pieces before have been merged */
    maxima[i] = own.x;
    __syncthreads();
    for (uint32_t j = 0; j < count; j++) {
        mine = j < i && maxima[j] > mine ? maxima[j] : mine;
        all = maxima[j] > all ? maxima[j] : all;
    }
    with = own.x > mine ? own.x : mine;
    factors[i].a = weft_exp(mine - with);
    factors[i].b = weft_exp(own.x - with);
    factors[i].sum = own.y;
    __syncthreads();
    return all;
}

/* A block has one query of one tile. */
static __global__ void __launch_bounds__(MERGE_THREADS) merge_pieces(struct weft_cuda_attend args, uint32_t q)
{
    __shared__ float maxima[MERGE_THREADS];
    __shared__ struct factors factors[MERGE_THREADS];
    struct weft_cuda_item tile_item = args.tiles[blockIdx.x];
    struct weft_cuda_tile tile = weft_cuda_tile_of(&args, &tile_item, blockIdx.y, q);
    struct weft_cuda_seen seen;
    float outs[MERGE_ELEMENTS] = {};
    float sum = 0;
    float max = -INFINITY;
    uint32_t piece;
    uint32_t piece_end;
    size_t index;

    weft_ptx_let_next_start();
    if (blockIdx.z >= tile.count) {
        return;
    }
    seen = weft_cuda_seen_of(&args, &tile, blockIdx.z);
    piece = seen.begin / WEFT_CUDA_PIECE;
    piece_end = (seen.end + WEFT_CUDA_PIECE - 1) / WEFT_CUDA_PIECE;
    index = static_cast<size_t>(blockIdx.y) * args.item_count + tile_item.piece_begin + piece -
            args.items[tile_item.piece_begin].piece_begin;
    index = index * q + blockIdx.z;
    for (uint32_t done = 0; done < piece_end - piece; done += MERGE_THREADS) {
        uint32_t left = piece_end - piece - done;
        uint32_t count = left < MERGE_THREADS ? left : MERGE_THREADS;

        max = find_factors(args.piece_sums + index, q, count, max, maxima, factors);
#pragma unroll 4
        for (uint32_t i = 0; i < count; i++, index += q) {
            const float *from = args.piece_outs + index * args.heads.head_size;
            struct factors f = factors[i];
            bool is_first = done + i == 0;

            sum = is_first ? f.sum : fmaf(sum, f.a, f.sum * f.b);
#pragma unroll
            for (int j = 0; j < MERGE_ELEMENTS; j++) {
                uint32_t e = threadIdx.x + j * MERGE_THREADS;

                if (e < args.heads.head_size) {
                    outs[j] = is_first ? from[e] : fmaf(outs[j], f.a, from[e] * f.b);
                }
            }
        }
    }
#pragma unroll
    for (int j = 0; j < MERGE_ELEMENTS; j++) {
        uint32_t e = threadIdx.x + j * MERGE_THREADS;

        if (e < args.heads.head_size) {
            args.out[weft_cuda_query_row(&tile, blockIdx.z, args.heads.head_count) * args.heads.head_size + e] =
                outs[j] / sum;
        }
    }
}

/* ---- planning ---- */

/* The sequences of one class. */
struct plan {
    const struct weft_batch *batch;
    const struct weft_heads *heads;
    uint32_t window;
    bool is_decode;
    uint32_t q;          /* queries per tile */
    uint32_t heads_most; /* query heads of one KV head, at most and at least */
    uint32_t heads_least;
    uint32_t tile_count;
    uint32_t piece_count; /* of all tiles */
    uint32_t pieces_most; /* of one tile */
    bool is_split;
    struct weft_cuda_item *items; /* [item_count], then when split the tiles, [tile_count]; NULL: only count */
};

static uint32_t divide_up(uint32_t a, uint32_t b)
{
    return a / b + (a % b != 0);
}

static void count_heads(struct plan *plan)
{
    const struct weft_heads *heads = plan->heads;

    plan->heads_most = 1;
    plan->heads_least = heads->head_count;
    for (uint32_t g = 0; g < heads->kv_head_count; g++) {
        uint32_t begin = g * heads->group_size;
        uint32_t end = begin + heads->group_size - heads->group_first;
        uint32_t count;

        begin = begin > heads->group_first ? begin - heads->group_first : 0;
        count = (end < heads->head_count ? end : heads->head_count) - begin;
        plan->heads_most = count > plan->heads_most ? count : plan->heads_most;
        plan->heads_least = count < plan->heads_least ? count : plan->heads_least;
    }
}

/* The pieces that any query of a tile sees, whatever the KV head: with fewer heads a tile's tokens come later. */
static struct weft_range pieces_of(const struct plan *plan, const struct weft_batch_sequence *sequence, uint32_t tile)
{
    uint32_t first = tile * plan->q / plan->heads_most;
    uint32_t last = (tile * plan->q + plan->q - 1) / plan->heads_least;
    uint32_t end = sequence->position + first + 1;
    uint32_t begin = plan->window > 0 && end > plan->window ? end - plan->window : 0;

    last = last < sequence->token_count ? last : sequence->token_count - 1;
    return {begin / WEFT_CUDA_PIECE, divide_up(sequence->position + last + 1, WEFT_CUDA_PIECE)};
}

static void add_tile(struct plan *plan, uint32_t sequence, uint32_t tile, struct weft_range pieces)
{
    uint32_t count = weft_range_count(pieces);

    if (plan->items != NULL && plan->is_split) {
        for (uint32_t i = 0; i < count; i++) {
            plan->items[plan->piece_count + i] = {sequence, tile, pieces.begin + i, 1};
        }
    } else if (plan->items != NULL) {
        plan->items[plan->tile_count] = {sequence, tile, pieces.begin, count};
    }
    plan->tile_count++;
    plan->piece_count += count;
    plan->pieces_most = count > plan->pieces_most ? count : plan->pieces_most;
}

/* Last tiles first: they see the most positions. */
static void add_tiles(struct plan *plan)
{
    plan->tile_count = 0;
    plan->piece_count = 0;
    for (uint32_t i = 0; i < plan->batch->sequence_count; i++) {
        const struct weft_batch_sequence *sequence = &plan->batch->sequences[i];

        if (sequence->token_count > 0 && (sequence->token_count == 1) == plan->is_decode) {
            for (uint32_t tile = divide_up(sequence->token_count * plan->heads_most, plan->q); tile-- > 0;) {
                add_tile(plan, i, tile, pieces_of(plan, sequence, tile));
            }
        }
    }
}

/* Where the items of each tile begin, in the order of the items. */
static void list_split_tiles(const struct plan *plan, struct weft_cuda_item *tiles)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < plan->piece_count; i++) {
        const struct weft_cuda_item *item = &plan->items[i];

        if (i == 0 || item->tile != item[-1].tile || item->sequence != item[-1].sequence) {
            tiles[count++] = {item->sequence, item->tile, i, 0};
        }
        tiles[count - 1].piece_count++;
    }
    assert(count == plan->tile_count);
}

static uint32_t queries_wanted(const struct plan *plan)
{
    uint32_t most = 0;

    for (uint32_t i = 0; i < plan->batch->sequence_count; i++) {
        uint32_t tokens = plan->batch->sequences[i].token_count;

        if (tokens > most && (tokens == 1) == plan->is_decode) {
            most = tokens;
        }
    }
    return most * plan->heads_most;
}

/* Bytes of scratch for the sums of all pieces, the small ones first. */
static size_t piece_sums_size(const struct plan *plan)
{
    return static_cast<size_t>(plan->piece_count) * plan->heads->kv_head_count * plan->q * sizeof(float2);
}

static size_t split_size(const struct plan *plan)
{
    return piece_sums_size(plan) * (1 + plan->heads->head_size * sizeof(float) / sizeof(float2));
}

static void attend_class(struct weft_cuda_device *device, const struct weft_kv_cache *cache, struct plan *plan,
                         struct weft_cuda_attend *args)
{
    const struct weft_cuda_item *uploaded;
    unsigned char *scratch = NULL;
    size_t count;

    plan->q = weft_cuda_attend_queries(plan->heads->head_size, queries_wanted(plan));
    add_tiles(plan);
    if (plan->tile_count == 0) {
        return;
    }
    plan->is_split = plan->pieces_most > 1 && plan->tile_count * plan->heads->kv_head_count < 2 * device->sm_count &&
                     split_size(plan) <= SPLIT_SIZE_MAX;
    args->item_count = plan->is_split ? plan->piece_count : plan->tile_count;
    count = args->item_count + (plan->is_split ? plan->tile_count : 0);
    plan->items = static_cast<struct weft_cuda_item *>(malloc(count * sizeof(*plan->items)));
    if (plan->items == NULL) {
        (void)weft_cuda_check(device, cudaErrorMemoryAllocation, "a list of tiles");
        return;
    }
    add_tiles(plan);
    if (plan->is_split) {
        list_split_tiles(plan, plan->items + args->item_count);
        scratch = static_cast<unsigned char *>(weft_cuda_scratch(device, split_size(plan)));
    }
    uploaded =
        static_cast<const struct weft_cuda_item *>(weft_cuda_upload(device, plan->items, count * sizeof(*plan->items)));
    free(plan->items);
    args->items = uploaded;
    args->tiles = uploaded + args->item_count;
    args->piece_sums = reinterpret_cast<float2 *>(scratch);
    args->piece_outs = scratch != NULL ? reinterpret_cast<float *>(scratch + piece_sums_size(plan)) : NULL;
    if (plan->is_split && scratch == NULL) {
        return;
    }
    weft_cuda_attend_pieces(device, cache->desc.dtype == WEFT_BF16, plan->q, args);
    if (plan->is_split) {
        WEFT_CUDA_LAUNCH(merge_pieces, dim3(plan->tile_count, plan->heads->kv_head_count, plan->q), dim3(MERGE_THREADS),
                         0, device->stream, *args, plan->q);
        (void)weft_cuda_launched(device, "merging pieces of attention");
    }
}

void weft_cuda_attention(struct weft_device *device, const struct weft_kv_cache *cache, const struct weft_batch *batch,
                         const struct weft_attention_args *args)
{
    struct weft_cuda_device *cuda = weft_cuda_device(device);
    const struct weft_heads *heads = &args->heads;
    struct weft_cuda_attend attend = {};

    assert(args->layer < cache->desc.layer_count && heads->kv_head_count == cache->desc.kv_head_count &&
           heads->head_size == cache->desc.head_size);
    if (heads->kv_head_count == 0 || batch->token_count == 0) {
        return;
    }
    assert((heads->group_first + heads->head_count - 1) / heads->group_size < heads->kv_head_count);
    attend.layer = weft_cuda_kv_layer(cache, args->layer);
    attend.table = weft_cuda_upload_sequences(cuda, batch);
    attend.heads = *heads;
    attend.window = args->window;
    attend.scale = args->scale;
    attend.qkv = args->qkv;
    attend.out = args->out;
    for (int i = 0; i < 2 && attend.table.sequences != NULL; i++) {
        struct plan plan = {};

        plan.batch = batch;
        plan.heads = heads;
        plan.window = args->window;
        plan.is_decode = i == 0;
        count_heads(&plan);
        attend_class(cuda, cache, &plan, &attend);
    }
}
