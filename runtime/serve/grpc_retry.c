/*
 * When to try again, for clients of a server that goes: as google.rpc.RetryInfo, which programs read, and as the
 * pushback that gRPC's own retry policy obeys (gRFC A6).
 */
#include <grpc/slice.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grpc_internal.h"
#include "retry_wire.pb-c.h"

enum {
    /* From a failure to the next attempt to load: the launcher's back-off and its clearing away. */
    RESTART_MS = 3000,
    RETRY_MAX_MS = 60000,
};

uint32_t weft_rpc_retry_ms(double load_ms)
{
    double retry_ms = RESTART_MS + load_ms;

    return retry_ms < RETRY_MAX_MS ? (uint32_t)retry_ms : RETRY_MAX_MS;
}

static ProtobufCBinaryData bytes_of(const char *text)
{
    return (ProtobufCBinaryData){.len = strlen(text), .data = (uint8_t *)text};
}

static grpc_slice pack(const ProtobufCMessage *message)
{
    grpc_slice slice = grpc_slice_malloc(protobuf_c_message_get_packed_size(message));

    protobuf_c_message_pack(message, GRPC_SLICE_START_PTR(slice));
    return slice;
}

void weft_rpc_retry_init(struct weft_rpc_retry *retry, uint32_t retry_ms, grpc_status_code status, const char *details)
{
    Weft__Rpc__Delay delay = WEFT__RPC__DELAY__INIT;
    Weft__Rpc__RetryInfo info = WEFT__RPC__RETRY_INFO__INIT;
    Weft__Rpc__Detail detail = WEFT__RPC__DETAIL__INIT;
    Weft__Rpc__Detail *details_list[] = {&detail};
    Weft__Rpc__Status message = WEFT__RPC__STATUS__INIT;
    grpc_slice value;
    char text[16];

    delay.seconds = retry_ms / 1000;
    delay.nanos = (int32_t)(retry_ms % 1000 * 1000000);
    info.retry_delay = &delay;
    value = pack(&info.base);
    detail.type_url = bytes_of("type.googleapis.com/google.rpc.RetryInfo");
    detail.value = (ProtobufCBinaryData){.len = GRPC_SLICE_LENGTH(value), .data = GRPC_SLICE_START_PTR(value)};
    message.code = (int32_t)status;
    message.message = bytes_of(details);
    message.details = details_list;
    message.n_details = 1;
    (void)snprintf(text, sizeof(text), "%u", retry_ms);
    memset(retry, 0, sizeof(*retry));
    retry->metadata[0].key = grpc_slice_from_static_string("grpc-status-details-bin");
    retry->metadata[0].value = pack(&message.base);
    retry->metadata[1].key = grpc_slice_from_static_string("grpc-retry-pushback-ms");
    retry->metadata[1].value = grpc_slice_from_copied_string(text);
    grpc_slice_unref(value);
}

void weft_rpc_retry_fini(struct weft_rpc_retry *retry)
{
    for (size_t i = 0; i < WEFT_RPC_RETRY_COUNT; i++) {
        grpc_slice_unref(retry->metadata[i].key);
        grpc_slice_unref(retry->metadata[i].value);
    }
}
