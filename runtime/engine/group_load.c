/* Opening comm and model on every rank; the leader collects everybody's last word. */
#include "engine/group_load.h"

#include <stdio.h>

#include "base/clock.h"
#include "engine/handshake.h"
#include "engine/options.h"
#include "model/seat.h"
#include "weft/log.h"

/* Between two signs of life while loading. */
enum { PROGRESS_INTERVAL_NS = 250000000 };

/* How long a rank that cannot load waits until the leader has heard why. */
enum { LAST_WORD_MS = 10000 };

/* How long the leader listens to one rank before it turns to the next. */
enum { READY_WAIT_MS = 20 };

/* State of one load, on the caller's stack. */
struct loading {
    const struct weft_group_load_args *args;
    int64_t progress_time;
    struct weft_ready ready[WEFT_RANK_COUNT_MAX]; /* leader: the last word of every rank */
    int64_t sign_ns[WEFT_RANK_COUNT_MAX];         /* leader: when it came */
};

static enum weft_status open_comm(struct loading *loading, const struct weft_model_limits *model_limits)
{
    const struct weft_engine_options *options = loading->args->options;
    struct weft_group *group = loading->args->group;
    const struct weft_plan_limits *limits = &group->limits;
    struct weft_comm_options comm_options = {.backend = options->comm,
                                             .interface = options->interface,
                                             .timeout_ms = group->timeout_ms,
                                             .leaf_count = group->leaf_count,
                                             .leaves = group->leaves,
                                             .wait = loading->args->wait,
                                             .is_traced = options->is_traced};
    struct weft_comm_device seat;

    if (weft_seat_init(group->device, &seat)) {
        comm_options.device = &seat;
    }
    comm_options.sum_count_max = weft_model_sum_count_max(group->config, model_limits);
    size_t row = (size_t)limits->vocab_size * sizeof(float);
    size_t candidates = (size_t)limits->row_count_max *
                        ((size_t)group->rank_count * limits->candidate_count_max * sizeof(struct weft_candidate) +
                         group->leaf_count * sizeof(struct weft_lse));
    comm_options.gather_size_max = row > candidates ? row : candidates;
    return weft_comm_open(group->bootstrap, &comm_options, &group->comm);
}

/* Leader: takes what rank r has said so far, waiting at most timeout_ms for the first of it. */
static enum weft_status hear_ready(struct loading *loading, uint32_t rank, uint32_t timeout_ms)
{
    struct weft_ready *ready = &loading->ready[rank];

    while (!ready->is_final) {
        enum weft_status status = weft_ready_recv(loading->args->group->bootstrap, rank, timeout_ms, ready);
        if (status == WEFT_ERR_TIMEOUT) {
            return WEFT_OK;
        }
        WEFT_TRY(status);
        loading->sign_ns[rank] = weft_clock_ns();
        timeout_ms = 0;
    }
    return WEFT_OK;
}

static void report_progress(struct loading *loading)
{
    const struct weft_engine_options *options = loading->args->options;
    uint64_t done = 0;
    uint64_t total = 0;

    for (uint32_t r = 0; r < loading->args->group->rank_count; r++) {
        /* Who has not spoken yet is taken to read as much as the leader. */
        const struct weft_ready *ready = &loading->ready[loading->ready[r].byte_total == 0 ? 0 : r];
        done += loading->ready[r].byte_count;
        total += ready->byte_total;
    }
    if (options->progress != NULL) {
        options->progress(options->callback_context, "weights", done, total);
    }
}

/* Shows a sign of life, and stops reading when the group is lost. */
static enum weft_status load_progress(void *context, uint64_t byte_count, uint64_t byte_total)
{
    struct loading *loading = context;
    struct weft_group *group = loading->args->group;
    struct weft_ready *own = &loading->ready[group->rank];
    int64_t now = weft_clock_ns();

    own->byte_count = byte_count;
    own->byte_total = byte_total;
    own->generation = group->generation;
    weft_bootstrap_phase(group->bootstrap, WEFT_PHASE_LOAD, byte_count);
    bool is_due = now - loading->progress_time >= PROGRESS_INTERVAL_NS;
    if (is_due) {
        loading->progress_time = now;
        WEFT_TRY(weft_bootstrap_check(group->bootstrap));
    }
    if (group->rank != 0) {
        return is_due ? weft_ready_send(group->bootstrap, own, group->timeout_ms) : WEFT_OK;
    }
    for (uint32_t r = 1; r < group->rank_count && is_due; r++) {
        WEFT_TRY(hear_ready(loading, r, 0));
    }
    report_progress(loading);
    return WEFT_OK;
}

