/*
 * Executes plans: the same code on every rank, the leader included. Takes no decision of its own; what it is told it
 * checks against its own limits (plan.h), runs, and hands its logits over.
 */
#ifndef WEFT_ENGINE_WORKER_H
#define WEFT_ENGINE_WORKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/group.h"
#include "engine/plan.h"
#include "weft/status.h"

struct weft_worker;

/* Receives row `row_index` of the step before penalties: logits[vocab_size] (RowPlan.has_raw). Leader only. */
typedef void weft_worker_raw_row(void *context, uint32_t row_index, const float *logits);

struct weft_worker_options {
    struct weft_group *group; /* borrowed until close */
    weft_worker_raw_row *raw_row;
    void *raw_row_context;
};

/* Allocates everything that steps need. */
WEFT_MUST_CHECK enum weft_status weft_worker_open(const struct weft_worker_options *options, struct weft_worker **out);
void weft_worker_close(struct weft_worker **worker);

/* Step number and digest that the next plan must carry. */
uint64_t weft_worker_step(const struct weft_worker *worker);
uint64_t weft_worker_digest(const struct weft_worker *worker);

/* Parses, checks and runs one plan. *is_end_out: it was STEP_END. Errors are logged; the group is lost then. */
WEFT_MUST_CHECK enum weft_status weft_worker_execute(struct weft_worker *worker, const void *data, size_t size,
                                                     bool *is_end_out);

/* Workers: executes what the leader sends until STEP_END (OK) or an error, which the other ranks are told. */
WEFT_MUST_CHECK enum weft_status weft_worker_run(struct weft_worker *worker);

/* ---- results of the last step; leader ---- */

/* Best candidates of rank r for row `row`: [candidate_count], best first. */
const struct weft_candidate *weft_worker_candidates(const struct weft_worker *worker, uint32_t rank, uint32_t row);
/* Partial log-sum-exps of row `row` into lse_out[V]. */
void weft_worker_lse(const struct weft_worker *worker, uint32_t row, struct weft_lse *lse_out);
/* Whole row `row`, penalties applied, [vocab_size]; only if has_full or gathered. */
const float *weft_worker_row(const struct weft_worker *worker, uint32_t row);

#endif
