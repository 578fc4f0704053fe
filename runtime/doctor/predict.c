/* Measuring and computing. Contract in predict.h. */
#include "doctor/predict.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "doctor/findings.h"
#include "engine/speed.h"
#include "model/quantise.h"
#include "weft/log.h"
#include "weft/quant.h"

enum {
    SUM_COUNT = 200,
    SUM_WARM = 20,
    SPEED_MS = 200, /* long enough for ranks that take turns on cores */
};
/* Less than this per rank stays in its last cache, which the probe does not. */
static const double SIZE_WORTH = 64 << 20;
/* The probe takes 200 MB of it; nobody shall be killed for a prediction. */
static const uint64_t MEMORY_WORTH = (uint64_t)1 << 30;

/* Bytes of one weight of a matrix kept as `dtype`, the scales of its blocks included. */
static double weight_size(const struct weft_model_summary *summary, const char *dtype)
{
    const struct {
        const char *name;
        double size;
    } sizes[] = {{"f32", 4},
                 {"f8_e4m3", summary->scale_cols > 0 ? 1 + 4.0 / summary->scale_cols : 1},
                 {"q8_0", 34.0 / WEFT_QUANT_BLOCK},
                 {"q4_0", 18.0 / WEFT_QUANT_BLOCK}};

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        if (strcmp(dtype, sizes[i].name) == 0) {
            return sizes[i].size;
        }
    }
    return 2; /* f16, bf16 */
}

static bool is_f8(const struct weft_model_summary *summary)
{
    return strcmp(summary->weight_dtype, weft_dtype_name(WEFT_F8_E4M3)) == 0;
}

double weft_doctor_token_size(const struct weft_model_summary *summary)
{
    double heads = (double)summary->head_count * summary->head_size;
    double kv_heads = (double)summary->kv_head_count * summary->head_size;
    double layer = summary->width * (2 * heads + 2 * kv_heads + 3.0 * summary->ffn_width);
    const char *dtype = summary->weight_dtype;
    /* FP8 checkpoints leave embedding and head as they were. */
    const char *head_dtype = strcmp(dtype, "q4_0") == 0 ? "q8_0" : is_f8(summary) ? "bf16" : dtype;

    return summary->layer_count * layer * weight_size(summary, dtype) +
           (double)summary->width * summary->vocab_size * weight_size(summary, head_dtype);
}

void weft_doctor_predict(const struct weft_model_summary *summary, const struct weft_rank_summary *ranks,
                         const struct weft_doctor_rates *rates, struct weft_doctor_prediction *prediction_out)
{
    struct weft_doctor_prediction prediction = {.is_known = rates->is_measured != 0};

    if (prediction.is_known) {
        prediction.weight_size = weft_doctor_token_size(summary);
        prediction.alone_ms = prediction.weight_size / rates->alone_speed * 1e3;
        for (uint32_t r = 0; r < summary->rank_count; r++) {
            double share = (double)(ranks[r].leaf_end - ranks[r].leaf_begin) / summary->leaf_count;
            double read_ms = prediction.weight_size * share / rates->speeds[r] * 1e3;

            if (read_ms > prediction.read_ms) {
                prediction.read_ms = read_ms;
                prediction.slowest_rank = r;
            }
        }
        prediction.exchange_count = summary->rank_count > 1 ? 2 * summary->layer_count + 2 : 0;
        prediction.exchange_ms = prediction.exchange_count * rates->sum_us * 1e-3;
        prediction.alone_tokens_per_s = 1e3 / prediction.alone_ms;
        prediction.tokens_per_s = 1e3 / (prediction.read_ms + prediction.exchange_ms);
    }
    *prediction_out = prediction;
}

/* ---- measuring ---- */

/* What rank 0 tells. */
struct plan {
    uint32_t is_wanted;
    uint32_t width;
    uint32_t leaf_count;
    struct weft_speed_weights weights;
    uint32_t alone_thread_count;
    uint32_t thread_counts[WEFT_LEAF_COUNT_MAX];
    uint32_t waits[WEFT_LEAF_COUNT_MAX]; /* enum weft_wait_policy */
    struct weft_range leaves[WEFT_LEAF_COUNT_MAX];
};

