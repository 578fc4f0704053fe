/* The seat that comm keeps for device memory, filled from the device table: comm and kernels do not see each other. */
#ifndef WEFT_MODEL_SEAT_H
#define WEFT_MODEL_SEAT_H

#include "weft/comm.h"
#include "weft/device.h"

/* *seat_out for weft_comm_options.device; true. A device in host memory needs none: false. device: borrowed by the
 * seat. */
bool weft_seat_init(struct weft_device *device, struct weft_comm_device *seat_out);

#endif
