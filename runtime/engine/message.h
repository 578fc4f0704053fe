/*
 * Protobuf messages over the control channel, whole: for forming a group, where they are rare. Plans have their own way
 * without allocation (plan.h).
 */
#ifndef WEFT_ENGINE_MESSAGE_H
#define WEFT_ENGINE_MESSAGE_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/bootstrap.h"
#include "weft/status.h"

/* ERR_MEMORY, logged; errors of the bootstrap are passed on. */
WEFT_MUST_CHECK enum weft_status weft_message_send(struct weft_bootstrap *bootstrap, uint32_t rank,
                                                   const ProtobufCMessage *message, uint32_t timeout_ms);

/*
 * *message_out is to be freed with protobuf_c_message_free_unpacked(). ERR_FORMAT, logged with the rank, for more than
 * size_max bytes or what is no such message; errors of the bootstrap are passed on.
 */
WEFT_MUST_CHECK enum weft_status weft_message_recv(struct weft_bootstrap *bootstrap, uint32_t rank,
                                                   const ProtobufCMessageDescriptor *descriptor, size_t size_max,
                                                   uint32_t timeout_ms, ProtobufCMessage **message_out);

#endif
