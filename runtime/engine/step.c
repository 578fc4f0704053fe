/* Planning, sending, executing, sampling. Everything is allocated in open. */
#include "engine/step.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "engine/plan.h"
#include "engine/sampler.h"
#include "engine/worker.h"
#include "weft/log.h"

struct weft_stepper {
    struct weft_group *group;
    struct weft_worker *worker; /* owned: the leader's own part */
    struct weft_plan *plan;     /* owned: packing; the worker has its own for parsing */
    struct weft_arena arena;
    int32_t *token_ids;                        /* [token_count_max] */
    struct weft_batch_sequence *sequences;     /* [sequence_count_max] */
    struct weft_step_row *rows;                /* [row_count_max] */
    uint32_t *row_entries;                     /* [row_count_max] entry that wants the row */
    uint32_t *gather_rows;                     /* [row_count_max] */
    const struct weft_schedule_entry *entries; /* of the running step */
    struct weft_candidate *merged;             /* [rank_count * candidate_count_max] */
    struct weft_candidate *sorted;             /* [vocab_size] */
};

static struct weft_job *job_of(const struct weft_schedule_entry *entry)
{
    return (struct weft_job *)entry->sequence;
}

/* The digest is over the model's own logits, in the order of sampled positions. */
static void take_raw_row(void *context, uint32_t row_index, const float *logits)
{
    struct weft_stepper *stepper = context;
    struct weft_job *job = job_of(&stepper->entries[stepper->row_entries[row_index]]);

    EVP_DigestUpdate(job->digest, logits, stepper->group->limits.vocab_size * sizeof(float));
}

enum weft_status weft_stepper_open(struct weft_group *group, struct weft_stepper **out)
{
    const struct weft_plan_limits *limits = &group->limits;
    struct weft_stepper *stepper = calloc(1, sizeof(*stepper));

    if (stepper == NULL) {
        weft_log(WEFT_LOG_ERROR, "engine/step", "out of memory");
        return WEFT_ERR_MEMORY;
    }
    stepper->group = group;
    struct weft_arena *arena = &stepper->arena;
    stepper->token_ids = weft_arena_alloc(arena, limits->token_count_max, sizeof(*stepper->token_ids));
    stepper->sequences = weft_arena_alloc(arena, limits->sequence_count_max, sizeof(*stepper->sequences));
    stepper->rows = weft_arena_alloc(arena, limits->row_count_max, sizeof(*stepper->rows));
    stepper->row_entries = weft_arena_alloc(arena, limits->row_count_max, sizeof(*stepper->row_entries));
    stepper->gather_rows = weft_arena_alloc(arena, limits->row_count_max, sizeof(*stepper->gather_rows));
    stepper->merged =
        weft_arena_alloc(arena, (size_t)group->rank_count * limits->candidate_count_max, sizeof(*stepper->merged));
    stepper->sorted = weft_arena_alloc(arena, limits->vocab_size, sizeof(*stepper->sorted));
    enum weft_status status = WEFT_ERR_MEMORY;
    if (stepper->token_ids != NULL && stepper->sequences != NULL && stepper->rows != NULL &&
        stepper->row_entries != NULL && stepper->gather_rows != NULL && stepper->merged != NULL &&
        stepper->sorted != NULL) {
        status = weft_plan_open(limits, &stepper->plan);
    }
    if (status == WEFT_OK) {
        const struct weft_worker_options options = {group, take_raw_row, stepper};
        status = weft_worker_open(&options, &stepper->worker);
    }
    if (status != WEFT_OK) {
        weft_stepper_close(&stepper);
        return status;
    }
    *out = stepper;
    return WEFT_OK;
}

void weft_stepper_close(struct weft_stepper **stepper)
{
    if (*stepper != NULL) {
        weft_worker_close(&(*stepper)->worker);
        weft_plan_close(&(*stepper)->plan);
        weft_arena_fini(&(*stepper)->arena);
        free(*stepper);
        *stepper = NULL;
    }
}

/* Packs, sends to all, and runs the leader's own part of the same bytes. */
static enum weft_status execute(struct weft_stepper *stepper, struct weft_step *step)
{
    struct weft_group *group = stepper->group;
    const void *data;
    size_t size;
    bool is_end;

    step->generation = group->generation;
    step->number = weft_worker_step(stepper->worker);
    step->digest = weft_worker_digest(stepper->worker);
    weft_plan_pack(stepper->plan, step, &data, &size);
    for (uint32_t r = 1; r < group->rank_count; r++) {
        WEFT_TRY(weft_bootstrap_send(group->bootstrap, r, data, size, group->timeout_ms));
    }
    return weft_worker_execute(stepper->worker, data, size, &is_end);
}

