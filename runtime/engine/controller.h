/*
 * The leader's thread: takes requests, plans steps, sends them, executes its own part, samples, publishes.
 *
 * submit, cancel and poll come from other threads and share one mutex with it, never held during a step.
 */
#ifndef WEFT_ENGINE_CONTROLLER_H
#define WEFT_ENGINE_CONTROLLER_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/group.h"
#include "engine/identity.h"
#include "engine/job.h"
#include "weft/comm.h"
#include "weft/status.h"
#include "weft/weft.h"

struct weft_controller;

struct weft_controller_options {
    struct weft_group *group; /* borrowed; used by the controller's thread alone until close */
    const struct weft_engine_options *options;
    const struct weft_tokenizer *tokenizer; /* or NULL */
};

/* Starts the thread. */
WEFT_MUST_CHECK enum weft_status weft_controller_open(const struct weft_controller_options *options,
                                                      struct weft_controller **out);

/* Tells the workers that all is over and ends the thread, after the running step or, should that take long, in it. */
void weft_controller_close(struct weft_controller **controller);

/* As weft_engine_submit(), _cancel(), _poll(), _failed_rank(). */
WEFT_MUST_CHECK enum weft_status weft_controller_submit(struct weft_controller *controller,
                                                        const struct weft_request *request, uint64_t *id_out);
void weft_controller_cancel(struct weft_controller *controller, uint64_t id);
WEFT_MUST_CHECK enum weft_status weft_controller_poll(struct weft_controller *controller, uint32_t timeout_ms,
                                                      struct weft_event *events_out, uint32_t capacity,
                                                      uint32_t *count_out);
int weft_controller_failed_rank(struct weft_controller *controller);
/* As weft_engine_failure(). */
void weft_controller_failure(struct weft_controller *controller, char *text_out, size_t size);

/* As weft_engine_stats(). */
void weft_controller_stats(struct weft_controller *controller, struct weft_engine_stats *stats_out);

/* Collectives of this rank as of the last step. */
void weft_controller_comm_stats(struct weft_controller *controller, struct weft_comm_stats *stats_out);

#endif
