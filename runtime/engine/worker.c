/* One step on one rank: forward, raw rows, penalties, candidates, whole rows. */
#include "engine/worker.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "weft/log.h"

struct weft_worker {
    struct weft_worker_options options;
    struct weft_group *group; /* options.group */
    struct weft_arena arena;
    struct weft_plan *plan; /* owned */
    uint32_t width;         /* vocabulary rows of this rank */
    uint32_t width_first;
    struct weft_range vocab_leaves[WEFT_LEAF_COUNT_MAX]; /* of this rank, relative to its slice */

    uint64_t step;
    uint64_t digest;
    float *logits;      /* device memory of the last forward, [row_count, width] */
    uint32_t row_count; /* of the last forward */
    uint32_t candidate_count;

    uint32_t *logit_rows;           /* [row_count_max] */
    float *inv_temperatures;        /* [row_count_max] */
    struct weft_penalty *penalties; /* of one row */
    char *block;                    /* own candidates and sums, as they travel */
    char *blocks;                   /* everybody's */
    float *own_row;                 /* [width] host */
    float *raw_row;                 /* [vocab_size] */
    float *rows;                    /* leader [row_count_max][vocab_size], else one row that is overwritten */
};

/* A rank's block: [row_count][candidate_count] candidates, then [row_count][its leaves] partial sums. */
static size_t block_size(const struct weft_worker *worker, uint32_t rank, uint32_t row_count, uint32_t candidate_count)
{
    return (size_t)row_count * (candidate_count * sizeof(struct weft_candidate) +
                                weft_range_count(worker->group->leaves[rank]) * sizeof(struct weft_lse));
}

static void init_vocab(struct weft_worker *worker)
{
    const struct weft_group *group = worker->group;
    const struct weft_slice *slice = &group->slices[group->rank];

    worker->width = weft_range_count(slice->vocab);
    worker->width_first = slice->vocab.begin;
    for (uint32_t i = 0; i < weft_range_count(slice->leaves); i++) {
        struct weft_slice leaf;
        weft_slice_init(group->config, group->leaf_count,
                        (struct weft_range){slice->leaves.begin + i, slice->leaves.begin + i + 1}, &leaf);
        worker->vocab_leaves[i] =
            (struct weft_range){leaf.vocab.begin - slice->vocab.begin, leaf.vocab.end - slice->vocab.begin};
    }
}

static enum weft_status worker_alloc(struct weft_worker *worker)
{
    const struct weft_group *group = worker->group;
    const struct weft_plan_limits *limits = &group->limits;
    struct weft_arena *arena = &worker->arena;
    size_t blocks_size = 0;

    for (uint32_t r = 0; r < group->rank_count; r++) {
        blocks_size += block_size(worker, r, limits->row_count_max, limits->candidate_count_max);
    }
    worker->logit_rows = weft_arena_alloc(arena, limits->row_count_max, sizeof(*worker->logit_rows));
    worker->inv_temperatures = weft_arena_alloc(arena, limits->row_count_max, sizeof(*worker->inv_temperatures));
    worker->penalties = weft_arena_alloc(arena, worker->width, sizeof(*worker->penalties));
    worker->block =
        weft_arena_alloc(arena, block_size(worker, group->rank, limits->row_count_max, limits->candidate_count_max), 1);
    worker->blocks = weft_arena_alloc(arena, blocks_size, 1);
    worker->own_row = weft_arena_alloc(arena, worker->width, sizeof(float));
    worker->raw_row = weft_arena_alloc(arena, limits->vocab_size, sizeof(float));
    worker->rows =
        weft_arena_alloc(arena, group->rank == 0 ? limits->row_count_max : 1, limits->vocab_size * sizeof(float));
    if (worker->logit_rows == NULL || worker->inv_temperatures == NULL || worker->penalties == NULL ||
        worker->block == NULL || worker->blocks == NULL || worker->own_row == NULL || worker->raw_row == NULL ||
        worker->rows == NULL) {
        return WEFT_ERR_MEMORY;
    }
    return WEFT_OK;
}

enum weft_status weft_worker_open(const struct weft_worker_options *options, struct weft_worker **out)
{
    struct weft_worker *worker = calloc(1, sizeof(*worker));

