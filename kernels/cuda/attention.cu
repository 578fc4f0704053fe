/*
 * Attention: who works on what, and the merging of pieces that several blocks have worked on.
 *
 * A step's sequences are taken in two classes, those with one token (decode) and the others, each with a tile size of
 * its own. Few tiles and long contexts are split: blocks have some pieces each, then one per query merges them in
 * order. The grid of decode depends on the number of sequences and roughly on the longest context, not on more
 * (graph.cu).
 */
#include "cuda/attention.h"

#include <assert.h>
#include <stdlib.h>

#include "cuda/numeric_cuda.h"
#include "cuda/ptx.h"

static const uint32_t MERGE_THREADS = 128; /* pieces looked at together, and elements of the head */
static const int MERGE_ELEMENTS = WEFT_CUDA_HEAD_SIZE_MAX / MERGE_THREADS; /* per thread, at most */
static const size_t SPLIT_SIZE_MAX = 128 << 20; /* bytes of scratch; prompts that need more are not split */
static const uint32_t PIECES_FEW = 8;           /* a context with more is a long one */
static const uint32_t PIECES_MOST = 4096;       /* of a decode step that is split: 68 MB in a model like Llama-3-8B */

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
    struct weft_cuda_item tile_item =
        args.tiles != NULL ? args.tiles[blockIdx.x] : weft_cuda_decode_item(&args, blockIdx.x);
    struct weft_cuda_tile tile = weft_cuda_tile_of(&args, &tile_item, blockIdx.y, q);
    struct weft_cuda_seen seen;
    float outs[MERGE_ELEMENTS] = {};
    float sum = 0;
    float max = -INFINITY;
    uint32_t stride = args.heads.kv_head_count * q; /* from slot to slot */
    uint32_t piece;
    uint32_t piece_end;
    uint32_t slot;
    size_t index;

    weft_ptx_let_next_start();
    if (blockIdx.z >= tile.count) {
        return;
    }
    seen = weft_cuda_seen_of(&args, &tile, blockIdx.z);
    piece = seen.begin / WEFT_CUDA_PIECE;
    piece_end = (seen.end + WEFT_CUDA_PIECE - 1) / WEFT_CUDA_PIECE;
    slot = args.tiles != NULL ? tile_item.piece_begin - args.items[tile_item.piece_begin].piece_begin
                              : weft_cuda_decode_slot(&args, &tile.sequence, tile_item.tile);
    index = static_cast<size_t>(slot + piece) * stride + blockIdx.y * q + blockIdx.z;
    for (uint32_t done = 0; done < piece_end - piece; done += MERGE_THREADS) {
        uint32_t left = piece_end - piece - done;
        uint32_t count = left < MERGE_THREADS ? left : MERGE_THREADS;

        max = find_factors(args.piece_sums + index, stride, count, max, maxima, factors);
#pragma unroll 4
        for (uint32_t i = 0; i < count; i++, index += stride) {
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

/* ---- prompts ---- */

/* Query heads of one KV head, at most and at least. */
struct head_counts {
    uint32_t most;
    uint32_t least;
};

/* The sequences with more than one token. */
struct plan {
    const struct weft_batch *batch;
    const struct weft_heads *heads;
    struct head_counts counts;
    uint32_t window;
    uint32_t q; /* queries per tile */
    uint32_t tile_count;
    uint32_t piece_count; /* of all tiles */
    uint32_t pieces_most; /* of one tile */
    bool is_split;
    struct weft_cuda_item *items; /* [item_count], then when split the tiles, [tile_count]; NULL: only count */
};

static struct head_counts count_heads(const struct weft_heads *heads)
{
    struct head_counts counts = {1, heads->head_count};

    for (uint32_t g = 0; g < heads->kv_head_count; g++) {
        uint32_t begin = g * heads->group_size;
        uint32_t end = begin + heads->group_size - heads->group_first;
        uint32_t count;

        begin = begin > heads->group_first ? begin - heads->group_first : 0;
        count = (end < heads->head_count ? end : heads->head_count) - begin;
        counts.most = count > counts.most ? count : counts.most;
        counts.least = count < counts.least ? count : counts.least;
    }
    return counts;
}

/* The pieces that any query of a tile sees, whatever the KV head: with fewer heads a tile's tokens come later. */
static struct weft_range pieces_of(const struct plan *plan, const struct weft_batch_sequence *sequence, uint32_t tile)
{
    uint32_t first = tile * plan->q / plan->counts.most;
    uint32_t last = (tile * plan->q + plan->q - 1) / plan->counts.least;
    uint32_t end = sequence->position + first + 1;
    uint32_t begin = plan->window > 0 && end > plan->window ? end - plan->window : 0;

    last = last < sequence->token_count ? last : sequence->token_count - 1;
    return {begin / WEFT_CUDA_PIECE, weft_cuda_divide_up(sequence->position + last + 1, WEFT_CUDA_PIECE)};
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

        if (sequence->token_count > 1) {
            for (uint32_t tile = weft_cuda_divide_up(sequence->token_count * plan->counts.most, plan->q); tile-- > 0;) {
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

        most = tokens > most ? tokens : most;
    }
    return most * plan->counts.most;
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

static void launch_merge(struct weft_cuda_device *device, uint32_t q, uint32_t tile_count,
                         const struct weft_cuda_attend *args)
{
    WEFT_CUDA_LAUNCH(merge_pieces, dim3(tile_count, args->heads.kv_head_count, q), dim3(MERGE_THREADS), 0,
                     device->stream, *args, q);
    (void)weft_cuda_launched(device, "merging pieces of attention");
}

static void attend_prompts(struct weft_cuda_device *device, const struct weft_kv_cache *cache, struct plan *plan,
                           struct weft_cuda_attend *args)
{
    const struct weft_cuda_item *uploaded;
    unsigned char *scratch = NULL;
    uint32_t item_count;
    size_t count;

    plan->q = weft_cuda_attend_queries(plan->heads->head_size, queries_wanted(plan));
    add_tiles(plan);
    if (plan->tile_count == 0) {
        return;
    }
    plan->is_split = plan->pieces_most > 1 && plan->tile_count * plan->heads->kv_head_count < 2 * device->sm_count &&
                     split_size(plan) <= SPLIT_SIZE_MAX;
    item_count = plan->is_split ? plan->piece_count : plan->tile_count;
    count = item_count + (plan->is_split ? plan->tile_count : 0);
    plan->items = static_cast<struct weft_cuda_item *>(malloc(count * sizeof(*plan->items)));
    if (plan->items == NULL) {
        (void)weft_cuda_check(device, cudaErrorMemoryAllocation, "a list of tiles");
        return;
    }
    add_tiles(plan);
    if (plan->is_split) {
        list_split_tiles(plan, plan->items + item_count);
        scratch = static_cast<unsigned char *>(weft_cuda_scratch(device, split_size(plan)));
    }
    uploaded =
        static_cast<const struct weft_cuda_item *>(weft_cuda_upload(device, plan->items, count * sizeof(*plan->items)));
    free(plan->items);
    if (uploaded == NULL) {
        return;
    }
    args->items = uploaded;
    args->tiles = plan->is_split ? uploaded + item_count : NULL;
    args->piece_sums = reinterpret_cast<float2 *>(scratch);
    args->piece_outs = scratch != NULL ? reinterpret_cast<float *>(scratch + piece_sums_size(plan)) : NULL;
    if (plan->is_split && scratch == NULL) {
        return;
    }
    weft_cuda_attend_pieces(device, cache->desc.dtype == WEFT_BF16, plan->q, item_count, args);
    if (plan->is_split) {
        launch_merge(device, plan->q, plan->tile_count, args);
    }
}

/* ---- decode ---- */

static enum weft_cuda_context context_within(const struct weft_batch *batch, uint32_t piece_max)
{
    uint32_t most = 0;
    uint32_t all = 0;

    for (uint32_t i = 0; i < batch->sequence_count; i++) {
        if (batch->sequences[i].token_count == 1) {
            uint32_t count = weft_cuda_divide_up(batch->sequences[i].position + 1, WEFT_CUDA_PIECE);

            most = count > most ? count : most;
            all += count;
        }
    }
    if (most == 0) {
        return WEFT_CUDA_NO_CONTEXT;
    }
    return most == 1 || all > piece_max ? WEFT_CUDA_WHOLE : most <= PIECES_FEW ? WEFT_CUDA_SHORT : WEFT_CUDA_LONG;
}

enum weft_cuda_context weft_cuda_context_of(const struct weft_kv_cache *cache, const struct weft_batch *batch)
{
    return context_within(batch, cache->piece_max);
}

enum weft_cuda_context weft_cuda_context_shared(const struct weft_batch *batch)
{
    return context_within(batch, PIECES_MOST);
}

/*
 * Blocks per tile, when the batch has `tile_count` of them over all KV heads. Two blocks per multiprocessor are enough
 * without splitting. More than eight would only wait in turn: about three can work at a time. Pieces are 256 positions,
 * so a window sees one more than fit into it.
 */
static uint32_t split_of(const struct weft_cuda_device *device, enum weft_cuda_context context, uint32_t window,
                         uint32_t tile_count)
{
    uint32_t most = weft_cuda_divide_up(8 * device->sm_count, tile_count);
    uint32_t pieces = context == WEFT_CUDA_SHORT ? PIECES_FEW : most;

    if (window > 0 && weft_cuda_divide_up(window, WEFT_CUDA_PIECE) + 1 < pieces) {
        pieces = weft_cuda_divide_up(window, WEFT_CUDA_PIECE) + 1;
    }
    if (context == WEFT_CUDA_WHOLE || tile_count >= 2 * device->sm_count) {
        return 1;
    }
    return pieces < most ? pieces : most;
}

/* More tiles per sequence than one do not make it less true. */
enum weft_cuda_context weft_cuda_context_merged(const struct weft_cuda_device *device,
                                                const struct weft_kv_cache *cache, uint32_t count,
                                                enum weft_cuda_context context)
{
    uint32_t tile_count = count * cache->desc.kv_head_count;

    if (tile_count == 0 || tile_count >= 2 * device->sm_count) {
        return WEFT_CUDA_WHOLE;
    }
    return context == WEFT_CUDA_LONG && weft_cuda_divide_up(8 * device->sm_count, tile_count) <= PIECES_FEW
               ? WEFT_CUDA_SHORT
               : context;
}

/* Bytes of scratch for `slot_count` slots of q queries, each for all KV heads. */
static size_t slots_size(const struct weft_kv_desc *desc, size_t slot_count, uint32_t q)
{
    return slot_count * desc->kv_head_count * q * (sizeof(float2) + desc->head_size * sizeof(float));
}

/* Only so many sequences are split, and each has so many pieces at most. */
uint32_t weft_cuda_decode_pieces_max(const struct weft_cuda_device *device, const struct weft_kv_desc *desc)
{
    uint32_t heads = desc->kv_head_count > 0 ? desc->kv_head_count : 1;
    uint64_t sequences = weft_cuda_divide_up(2 * device->sm_count, heads);
    uint64_t pieces;

    if (desc->position_max == 0) {
        return PIECES_MOST;
    }
    if (desc->sequence_max > 0 && desc->sequence_max < sequences) {
        sequences = desc->sequence_max;
    }
    pieces = sequences * weft_cuda_divide_up(desc->position_max, WEFT_CUDA_PIECE);
    return pieces < PIECES_MOST ? static_cast<uint32_t>(pieces) : PIECES_MOST;
}

/* A prompt is split as long as it has fewer than so many tiles; tiles are filled but for the last of a sequence. */
static size_t prompts_scratch_size(const struct weft_cuda_device *device, const struct weft_kv_desc *desc)
{
    uint32_t q = weft_cuda_attend_queries(desc->head_size, desc->token_max * desc->group_head_max);
    uint32_t sequences = desc->token_max / 2 < desc->sequence_max ? desc->token_max / 2 : desc->sequence_max;
    uint32_t tiles = (2 * device->sm_count - 1) / desc->kv_head_count;
    uint32_t needed = weft_cuda_divide_up(desc->token_max * desc->group_head_max, q) + sequences;
    size_t size = slots_size(desc,
                             static_cast<size_t>(tiles < needed ? tiles : needed) *
                                 weft_cuda_divide_up(desc->position_max, WEFT_CUDA_PIECE),
                             q);

    return size < SPLIT_SIZE_MAX ? size : SPLIT_SIZE_MAX;
}

size_t weft_cuda_kv_cache_scratch_size(const struct weft_device *base, const struct weft_kv_desc *desc)
{
    const struct weft_cuda_device *device = reinterpret_cast<const struct weft_cuda_device *>(base);
    uint32_t q = weft_cuda_attend_queries(desc->head_size, desc->group_head_max);
    size_t decode = slots_size(desc,
                               static_cast<size_t>(weft_cuda_decode_pieces_max(device, desc)) *
                                   weft_cuda_divide_up(desc->group_head_max, q),
                               q);
    size_t prompts;

    if (desc->kv_head_count == 0 || desc->position_max <= WEFT_CUDA_PIECE) {
        return 0;
    }
    prompts = prompts_scratch_size(device, desc);
    return decode > prompts ? decode : prompts;
}

static void attend_decode(struct weft_cuda_device *device, const struct weft_kv_cache *cache,
                          const struct weft_batch *batch, struct weft_cuda_attend *args)
{
    const enum weft_cuda_context context = weft_cuda_context_of(cache, batch);
    const uint32_t kv_heads = args->heads.kv_head_count;
    const uint32_t wanted = count_heads(&args->heads).most;
    const uint32_t q = weft_cuda_attend_queries(args->heads.head_size, wanted);
    uint32_t tile_count;
    bool is_split;

    if (context == WEFT_CUDA_NO_CONTEXT) {
        return;
    }
    args->tiles_each = weft_cuda_divide_up(wanted, q);
    tile_count = args->table.count * args->tiles_each;
    args->split = split_of(device, context, args->window, tile_count * kv_heads);
    is_split = args->split > 1;
    if (is_split) {
        size_t slot_count = static_cast<size_t>(cache->piece_max) * args->tiles_each;
        unsigned char *scratch =
            static_cast<unsigned char *>(weft_cuda_scratch(device, slots_size(&cache->desc, slot_count, q)));

        if (scratch == NULL) {
            return;
        }
        args->piece_sums = reinterpret_cast<float2 *>(scratch);
        args->piece_outs = reinterpret_cast<float *>(scratch + slot_count * kv_heads * q * sizeof(float2));
    }
    weft_cuda_attend_pieces(device, cache->desc.dtype == WEFT_BF16, q, tile_count * args->split, args);
    if (is_split) {
        launch_merge(device, q, tile_count, args);
    }
}

void weft_cuda_attention(struct weft_device *device, const struct weft_kv_cache *cache, const struct weft_batch *batch,
                         const struct weft_attention_args *args)
{
    struct weft_cuda_device *cuda = weft_cuda_device(device);
    const struct weft_heads *heads = &args->heads;
    struct weft_cuda_attend attend = {};
    struct weft_cuda_attend prompts;
    struct plan plan = {};

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
    if (attend.table.sequences == NULL) {
        return;
    }
    prompts = attend;
    attend_decode(cuda, cache, batch, &attend);
    plan.batch = batch;
    plan.heads = heads;
    plan.counts = count_heads(heads);
    plan.window = args->window;
    attend_prompts(cuda, cache, &plan, &prompts);
}