static enum weft_status load(struct loading *loading)
{
    const struct weft_engine_options *options = loading->args->options;
    struct weft_group *group = loading->args->group;
    struct weft_model_options model_options = {.folder = options->model,
                                               .config = group->config,
                                               .slices = group->slices,
                                               .rank = group->rank,
                                               .rank_count = group->rank_count,
                                               .limits = weft_group_model_limits(group, options),
                                               .device = group->device,
                                               .progress = load_progress,
                                               .progress_context = loading};

    WEFT_TRY(open_comm(loading, &model_options.limits));
    model_options.stream = weft_options_are_streamed(options) ? group->comm : NULL;
    WEFT_TRY(weft_model_open(&model_options, &group->model));
    return options->is_eager ? WEFT_OK : weft_model_record(group->model, group->comm);
}

/* ---- and reports ---- */

/* One look at rank r: what it said, whether it failed, whether it has been silent for too long. */
static enum weft_status watch_rank(struct loading *loading, uint32_t rank, uint32_t timeout_ms)
{
    struct weft_group *group = loading->args->group;
    const struct weft_ready *ready = &loading->ready[rank];

    WEFT_TRY(hear_ready(loading, rank, timeout_ms));
    if (ready->is_final && ready->status != WEFT_OK) {
        weft_bootstrap_abort(group->bootstrap, rank, ready->reason);
        return ready->status;
    }
    /* The heartbeats know of CPU time and of bytes from a disk, however slow, between two messages. */
    if (!ready->is_final && weft_clock_ns() - loading->sign_ns[rank] > (int64_t)loading->args->timeout_ms * 1000000 &&
        weft_bootstrap_quiet_ms(group->bootstrap, rank) >= loading->args->timeout_ms) {
        weft_bootstrap_abort(group->bootstrap, rank, "no sign of life while loading the model");
        return WEFT_ERR_TIMEOUT;
    }
    return WEFT_OK;
}

/* Waits for the last word of every rank; a slow disk is fine as long as it shows progress. */
static enum weft_status collect_ready(struct loading *loading)
{
    struct weft_group *group = loading->args->group;
    uint32_t final_count = 0;

    for (uint32_t r = 1; r < group->rank_count; r++) {
        loading->sign_ns[r] = weft_clock_ns();
    }
    while (final_count + 1 < group->rank_count) {
        final_count = 0;
        for (uint32_t r = 1; r < group->rank_count; r++) {
            WEFT_TRY(watch_rank(loading, r, READY_WAIT_MS));
            final_count += loading->ready[r].is_final;
        }
        report_progress(loading);
    }
    return WEFT_OK;
}

static enum weft_status report_ready(struct loading *loading, enum weft_status status)
{
    struct weft_group *group = loading->args->group;
    struct weft_ready *own = &loading->ready[group->rank];

    own->generation = group->generation;
    own->is_final = true;
    own->status = status;
    if (status != WEFT_OK) {
        snprintf(own->reason, sizeof(own->reason), "%s", weft_log_last_error());
    }
    enum weft_status sent = weft_ready_send(group->bootstrap, own, group->timeout_ms);
    bool is_own_process = weft_bootstrap_quiet_ms(group->bootstrap, group->rank) != UINT32_MAX; /* heartbeats run */
    if (status == WEFT_OK || sent != WEFT_OK || !is_own_process) {
        return status != WEFT_OK ? status : sent;
    }
    /* The leader may be reading: mpirun, which kills it when this process ends, must not come before its report. */
    const void *data;
    size_t size;
    if (weft_bootstrap_recv(group->bootstrap, 0, &data, &size, LAST_WORD_MS) != WEFT_ERR_PEER) {
        weft_log(WEFT_LOG_DEBUG, "engine/group", "the leader has not answered this rank's last word");
    }
    weft_log_keep_error("%s", own->reason);
    return status;
}

/* Whoever fails before the collective opening of comm, or while weights are streamed, must tell at once: others are
 * waiting there. */
enum weft_status weft_group_load(const struct weft_group_load_args *args)
{
    struct loading loading = {.args = args};
    struct weft_group *group = args->group;
    enum weft_status status = load(&loading);
    bool is_awaited = group->comm == NULL || weft_options_are_streamed(args->options);

    if (status != WEFT_OK && is_awaited) {
        (void)weft_group_fail(group, status);
        return status;
    }
    if (group->rank != 0) {
        return report_ready(&loading, status);
    }
    if (status != WEFT_OK) {
        (void)weft_group_fail(group, status);
        return status;
    }
    return collect_ready(&loading);
}
