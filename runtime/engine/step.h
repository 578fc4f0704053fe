/*
 * One step from the leader's side: entries of the scheduler become a StepPlan, the ranks' logits become tokens.
 *
 * Belongs to the controller's thread; knows nothing of queues, mutexes or clients.
 */
#ifndef WEFT_ENGINE_STEP_H
#define WEFT_ENGINE_STEP_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/group.h"
#include "engine/job.h"
#include "engine/scheduler.h"
#include "weft/status.h"

struct weft_stepper;

WEFT_MUST_CHECK enum weft_status weft_stepper_open(struct weft_group *group, struct weft_stepper **out);
void weft_stepper_close(struct weft_stepper **stepper);

/* What came of one scheduled entry. */
struct weft_step_result {
    bool has_token;
    int32_t token;
    bool is_broken; /* logits that are no numbers */
};

/*
 * Runs entries[count] (sequences of struct weft_job) on all ranks and samples; results_out[count]. Digests of the
 * jobs are updated. Errors are of the group.
 */
WEFT_MUST_CHECK enum weft_status weft_stepper_run(struct weft_stepper *stepper,
                                                  const struct weft_schedule_entry *entries, uint32_t count,
                                                  struct weft_step_result *results_out);

/* Tells every rank that the group ends in order. */
WEFT_MUST_CHECK enum weft_status weft_stepper_end(struct weft_stepper *stepper);

#endif
