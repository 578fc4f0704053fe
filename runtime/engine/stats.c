/* Counters and histograms of the controller. */
#include "engine/stats.h"

#define NS_PER_MS 1e6

static const double bounds_ms[WEFT_HISTOGRAM_BOUND_COUNT] = {0.5, 1,   2.5,  5,    10,   25,    50,    100,   250,
                                                             500, 1e3, 25e2, 50e2, 10e3, 250e2, 500e2, 100e3, 250e3};

double weft_histogram_bound_ms(uint32_t index)
{
    return bounds_ms[index];
}

/* One writer: no read-modify-write needed. */
static void add(_Atomic uint64_t *counter, uint64_t amount)
{
    uint64_t value = atomic_load_explicit(counter, memory_order_relaxed);

    atomic_store_explicit(counter, value + amount, memory_order_relaxed);
}

static void observe(struct weft_stats_histogram *histogram, int64_t duration_ns)
{
    double duration_ms = (double)duration_ns / NS_PER_MS;
    uint32_t i = 0;

    while (i < WEFT_HISTOGRAM_BOUND_COUNT && duration_ms > bounds_ms[i]) {
        i++;
    }
    add(&histogram->sum_ns, (uint64_t)duration_ns);
    add(&histogram->buckets[i], 1);
}

void weft_stats_load(struct weft_stats *stats, uint32_t waiting_count, uint32_t running_count,
                     uint32_t kv_page_used_count)
{
    atomic_store_explicit(&stats->waiting_count, waiting_count, memory_order_relaxed);
    atomic_store_explicit(&stats->running_count, running_count, memory_order_relaxed);
    atomic_store_explicit(&stats->kv_page_used_count, kv_page_used_count, memory_order_relaxed);
}

void weft_stats_step(struct weft_stats *stats)
{
    add(&stats->step_count, 1);
}

void weft_stats_first_token(struct weft_stats *stats, uint32_t prompt_count, int64_t queue_ns, int64_t ttft_ns)
{
    add(&stats->prompt_token_count, prompt_count);
    add(&stats->output_token_count, 1);
    observe(&stats->queue, queue_ns);
    observe(&stats->ttft, ttft_ns);
}

void weft_stats_next_token(struct weft_stats *stats, int64_t since_ns)
{
    add(&stats->output_token_count, 1);
    observe(&stats->inter_token, since_ns);
}

void weft_stats_finish(struct weft_stats *stats, enum weft_finish how, int64_t request_ns)
{
    add(&stats->finish_counts[how], 1);
    if (how == WEFT_FINISH_STOP || how == WEFT_FINISH_LENGTH) {
        observe(&stats->request, request_ns);
    }
}

void weft_stats_refuse(struct weft_stats *stats)
{
    add(&stats->refused_count, 1);
}

static uint64_t value_of(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static void histogram_read(const struct weft_stats_histogram *histogram, struct weft_histogram *out)
{
    for (uint32_t i = 0; i <= WEFT_HISTOGRAM_BOUND_COUNT; i++) {
        out->buckets[i] = value_of(&histogram->buckets[i]);
    }
    out->sum_ms = (double)value_of(&histogram->sum_ns) / NS_PER_MS;
}

void weft_stats_read(const struct weft_stats *stats, struct weft_engine_stats *out)
{
    out->waiting_count = atomic_load_explicit(&stats->waiting_count, memory_order_relaxed);
    out->running_count = atomic_load_explicit(&stats->running_count, memory_order_relaxed);
    out->kv_page_used_count = atomic_load_explicit(&stats->kv_page_used_count, memory_order_relaxed);
    out->step_count = value_of(&stats->step_count);
    out->prompt_token_count = value_of(&stats->prompt_token_count);
    out->output_token_count = value_of(&stats->output_token_count);
    for (uint32_t i = 0; i < WEFT_FINISH_COUNT; i++) {
        out->finish_counts[i] = value_of(&stats->finish_counts[i]);
    }
    out->refused_count = value_of(&stats->refused_count);
    histogram_read(&stats->queue, &out->queue);
    histogram_read(&stats->ttft, &out->ttft);
    histogram_read(&stats->inter_token, &out->inter_token);
    histogram_read(&stats->request, &out->request);
}
