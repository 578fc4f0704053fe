/*
 * Attention over the paged cache, in pieces of 256 positions aligned at 0.
 *
 * Order of one query's result: per piece, scores are dots over E ascending, weights exp(score - piece maximum), their
 * 16-lane sum, and the weighted sum of values over ascending positions; pieces are merged in ascending order with
 * m' = max(m, piece m), a = exp(m - m'), b = exp(piece m - m'): l' = fmaf(l, a, piece l * b), o' = fmaf(o, a, piece o *
 * b); in the end o / l. Queries of one KV head are worked on together only to load keys and values once; they share
 * nothing.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "cpu/kv_cache.h"
#include "weft/numeric.h"

enum {
    PIECE = 256, /* positions; part of the numerics contract */
    PIECE_PAGES = PIECE / WEFT_PAGE_POSITIONS,
    TILE = WEFT_DOT_VECTORS_MAX, /* queries worked on together, at most */
};

struct attention_job {
    struct weft_cpu_device *device;
    const struct weft_kv_cache *cache;
    const struct weft_batch *batch;
    const struct weft_attention_args *args;
    uint32_t tile_size; /* queries per tile, 1 .. TILE */
    weft_cpu_dot_fn *dot;
};

/* Query heads of this rank that use KV head g. */
static struct weft_range heads_of_group(const struct weft_heads *heads, uint32_t g)
{
    uint32_t begin = g * heads->group_size;
    uint32_t end = begin + heads->group_size - heads->group_first;

    begin = begin > heads->group_first ? begin - heads->group_first : 0;
    return (struct weft_range){begin, weft_min_u32(end, heads->head_count)};
}

/* Tiles of every KV head of a sequence: enough for the KV head with the most queries. */
static uint32_t tile_count(const struct attention_job *job, const struct weft_batch_sequence *sequence)
{
    uint32_t group = weft_min_u32(job->args->heads.group_size, job->args->heads.head_count);

    return weft_ceil_div(sequence->token_count * group, job->tile_size);
}

/* Items of the whole step: for each sequence, for each KV head, its tiles. */
static uint32_t item_count(const struct attention_job *job)
{
    uint64_t count = 0;

    for (uint32_t s = 0; s < job->batch->sequence_count; s++) {
        count += (uint64_t)tile_count(job, &job->batch->sequences[s]) * job->args->heads.kv_head_count;
    }
    assert(count < UINT32_MAX / 2);
    return (uint32_t)count;
}

/* A tile: up to 8 queries of one sequence and KV head, in order of token, then head. */
struct tile {
    const struct weft_batch_sequence *sequence;
    uint32_t kv_head;
    uint32_t count;
    const float *queries[TILE];
    float *out[TILE];
    struct weft_range positions[TILE]; /* absolute */
    float *sums;                       /* [TILE][EP] running o */
    float *piece_sums;                 /* [TILE][EP] */
    float *scores;                     /* [TILE][PIECE] */
    float max[TILE];
    float sum[TILE];
    bool is_started[TILE];
};

/* Fills all but the scratch; count 0 when the KV head has no such tile. */
static void tile_init(const struct attention_job *job, const struct weft_batch_sequence *sequence, uint32_t kv_head,
                      uint32_t index, struct tile *tile)
{
    const struct weft_heads *heads = &job->args->heads;
    struct weft_range group = heads_of_group(heads, kv_head);
    uint32_t group_count = weft_range_count(group);
    uint32_t query_count = sequence->token_count * group_count;
    uint32_t begin = index * job->tile_size;
    size_t row_width = ((size_t)heads->head_count + 2 * (size_t)heads->kv_head_count) * heads->head_size;

    tile->sequence = sequence;
    tile->kv_head = kv_head;
    tile->count = begin < query_count ? weft_min_u32(job->tile_size, query_count - begin) : 0;
    for (uint32_t i = 0; i < tile->count; i++) {
        uint32_t token = (begin + i) / group_count;
        uint32_t head = group.begin + (begin + i) % group_count;
        size_t row = (size_t)sequence->token_begin + token;
        uint32_t end = sequence->position + token + 1;
        uint32_t window = job->args->window;

        tile->queries[i] = job->args->qkv + row * row_width + (size_t)head * heads->head_size;
        tile->out[i] = job->args->out + (row * heads->head_count + head) * heads->head_size;
        tile->positions[i] = (struct weft_range){window > 0 && end > window ? end - window : 0, end};
        tile->is_started[i] = false;
    }
}