/* As rank 0 would be dealt cores if there were no other rank. */
static uint32_t threads_alone(const struct weft_doctor_rates_args *args)
{
    struct weft_member alone = args->facts[0].member;
    uint32_t count = 1;
    enum weft_wait_policy wait;

    alone.machine = args->facts[0].machine;
    alone.host_id = args->facts[0].host_id;
    alone.thread_count = args->facts[0].thread_count;
    weft_deal_threads(&alone, NULL, 1, &count, &wait);
    return count;
}

static void fill_plan(const struct weft_doctor_rates_args *args, struct plan *plan)
{
    struct weft_member members[WEFT_LEAF_COUNT_MAX];
    enum weft_wait_policy waits[WEFT_LEAF_COUNT_MAX];
    enum weft_quantise quantise = WEFT_QUANTISE_NONE;

    if (args->summary == NULL || weft_doctor_token_size(args->summary) < SIZE_WORTH * args->rank_count) {
        return;
    }
    plan->is_wanted = 1;
    plan->width = args->summary->width;
    plan->leaf_count = args->summary->leaf_count;
    (void)weft_quantise_parse(args->engine->quantize, &quantise); /* what is none was refused with the model */
    plan->weights =
        weft_speed_weights(quantise, is_f8(args->summary) ? WEFT_F8_E4M3 : WEFT_BF16, args->summary->scale_cols);
    for (uint32_t r = 0; r < args->rank_count; r++) {
        members[r] = args->facts[r].member;
        members[r].machine = args->facts[r].machine;
        members[r].host_id = args->facts[r].host_id;
        members[r].thread_count = args->facts[r].thread_count;
        plan->leaves[r] = (struct weft_range){args->ranks[r].leaf_begin, args->ranks[r].leaf_end};
        plan->is_wanted = plan->is_wanted && args->facts[r].member.gpu_count == 0 &&
                          args->facts[r].machine.memory_available >
                              MEMORY_WORTH * weft_doctor_host_ranks(args->facts, args->rank_count, r);
    }
    weft_deal_threads(members, NULL, args->rank_count, plan->thread_counts, waits);
    for (uint32_t r = 0; r < args->rank_count; r++) {
        plan->waits[r] = (uint32_t)waits[r];
    }
    plan->alone_thread_count = threads_alone(args);
}

static enum weft_status share_plan(const struct weft_doctor_rates_args *args, struct plan *plan)
{
    struct plan *all = calloc(args->rank_count, sizeof(*all));
    enum weft_status status = all == NULL ? WEFT_ERR_MEMORY : WEFT_OK;

    memset(plan, 0, sizeof(*plan));
    if (weft_bootstrap_rank(args->bootstrap) == 0) {
        fill_plan(args, plan);
    }
    if (status == WEFT_OK) {
        status = weft_bootstrap_all_gather(args->bootstrap, plan, sizeof(*plan), all, args->timeout_ms);
    }
    if (status == WEFT_OK) {
        *plan = all[0];
    }
    free(all);
    return status;
}

/* One measurement of weights passing through CPUs. */
struct speed_args {
    struct weft_comm *comm;
    uint32_t thread_count;
    enum weft_wait_policy wait;
    const struct weft_speed_weights *weights;
    bool is_counted; /* this rank is among them */
};

/* Passes of about SPEED_MS together, begun by all at the same time. */
static enum weft_status measure_speed(const struct speed_args *args, double *bytes_per_second_out)
{
    const struct weft_device_options options = {.kind = "cpu", .thread_count = args->thread_count, .wait = args->wait};
    struct weft_device *device = NULL;
    struct weft_speed_probe *probe = NULL;
    double total = 0, seconds = 0;
    uint32_t passes = 0;
    enum weft_status status = args->is_counted ? weft_device_open(&options, &device) : WEFT_OK;

