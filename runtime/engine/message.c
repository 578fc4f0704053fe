/* Packing and unpacking on the heap. */
#include "engine/message.h"

#include <stdlib.h>

#include "weft/log.h"

enum weft_status weft_message_send(struct weft_bootstrap *bootstrap, uint32_t rank, const ProtobufCMessage *message,
                                   uint32_t timeout_ms)
{
    size_t size = protobuf_c_message_get_packed_size(message);
    uint8_t *data = malloc(size > 0 ? size : 1);

    if (data == NULL) {
        weft_log(WEFT_LOG_ERROR, "engine/group", "out of memory for a message of %zu bytes", size);
        return WEFT_ERR_MEMORY;
    }
    protobuf_c_message_pack(message, data);
    enum weft_status status = weft_bootstrap_send(bootstrap, rank, data, size, timeout_ms);
    free(data);
    return status;
}

enum weft_status weft_message_recv(struct weft_bootstrap *bootstrap, uint32_t rank,
                                   const ProtobufCMessageDescriptor *descriptor, size_t size_max, uint32_t timeout_ms,
                                   ProtobufCMessage **message_out)
{
    const void *data;
    size_t size;

    WEFT_TRY(weft_bootstrap_recv(bootstrap, rank, &data, &size, timeout_ms));
    ProtobufCMessage *message = size > size_max ? NULL : protobuf_c_message_unpack(descriptor, NULL, size, data);
    if (message == NULL) {
        weft_log(WEFT_LOG_ERROR, "engine/group",
                 "rank %u sent %zu bytes that are no %s: another version of Weft, or no Weft at all", rank, size,
                 descriptor->short_name);
        return WEFT_ERR_FORMAT;
    }
    *message_out = message;
    return WEFT_OK;
}
