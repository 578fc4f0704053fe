/*
 * How many tokens per second one request would get, from what was measured: the speed at which each rank passes weights
 * through its device, and what a sum over the ranks takes. The seed of a planner.
 */
#ifndef WEFT_DOCTOR_PREDICT_H
#define WEFT_DOCTOR_PREDICT_H

#include <stdbool.h>
#include <stdint.h>

#include "doctor/facts.h"
#include "doctor/probe.h"
#include "weft/weft.h"

/* What the ranks do and measured; plain bytes. */
struct weft_doctor_rates {
    uint32_t is_measured;
    uint32_t thread_counts[WEFT_LEAF_COUNT_MAX]; /* by rank, as a run would deal them */
    double speeds[WEFT_LEAF_COUNT_MAX];          /* bytes of weights per second, all ranks at once */
    uint32_t alone_thread_count;                 /* of rank 0 when its host is all there is */
    double alone_speed;
    double sum_us; /* one sum of a token's width over all ranks, mean of many in a row; 0 alone */
};

struct weft_doctor_prediction {
    bool is_known;
    double weight_size; /* bytes read per token, whole model */
    double alone_ms;    /* per token on rank 0's host alone */
    double read_ms;     /* per token of the slowest rank, reading its weights */
    uint32_t slowest_rank;
    uint32_t exchange_count; /* per token: two sums per layer, the embedding, the candidates */
    double exchange_ms;      /* all of them */
    double alone_tokens_per_s;
    double tokens_per_s;
};

/*
 * Collective over the group; rank 0's model decides, the others' may be missing. *rates_out is rank 0's, and
 * is_measured false where there is nothing to say: no model, a GPU, a model so small that its weights stay in caches, a
 * host with little memory left. About a second.
 */
struct weft_doctor_rates_args {
    struct weft_bootstrap *bootstrap;
    const struct weft_engine_options *engine;
    const struct weft_doctor_facts *facts; /* [rank_count] */
    uint32_t rank_count;
    uint32_t timeout_ms;
    const struct weft_model_summary *summary; /* rank 0: NULL when a prediction makes no sense */
    const struct weft_rank_summary *ranks;    /* [rank_count], likewise */
};
WEFT_MUST_CHECK enum weft_status weft_doctor_rates_measure(const struct weft_doctor_rates_args *args,
                                                           struct weft_doctor_rates *rates_out);

/* Pure. */
void weft_doctor_predict(const struct weft_model_summary *summary, const struct weft_rank_summary *ranks,
                         const struct weft_doctor_rates *rates, struct weft_doctor_prediction *prediction_out);
/* Bytes of weights that one token makes the whole model read: every matrix once, of the embedding one row. */
double weft_doctor_token_size(const struct weft_model_summary *summary);

#endif