    if (worker == NULL) {
        weft_log(WEFT_LOG_ERROR, "engine/worker", "out of memory");
        return WEFT_ERR_MEMORY;
    }
    worker->options = *options;
    worker->group = options->group;
    worker->step = 1;
    worker->digest = options->group->generation;
    init_vocab(worker);
    enum weft_status status = worker_alloc(worker);
    if (status == WEFT_OK) {
        status = weft_plan_open(&options->group->limits, &worker->plan);
    }
    if (status != WEFT_OK) {
        weft_worker_close(&worker);
        return status;
    }
    *out = worker;
    return WEFT_OK;
}

void weft_worker_close(struct weft_worker **worker)
{
    if (*worker != NULL) {
        weft_plan_close(&(*worker)->plan);
        weft_arena_fini(&(*worker)->arena);
        free(*worker);
        *worker = NULL;
    }
}

uint64_t weft_worker_step(const struct weft_worker *worker)
{
    return worker->step;
}

uint64_t weft_worker_digest(const struct weft_worker *worker)
{
    return worker->digest;
}

/* out[vocab_size] <- row `row` of the logits, from all ranks. */
static enum weft_status gather_row(struct weft_worker *worker, uint32_t row, float *out)
{
    const struct weft_group *group = worker->group;
    size_t sizes[WEFT_RANK_COUNT_MAX];

    for (uint32_t r = 0; r < group->rank_count; r++) {
        sizes[r] = weft_range_count(group->slices[r].vocab) * sizeof(float);
    }
    WEFT_TRY(weft_device_read(group->device, worker->own_row, worker->logits + (size_t)row * worker->width,
                              worker->width * sizeof(float)));
    return weft_comm_all_gather_host(group->comm, worker->own_row, sizes, out);
}

/* Where whole row `row` is kept: only the leader keeps all of them. */
static float *row_room(const struct weft_worker *worker, uint32_t row)
{
    return worker->rows + (worker->group->rank == 0 ? (size_t)row * worker->group->limits.vocab_size : 0);
}

static enum weft_status hand_over_raw(struct weft_worker *worker, const struct weft_step *step)
{
    for (uint32_t i = 0; i < step->row_count; i++) {
        if (step->rows[i].has_raw) {
            WEFT_TRY(gather_row(worker, i, worker->raw_row));
            if (worker->options.raw_row != NULL) {
                worker->options.raw_row(worker->options.raw_row_context, i, worker->raw_row);
            }
        }
    }
    return WEFT_OK;
}

/* This rank's part of the row's penalties; ids ascend and each has at most one. */
static void penalize_row(struct weft_worker *worker, const struct weft_step_row *row, uint32_t row_index)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < row->penalty_count; i++) {
        uint32_t id = row->penalty_ids[i];
        if (id >= worker->width_first && id - worker->width_first < worker->width) {
            worker->penalties[count++] = (struct weft_penalty){.row = row_index,
                                                               .column = id - worker->width_first,
                                                               .repetition = row->repetition,
                                                               .subtract = row->penalty_subtracts[i]};
        }
    }
    if (count > 0) {
        weft_device_penalize(worker->group->device, worker->logits, worker->width, worker->penalties, count);
    }
}

static enum weft_status hand_over_candidates(struct weft_worker *worker, const struct weft_step *step)
{
    const struct weft_group *group = worker->group;
    size_t sizes[WEFT_RANK_COUNT_MAX];
    size_t total = 0;
    struct weft_candidate *best = (struct weft_candidate *)worker->block;

    for (uint32_t i = 0; i < step->row_count; i++) {
        worker->inv_temperatures[i] = step->rows[i].inv_temperature;
    }
    for (uint32_t r = 0; r < group->rank_count; r++) {
        sizes[r] = block_size(worker, r, step->row_count, step->candidate_count);
        total += sizes[r];
    }
    struct weft_candidates_args args = {
        .logits = worker->logits,
        .row_count = step->row_count,
        .width = worker->width,
        .token_first = (int32_t)worker->width_first,
        .leaves = worker->vocab_leaves,
        .leaf_count = weft_range_count(group->leaves[group->rank]),
        .count = step->candidate_count,
        .inv_temperatures = worker->inv_temperatures,
        .best_out = best,
        .lse_out = (struct weft_lse *)(best + (size_t)step->row_count * step->candidate_count)};
    weft_device_candidates(group->device, &args);
    WEFT_TRY(weft_device_sync(group->device));
    WEFT_TRY(weft_comm_all_gather_host(group->comm, worker->block, sizes, worker->blocks));
    worker->digest = weft_digest_mix(worker->digest, worker->blocks, total);
    return WEFT_OK;
}

static enum weft_status run_forward(struct weft_worker *worker, const struct weft_step *step)
{
    const struct weft_group *group = worker->group;

