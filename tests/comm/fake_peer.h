/* The part of fake_device.c for sums through the memory of peers: fake_device.h's fake_device_share(). */
#ifndef WEFT_TESTS_COMM_FAKE_PEER_H
#define WEFT_TESTS_COMM_FAKE_PEER_H

#include "fake_device.h"

void fake_peer_seat(struct weft_comm_device *seat);
/* Whether it points into shared memory, which device and host see at the same place. */
bool fake_peer_has(const void *pointer);

/* Waits for everything issued, without a mark. */
void fake_device_drain(struct fake_device *device);
/* `count` things more, or fewer, that are to be given back. */
void fake_device_take(struct fake_device *device, int count);

#endif