/* scores [TILE][PIECE] of all the tile's queries for pages [page_begin, page_end) of the sequence. */
static void score_pages(const struct attention_job *job, const struct tile *tile, uint32_t page_begin,
                        uint32_t page_end)
{
    const void *panels[WEFT_DOT_PANELS_MAX];
    struct weft_cpu_dot dot = {.panels = panels,
                               .vector_count = tile->count,
                               .x = tile->queries,
                               .col_count = job->args->heads.head_size,
                               .out_stride = PIECE};

    for (uint32_t page = page_begin; page < page_end; page += dot.panel_count) {
        dot.panel_count = weft_min_u32(WEFT_DOT_PANELS_MAX, page_end - page);
        for (uint32_t i = 0; i < dot.panel_count; i++) {
            panels[i] = weft_kv_keys(job->cache, job->args->layer, tile->sequence->pages[page + i], tile->kv_head);
        }
        dot.out = tile->scores + (size_t)(page % PIECE_PAGES) * WEFT_PAGE_POSITIONS;
        job->dot(&dot);
    }
}

/* piece_sums of `count` queries from `first` on += weights * values over positions [begin, end) of one page. */
static void weigh_page(const struct attention_job *job, const struct tile *tile, uint32_t first, uint32_t count,
                       uint32_t page, struct weft_range slots)
{
    uint32_t width = job->cache->padded_head_size;
    size_t row_size = WEFT_LANES * weft_dtype_size(job->cache->desc.dtype);
    const unsigned char *values =
        weft_kv_values(job->cache, job->args->layer, tile->sequence->pages[page], tile->kv_head);
    const void *panels[WEFT_DOT_PANELS_MAX];
    const float *weights[TILE];
    struct weft_cpu_dot dot = {.panels = panels,
                               .vector_count = count,
                               .x = weights,
                               .col_count = weft_range_count(slots),
                               .is_continued = true,
                               .out_stride = width};

    for (uint32_t i = 0; i < count; i++) {
        weights[i] = tile->scores + (size_t)(first + i) * PIECE + (size_t)(page % PIECE_PAGES) * WEFT_PAGE_POSITIONS +
                     slots.begin;
    }
    for (uint32_t panel = 0; panel * WEFT_LANES < width; panel += dot.panel_count) {
        dot.panel_count = weft_min_u32(WEFT_DOT_PANELS_MAX, width / WEFT_LANES - panel);
        for (uint32_t i = 0; i < dot.panel_count; i++) {
            panels[i] = values + ((size_t)(panel + i) * WEFT_PAGE_POSITIONS + slots.begin) * row_size;
        }
        dot.out = tile->piece_sums + (size_t)first * width + (size_t)panel * WEFT_LANES;
        job->dot(&dot);
    }
}

static struct weft_range clip(struct weft_range range, uint32_t begin, uint32_t end)
{
    begin = range.begin > begin ? range.begin : begin;
    end = range.end < end ? range.end : end;
    return (struct weft_range){begin, end > begin ? end : begin};
}

/* One page for all queries at once where all see the whole page, else query by query: a position that a query does not
 * see may hold anything. */
static void weigh_values(const struct attention_job *job, const struct tile *tile, uint32_t page)
{
    uint32_t begin = page * WEFT_PAGE_POSITIONS;
    bool is_whole = true;

    for (uint32_t i = 0; i < tile->count; i++) {
        struct weft_range seen = clip(tile->positions[i], begin, begin + WEFT_PAGE_POSITIONS);

        is_whole = is_whole && weft_range_count(seen) == WEFT_PAGE_POSITIONS;
    }
    if (is_whole) {
        weigh_page(job, tile, 0, tile->count, page, (struct weft_range){0, WEFT_PAGE_POSITIONS});
        return;
    }
    for (uint32_t i = 0; i < tile->count; i++) {
        struct weft_range seen = clip(tile->positions[i], begin, begin + WEFT_PAGE_POSITIONS);

        if (seen.begin < seen.end) {
            weigh_page(job, tile, i, 1, page, (struct weft_range){seen.begin - begin, seen.end - begin});
        }
    }
}

static void merge_piece(const struct attention_job *job, struct tile *tile, uint32_t i, float max, float sum)
{
    uint32_t width = job->cache->padded_head_size;
    float *sums = tile->sums + (size_t)i * width;
    const float *piece_sums = tile->piece_sums + (size_t)i * width;
    float new_max;
    float a;
    float b;

    if (!tile->is_started[i]) {
        memcpy(sums, piece_sums, width * sizeof(*sums));
        tile->max[i] = max;
        tile->sum[i] = sum;
        tile->is_started[i] = true;
        return;
    }
    new_max = max > tile->max[i] ? max : tile->max[i];
    a = weft_exp(tile->max[i] - new_max);
    b = weft_exp(max - new_max);
    tile->max[i] = new_max;
    tile->sum[i] = __builtin_fmaf(tile->sum[i], a, sum * b);
    job->device->kernels.merge(sums, piece_sums, width, a, b);
}

