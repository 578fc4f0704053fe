/* Activations in device memory through pinned host buffers; see staging.c. The communicator was opened with a device.
 */
#ifndef WEFT_COMM_STAGING_H
#define WEFT_COMM_STAGING_H

#include "comm_internal.h"

/* Elements of one host tree_sum() when sums of sum_count_max elements are staged: what the host channels are sized for.
 */
size_t weft_staging_round_count(size_t sum_count_max);

/* Allocates the host buffers; fini also after a failed init. The device is idle by then, or no longer looks at them. */
WEFT_MUST_CHECK enum weft_status weft_staging_init(struct weft_comm *comm);
void weft_staging_fini(struct weft_comm *comm);

/* As collective.c's, with nodes, in and out in device memory. When they return the last round may still be on its way
 * to the device, in the order of its stream. */
WEFT_MUST_CHECK enum weft_status weft_staging_tree_sum(struct weft_comm *comm, const float *nodes, size_t count,
                                                       float *out);
WEFT_MUST_CHECK enum weft_status weft_staging_gather(struct weft_comm *comm, const void *in, const size_t *sizes,
                                                     void *out);

/* Waits for a mark of the device with the communicator's deadline, looking at the bootstrap now and then. Errors as any
 * wait: who failed is in comm->inner->failed_rank, this rank itself when its device is late. */
WEFT_MUST_CHECK enum weft_status weft_comm_wait_device(struct weft_comm *comm, uint32_t mark);

#endif
