/* Collectives between devices over a channel that moves device memory; see collective_device.c. */
#ifndef WEFT_COMM_COLLECTIVE_DEVICE_H
#define WEFT_COMM_COLLECTIVE_DEVICE_H

#include "comm_internal.h"

/* Elements of the room that every node of another rank has in device memory. */
size_t weft_comm_exchange_room(uint32_t rank_count, size_t sum_count_max);
/* Plans and device memory, before the channel is connected; close also after a failure, when the channel is closed. */
WEFT_MUST_CHECK enum weft_status weft_comm_open_exchange(struct weft_comm *comm);
void weft_comm_close_exchange(struct weft_comm *comm);
/* connect() of the channel. The host channels are open. */
WEFT_MUST_CHECK enum weft_status weft_comm_connect_exchange(struct weft_comm *comm, const void *addresses);

/* As collective.c's; done in the order of the device's stream. */
/* Whether every rank adds everything; then there is tree_gather(), see weft_comm_tree_gather(). */
bool weft_comm_exchange_is_one_shot(const struct weft_comm *comm, size_t count);
WEFT_MUST_CHECK enum weft_status weft_comm_exchange_tree_gather(struct weft_comm *comm, const float *nodes,
                                                                size_t count, float *out,
                                                                struct weft_tree_add_args *left_out);
WEFT_MUST_CHECK enum weft_status weft_comm_exchange_tree_sum(struct weft_comm *comm, const float *nodes, size_t count,
                                                             float *out);
WEFT_MUST_CHECK enum weft_status weft_comm_exchange_gather(struct weft_comm *comm, const void *in, const size_t *sizes,
                                                           void *out);
/* Calls the roll over the host channels when time has run out (ERR_TIMEOUT; any other status stays): the status with
 * which they name who is missing, or ERR_TIMEOUT when all are there. The communicator is lost in any case. */
WEFT_MUST_CHECK enum weft_status weft_comm_name_missing(struct weft_comm *comm, enum weft_status status);
/* Waits until all of them are. */
WEFT_MUST_CHECK enum weft_status weft_comm_finish_exchange(struct weft_comm *comm);

#endif