    for (uint32_t i = 0; i < step->row_count; i++) {
        worker->logit_rows[i] = step->rows[i].token_row;
    }
    struct weft_forward_args args = {.comm = group->comm,
                                     .batch = {.token_count = step->token_count,
                                               .sequence_count = step->sequence_count,
                                               .sequences = step->sequences},
                                     .token_ids = step->token_ids,
                                     .logit_rows = worker->logit_rows,
                                     .logit_row_count = step->row_count};
    worker->row_count = 0;
    WEFT_TRY(weft_model_forward(group->model, &args, &worker->logits));
    worker->row_count = step->row_count;
    worker->candidate_count = step->candidate_count;
    if (step->row_count == 0) {
        return WEFT_OK;
    }
    WEFT_TRY(hand_over_raw(worker, step));
    for (uint32_t i = 0; i < step->row_count; i++) {
        penalize_row(worker, &step->rows[i], i);
    }
    WEFT_TRY(hand_over_candidates(worker, step));
    for (uint32_t i = 0; i < step->row_count; i++) {
        if (step->rows[i].has_full) {
            WEFT_TRY(gather_row(worker, i, row_room(worker, i)));
        }
    }
    return WEFT_OK;
}

enum weft_status weft_worker_execute(struct weft_worker *worker, const void *data, size_t size, bool *is_end_out)
{
    const struct weft_plan_expected expected = {.generation = worker->group->generation,
                                                .number = worker->step,
                                                .digest = worker->digest,
                                                .row_count = worker->row_count};
    const struct weft_step *step;

    WEFT_TRY(weft_plan_parse(worker->plan, data, size, &expected, &step));
    weft_bootstrap_phase(worker->group->bootstrap, WEFT_PHASE_STEP, worker->step);
    worker->digest = weft_digest_mix(worker->digest, data, size);
    if (step->kind == WEFT_STEP_FORWARD) {
        WEFT_TRY(run_forward(worker, step));
    } else if (step->kind == WEFT_STEP_GATHER) {
        for (uint32_t i = 0; i < step->gather_count; i++) {
            WEFT_TRY(gather_row(worker, step->gather_rows[i], row_room(worker, step->gather_rows[i])));
        }
    }
    weft_bootstrap_phase(worker->group->bootstrap, WEFT_PHASE_IDLE, worker->step);
    worker->step++;
    *is_end_out = step->kind == WEFT_STEP_END;
    return WEFT_OK;
}

enum weft_status weft_worker_run(struct weft_worker *worker)
{
    bool is_end = false;

    while (!is_end) {
        const void *data;
        size_t size;
        enum weft_status status = weft_bootstrap_recv(worker->group->bootstrap, 0, &data, &size, UINT32_MAX);
        if (status == WEFT_OK) {
            status = weft_worker_execute(worker, data, size, &is_end);
        }
        if (status != WEFT_OK) {
            (void)weft_group_fail(worker->group, status);
            return weft_bootstrap_is_ended(worker->group->bootstrap) ? WEFT_OK : status;
        }
    }
    return WEFT_OK;
}

/* ---- results ---- */

static const char *block_of(const struct weft_worker *worker, uint32_t rank)
{
    const char *block = worker->blocks;

    for (uint32_t r = 0; r < rank; r++) {
        block += block_size(worker, r, worker->row_count, worker->candidate_count);
    }
    return block;
}

const struct weft_candidate *weft_worker_candidates(const struct weft_worker *worker, uint32_t rank, uint32_t row)
{
    assert(row < worker->row_count);
    return (const struct weft_candidate *)block_of(worker, rank) + (size_t)row * worker->candidate_count;
}

void weft_worker_lse(const struct weft_worker *worker, uint32_t row, struct weft_lse *lse_out)
{
    const struct weft_group *group = worker->group;

    assert(row < worker->row_count);
    for (uint32_t r = 0; r < group->rank_count; r++) {
        uint32_t count = weft_range_count(group->leaves[r]);
        const struct weft_candidate *candidates = (const struct weft_candidate *)block_of(worker, r);
        const struct weft_lse *lse =
            (const struct weft_lse *)(candidates + (size_t)worker->row_count * worker->candidate_count);
        memcpy(lse_out + group->leaves[r].begin, lse + (size_t)row * count, count * sizeof(*lse));
    }
}

const float *weft_worker_row(const struct weft_worker *worker, uint32_t row)
{
    return row_room(worker, row);
}