static void fill_entry(struct weft_stepper *stepper, struct weft_step *step, uint32_t index)
{
    const struct weft_schedule_entry *entry = &stepper->entries[index];
    const struct weft_sequence *sequence = entry->sequence;
    const struct weft_job *job = job_of(entry);
    uint32_t candidate_count_max = stepper->group->limits.candidate_count_max;

    memcpy(stepper->token_ids + step->token_count, sequence->token_ids + sequence->cached_count,
           entry->token_count * sizeof(*stepper->token_ids));
    stepper->sequences[index] =
        (struct weft_batch_sequence){.token_begin = step->token_count,
                                     .token_count = entry->token_count,
                                     .position = sequence->cached_count,
                                     .page_count = weft_pages_for(sequence->cached_count + entry->token_count),
                                     .pages = sequence->pages};
    step->token_count += entry->token_count;
    if (entry->is_sampled) {
        uint32_t candidates = weft_job_candidate_count(job, candidate_count_max);
        step->candidate_count = candidates > step->candidate_count ? candidates : step->candidate_count;
        weft_job_fill_row(job, step->token_count - 1, candidate_count_max, &stepper->rows[step->row_count]);
        stepper->row_entries[step->row_count++] = index;
    }
}

/* Row `row` from candidates, or from the whole row when it is there. */
static enum weft_sample sample_row(struct weft_stepper *stepper, uint32_t row, uint32_t candidate_count, bool is_whole,
                                   int32_t *token_out)
{
    const struct weft_group *group = stepper->group;
    const struct weft_schedule_entry *entry = &stepper->entries[stepper->row_entries[row]];
    const struct weft_sampling *sampling = &job_of(entry)->sampling;
    const struct weft_candidate *lists[WEFT_RANK_COUNT_MAX];
    uint32_t widths[WEFT_RANK_COUNT_MAX];
    struct weft_lse lse[WEFT_LEAF_COUNT_MAX];
    struct weft_ranking ranking;

    if (is_whole) {
        weft_ranking_from_row(weft_worker_row(stepper->worker, row), group->limits.vocab_size, stepper->sorted,
                              &ranking);
    } else {
        for (uint32_t r = 0; r < group->rank_count; r++) {
            lists[r] = weft_worker_candidates(stepper->worker, r, row);
            widths[r] = weft_range_count(group->slices[r].vocab);
        }
        weft_ranking_merge(lists, widths, group->rank_count, candidate_count, stepper->merged, &ranking);
    }
    weft_worker_lse(stepper->worker, row, lse);
    float total = weft_lse_total(lse, group->leaf_count, weft_sampling_inv_temperature(sampling));
    return weft_sample(sampling, &ranking, total, entry->sequence->token_count, token_out);
}

static void take_sample(struct weft_step_result *result, enum weft_sample sample, int32_t token)
{
    result->has_token = sample == WEFT_SAMPLE_DONE;
    result->is_broken = sample == WEFT_SAMPLE_NOT_FINITE;
    result->token = token;
}

/* The rows that candidates could not decide, whole. */
static enum weft_status sample_gathered(struct weft_stepper *stepper, uint32_t gather_count,
                                        struct weft_step_result *results)
{
    struct weft_step step = {
        .kind = WEFT_STEP_GATHER, .gather_rows = stepper->gather_rows, .gather_count = gather_count};

    WEFT_TRY(execute(stepper, &step));
    for (uint32_t i = 0; i < gather_count; i++) {
        uint32_t row = stepper->gather_rows[i];
        int32_t token = -1;
        enum weft_sample sample = sample_row(stepper, row, 0, true, &token);
        assert(sample != WEFT_SAMPLE_MORE);
        take_sample(&results[stepper->row_entries[row]], sample, token);
    }
    return WEFT_OK;
}

enum weft_status weft_stepper_run(struct weft_stepper *stepper, const struct weft_schedule_entry *entries,
                                  uint32_t count, struct weft_step_result *results_out)
{
    struct weft_step step = {.kind = WEFT_STEP_FORWARD,
                             .token_ids = stepper->token_ids,
                             .sequences = stepper->sequences,
                             .sequence_count = count,
                             .rows = stepper->rows};
    uint32_t gather_count = 0;

    stepper->entries = entries;
    for (uint32_t i = 0; i < count; i++) {
        results_out[i] = (struct weft_step_result){0};
        fill_entry(stepper, &step, i);
    }
    WEFT_TRY(execute(stepper, &step));
    for (uint32_t row = 0; row < step.row_count; row++) {
        uint32_t index = stepper->row_entries[row];
        struct weft_job *job = job_of(&entries[index]);
        bool is_whole = stepper->rows[row].has_full;
        int32_t token = -1;
        enum weft_sample sample = sample_row(stepper, row, step.candidate_count, false, &token);
        job->is_row_wanted = sample == WEFT_SAMPLE_MORE; /* the next step will likely need it again */
        if (sample == WEFT_SAMPLE_MORE && is_whole) {
            sample = sample_row(stepper, row, 0, true, &token);
        }
        if (sample == WEFT_SAMPLE_MORE) {
            stepper->gather_rows[gather_count++] = row;
        } else {
            take_sample(&results_out[index], sample, token);
        }
    }
    return gather_count == 0 ? WEFT_OK : sample_gathered(stepper, gather_count, results_out);
}

enum weft_status weft_stepper_end(struct weft_stepper *stepper)
{
    struct weft_step step = {.kind = WEFT_STEP_END};

    return execute(stepper, &step);
}
