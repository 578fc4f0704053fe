/*
 * A device made of host memory, for comm's tests: a seat (weft/comm.h) whose pointers trap when anybody but the device
 * itself follows them, and whose operations happen late, on a thread of its own that stands for the stream.
 */
#ifndef WEFT_TESTS_COMM_FAKE_DEVICE_H
#define WEFT_TESTS_COMM_FAKE_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "fake_stream.h"
#include "weft/comm.h"

struct fake_device;

/* seed: of the delays, and the device's id. has_stream: the seat has a stream for NCCL (fake_stream.h). */
struct fake_device *fake_device_open(uint32_t seed, bool has_stream);
/* Everything issued still happens. False when memory was not given back. */
bool fake_device_close(struct fake_device **device);

const struct weft_comm_device *fake_device_seat(struct fake_device *device);
/* From now on the seat has memory that other ranks of this process can open, and sums through it. */
void fake_device_share(struct fake_device *device);

/* Begins a copy to the device; from_host is free at once. */
void fake_device_put(struct fake_device *device, void *to, const void *from_host, size_t size);
/* A copy from the device, waiting for everything before. */
void fake_device_get(struct fake_device *device, void *to_host, const void *from, size_t size);

/* From now on the stream stands still (until close), or every wait() fails with ERR_IO. */
void fake_device_hang(struct fake_device *device);
void fake_device_break(struct fake_device *device);

#endif
