/*
 * Small sums between GPUs of one host, straight through the peers' memory (weft/peer.h has the idea, the device the
 * kernel); see peer_sum.c. An addition to whatever carries the rest.
 */
#ifndef WEFT_COMM_PEER_SUM_H
#define WEFT_COMM_PEER_SUM_H

#include "comm_internal.h"

/*
 * Collective over the bootstrap; the host channels are open. Ends with one small sum that is checked. WEFT_OK with
 * comm->peer.is_open false and one phrase in reason_out when the memory of some rank cannot be reached; errors are
 * failures of the group.
 */
WEFT_MUST_CHECK enum weft_status weft_peer_open(struct weft_comm *comm, char *reason_out, size_t reason_size);
/* Also after a failure, and when it is not open; before the channels are closed. Waits for no rank longer than a
 * moment.
 */
void weft_peer_close(struct weft_comm *comm);

/* Whether a sum of `count` elements goes this way: the same on all ranks. */
bool weft_peer_takes(const struct weft_comm *comm, size_t count);
/* Puts one operation into the device's stream. */
void weft_peer_tree_sum(struct weft_comm *comm, const float *nodes, size_t count, float *out);
/* Leaves it to the caller. */
void weft_peer_tree_gather(struct weft_comm *comm, const float *nodes, size_t count, float *out,
                           struct weft_tree_add_args *left_out);

/* Waits for a mark of the device while sums may wait for peers: with an eye on them, with the communicator's deadline,
 * which is put off while the group works. Errors name who is missing. */
WEFT_MUST_CHECK enum weft_status weft_peer_wait(struct weft_comm *comm, uint32_t mark);
/* For all sums so far. */
WEFT_MUST_CHECK enum weft_status weft_peer_finish(struct weft_comm *comm);

/* After a failure: sums that wait end without a result. */
void weft_peer_stop(struct weft_comm *comm);

/* Largest count of such sums, and bytes of device memory that each rank gives for them. */
size_t weft_peer_room_count(uint32_t node_count, size_t sum_count_max);
size_t weft_peer_inbox_size(uint32_t node_count, size_t sum_count_max);

#endif
