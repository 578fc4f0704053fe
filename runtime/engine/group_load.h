/*
 * The second half of forming a group, once it is decided: everybody opens its communicator and its model, shows signs
 * of life meanwhile, and reports.
 */
#ifndef WEFT_ENGINE_GROUP_LOAD_H
#define WEFT_ENGINE_GROUP_LOAD_H

#include "engine/group.h"

struct weft_group_load_args {
    const struct weft_engine_options *options;
    struct weft_group *group; /* leaves, slices, limits and device are there; comm and model are opened */
    enum weft_wait_policy wait;
    uint32_t timeout_ms; /* without a sign of life from a rank */
};

/*
 * Collective. On the leader OK means that every rank is ready. After an error all ranks have been told; the caller
 * closes the group.
 */
WEFT_MUST_CHECK enum weft_status weft_group_load(const struct weft_group_load_args *args);

#endif