static void attend_piece(const struct attention_job *job, struct tile *tile, uint32_t begin, uint32_t end)
{
    uint32_t page_begin = begin / WEFT_PAGE_POSITIONS;
    uint32_t page_end = weft_ceil_div(end, WEFT_PAGE_POSITIONS);
    uint32_t base = begin - begin % PIECE;
    float max[TILE];
    float sum[TILE];

    score_pages(job, tile, page_begin, page_end);
    for (uint32_t i = 0; i < tile->count; i++) {
        struct weft_range seen = clip(tile->positions[i], begin, end);

        if (seen.begin < seen.end) {
            job->device->kernels.softmax(tile->scores + (size_t)i * PIECE,
                                         (struct weft_range){seen.begin - base, seen.end - base}, job->args->scale,
                                         &max[i], &sum[i]);
        }
    }
    memset(tile->piece_sums, 0, (size_t)tile->count * job->cache->padded_head_size * sizeof(*tile->piece_sums));
    for (uint32_t page = page_begin; page < page_end; page++) {
        weigh_values(job, tile, page);
    }
    for (uint32_t i = 0; i < tile->count; i++) {
        struct weft_range seen = clip(tile->positions[i], begin, end);

        if (seen.begin < seen.end) {
            merge_piece(job, tile, i, max[i], sum[i]);
        }
    }
}

_Static_assert(TILE *(2 * WEFT_CPU_HEAD_SIZE_MAX + PIECE) <= WEFT_CPU_SCRATCH_FLOATS, "a tile fits into the scratch");

static void attend_tile(const struct attention_job *job, uint32_t worker, struct tile *tile)
{
    uint32_t width = job->cache->padded_head_size;
    uint32_t begin = tile->positions[0].begin;
    uint32_t end = tile->positions[tile->count - 1].end;

    tile->scores = weft_cpu_scratch(job->device, worker);
    tile->sums = tile->scores + TILE * PIECE;
    tile->piece_sums = tile->sums + (size_t)TILE * width;
    while (begin < end) {
        uint32_t piece_end = weft_min_u32(end, begin - begin % PIECE + PIECE);

        attend_piece(job, tile, begin, piece_end);
        begin = piece_end;
    }
    for (uint32_t i = 0; i < tile->count; i++) {
        job->device->kernels.divide(tile->sums + (size_t)i * width, job->args->heads.head_size, tile->sum[i],
                                    tile->out[i]);
    }
}

/* Of one KV head's tiles the last comes first: it sees the most positions. */
static void attention_task(void *context, uint32_t worker, uint32_t begin, uint32_t end)
{
    const struct attention_job *job = context;
    const struct weft_heads *heads = &job->args->heads;

    for (uint32_t item = begin; item < end; item++) {
        const struct weft_batch_sequence *sequence = job->batch->sequences;
        uint32_t rest = item;
        uint32_t tiles;
        struct tile tile;

        while (rest >= tile_count(job, sequence) * heads->kv_head_count) {
            rest -= tile_count(job, sequence) * heads->kv_head_count;
            sequence++;
        }
        tiles = tile_count(job, sequence);
        tile_init(job, sequence, rest / tiles, tiles - 1 - rest % tiles, &tile);
        if (tile.count > 0) {
            attend_tile(job, worker, &tile);
        }
    }
}

void weft_cpu_attention(struct weft_device *device, const struct weft_kv_cache *cache, const struct weft_batch *batch,
                        const struct weft_attention_args *args)
{
    struct weft_cpu_device *cpu = weft_cpu_device(device);
    const struct weft_heads *heads = &args->heads;
    struct attention_job job = {.device = cpu,
                                .cache = cache,
                                .batch = batch,
                                .args = args,
                                .tile_size = TILE,
                                .dot = cache->desc.dtype == WEFT_F32 ? cpu->kernels.dot_f32 : cpu->kernels.dot_bf16};

    assert(args->layer < cache->desc.layer_count && heads->kv_head_count == cache->desc.kv_head_count &&
           heads->head_size == cache->desc.head_size);
    if (heads->kv_head_count == 0) {
        return;
    }
    assert((heads->group_first + heads->head_count - 1) / heads->group_size < heads->kv_head_count);
    /* Fewer items than threads: smaller tiles read keys and values more often, but on more cores. */
    while (job.tile_size > 1 && item_count(&job) < cpu->thread_count) {
        job.tile_size /= 2;
    }
    weft_pool_run(cpu->pool, WEFT_POOL_DYNAMIC, item_count(&job), attention_task, &job);
}