    if (status == WEFT_OK && args->is_counted) {
        status = weft_speed_probe_open(device, args->weights, &probe);
    }
    if (status == WEFT_OK && args->is_counted) {
        status = weft_speed_probe_run(probe, &seconds); /* pages and clocks warm up */
    }
    if (status == WEFT_OK) {
        status = weft_comm_barrier(args->comm);
    }
    while (status == WEFT_OK && args->is_counted && total * 1e3 < SPEED_MS) {
        status = weft_speed_probe_run(probe, &seconds);
        total += seconds;
        passes++;
    }
    if (status == WEFT_OK && args->is_counted) {
        *bytes_per_second_out = passes * weft_speed_probe_size(probe) / total;
    }
    weft_speed_probe_close(&probe);
    weft_device_close(&device);
    return status == WEFT_OK ? weft_comm_barrier(args->comm) : status;
}

static enum weft_status measure_sum(struct weft_comm *comm, const struct plan *plan, double *sum_us_out)
{
    float *out = calloc(plan->width, sizeof(*out));
    int64_t begin = 0, now = 0;
    uint32_t count = 0;
    enum weft_status status = out == NULL ? WEFT_ERR_MEMORY : WEFT_OK;

    for (uint32_t i = 0; status == WEFT_OK && i < SUM_WARM + SUM_COUNT; i++) {
        status = weft_comm_tree_sum(comm, weft_comm_sum_buffer(comm, plan->width), plan->width, out);
        now = weft_clock_ns();
        begin = i + 1 == SUM_WARM ? now : begin;
        count += i >= SUM_WARM;
    }
    free(out);
    *sum_us_out = count > 0 ? (double)(now - begin) / 1e3 / count : 0;
    return status;
}

static enum weft_status measure(const struct weft_doctor_rates_args *args, struct weft_comm *comm,
                                const struct plan *plan, struct weft_doctor_rates *rates)
{
    uint32_t rank = weft_bootstrap_rank(args->bootstrap);
    const struct speed_args alone = {.comm = comm,
                                     .thread_count = plan->alone_thread_count,
                                     .wait = WEFT_WAIT_SPIN,
                                     .weights = &plan->weights,
                                     .is_counted = rank == 0};
    const struct speed_args together = {.comm = comm,
                                        .thread_count = plan->thread_counts[rank],
                                        .wait = (enum weft_wait_policy)plan->waits[rank],
                                        .weights = &plan->weights,
                                        .is_counted = true};
    size_t sizes[WEFT_LEAF_COUNT_MAX];
    double own = 0;

    WEFT_TRY(measure_speed(&alone, &rates->alone_speed));
    WEFT_TRY(measure_speed(&together, &own));
    if (args->rank_count > 1) {
        WEFT_TRY(measure_sum(comm, plan, &rates->sum_us));
    }
    for (uint32_t r = 0; r < args->rank_count; r++) {
        sizes[r] = sizeof(own);
    }
    return weft_comm_all_gather(comm, &own, sizes, rates->speeds);
}

enum weft_status weft_doctor_rates_measure(const struct weft_doctor_rates_args *args,
                                           struct weft_doctor_rates *rates_out)
{
    struct weft_doctor_rates rates = {.is_measured = 0};
    struct weft_comm *comm = NULL;
    struct plan plan;
    enum weft_status status;

    WEFT_TRY(share_plan(args, &plan));
    if (!plan.is_wanted) {
        *rates_out = rates;
        return WEFT_OK;
    }
    const struct weft_comm_options options = {
        .backend = args->engine->comm,
        .interface = args->engine->interface,
        .timeout_ms = args->timeout_ms,
        .leaf_count = plan.leaf_count,
        .leaves = plan.leaves,
        .sum_count_max = plan.width,
        .gather_size_max = sizeof(rates.speeds),
        .wait = (enum weft_wait_policy)plan.waits[weft_bootstrap_rank(args->bootstrap)],
    };
    WEFT_TRY(weft_comm_open(args->bootstrap, &options, &comm));
    status = measure(args, comm, &plan, &rates);
    weft_comm_close(&comm);
    if (status == WEFT_OK) {
        rates.is_measured = 1;
        rates.alone_thread_count = plan.alone_thread_count;
        memcpy(rates.thread_counts, plan.thread_counts, sizeof(rates.thread_counts));
        *rates_out = rates;
    }
    return status;
}
