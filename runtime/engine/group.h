/*
 * A group as one of its ranks sees it: who belongs to it, who owns which leaves, and this rank's device, communicator
 * and model. A value: nothing static, so it can be closed and formed again, and many ranks can live in one process.
 *
 * Forming: every worker says hello, the leader checks and decides (deal.h), everybody loads, everybody reports. Any
 * refusal or failure reaches all ranks as one clear line.
 */
#ifndef WEFT_ENGINE_GROUP_H
#define WEFT_ENGINE_GROUP_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/deal.h"
#include "engine/identity.h"
#include "engine/plan.h"
#include "model/model.h"
#include "weft/bootstrap.h"
#include "weft/comm.h"
#include "weft/device.h"
#include "weft/weft.h"

struct weft_group {
    uint64_t generation;
    uint32_t rank;
    uint32_t rank_count;
    uint32_t timeout_ms;
    const struct weft_model_config *config; /* borrowed: the identity given to open must outlive the group */
    struct weft_range leaves[WEFT_RANK_COUNT_MAX];
    struct weft_slice slices[WEFT_RANK_COUNT_MAX];
    struct weft_plan_limits limits;
    uint32_t leaf_count;
    uint32_t thread_count;
    struct weft_bootstrap *bootstrap; /* owned */
    struct weft_device *device;       /* owned */
    struct weft_comm *comm;           /* owned */
    struct weft_model *model;         /* owned */
};

/*
 * Forms the group over `bootstrap`, which is taken over in any case. Collective; returns when every rank has loaded.
 * options: with defaults filled in. status: OK, or why this rank cannot take part (it still tells the others); then the
 * result is that status.
 */
struct weft_group_args {
    const struct weft_engine_options *options;
    /* NULL only when status is not OK. With lacks_model its config is filled in here, by what the leader sends. */
    struct weft_identity *identity;
    bool lacks_model; /* this rank has no model folder */
    enum weft_status status;
    uint64_t generation; /* the leader's counts */
};
WEFT_MUST_CHECK enum weft_status weft_group_open(const struct weft_group_args *args, struct weft_bootstrap *bootstrap,
                                                 struct weft_group *group_out);

/* As the model's memory is planned, and then opened. */
struct weft_model_limits weft_group_model_limits(const struct weft_group *group,
                                                 const struct weft_engine_options *options);

/* Closes what is open. The group can be opened again. */
void weft_group_close(struct weft_group *group);

/* After an error of a step: the rank that is to blame (own rank when nobody else is known), told to all others. */
uint32_t weft_group_fail(struct weft_group *group, enum weft_status status);

#endif
