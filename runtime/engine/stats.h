/*
 * What weft_engine_stats() reports, kept by the controller. Every member has one writer at a time (the controller's
 * thread, or whoever holds its mutex) and any number of readers, who take no lock: a scrape never makes a step wait.
 * A snapshot may therefore miss what happens while it is taken, but no counter ever goes back.
 */
#ifndef WEFT_ENGINE_STATS_H
#define WEFT_ENGINE_STATS_H

#include <stdatomic.h>
#include <stdint.h>

#include "weft/weft.h"

struct weft_stats_histogram {
    _Atomic uint64_t buckets[WEFT_HISTOGRAM_BOUND_COUNT + 1];
    _Atomic uint64_t sum_ns;
};

struct weft_stats {
    _Atomic uint32_t waiting_count;
    _Atomic uint32_t running_count;
    _Atomic uint32_t kv_page_used_count;
    _Atomic uint64_t step_count;
    _Atomic uint64_t prompt_token_count;
    _Atomic uint64_t output_token_count;
    _Atomic uint64_t finish_counts[WEFT_FINISH_COUNT];
    _Atomic uint64_t refused_count;
    struct weft_stats_histogram queue;
    struct weft_stats_histogram ttft;
    struct weft_stats_histogram inter_token;
    struct weft_stats_histogram request;
};

/* All zero is a valid beginning. */
void weft_stats_load(struct weft_stats *stats, uint32_t waiting_count, uint32_t running_count,
                     uint32_t kv_page_used_count);
void weft_stats_step(struct weft_stats *stats);
/* The first token of a request of prompt_count tokens: what it waited for its first step, and for this token. */
void weft_stats_first_token(struct weft_stats *stats, uint32_t prompt_count, int64_t queue_ns, int64_t ttft_ns);
/* Any later token, and the time since the one before. */
void weft_stats_next_token(struct weft_stats *stats, int64_t since_ns);
/* The end of a request; the time since submit counts when it ended by itself. */
void weft_stats_finish(struct weft_stats *stats, enum weft_finish how, int64_t request_ns);
void weft_stats_refuse(struct weft_stats *stats);

/* Fills in what is kept here; the caller has the rest. */
void weft_stats_read(const struct weft_stats *stats, struct weft_engine_stats *out);

#endif
