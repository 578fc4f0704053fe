/* Conversions between the wire and the engine. */
#include "codec.h"

#include <grpc/byte_buffer_reader.h>
#include <grpc/slice.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "weft_wire.pb-c.h"

ProtobufCMessage *weft_codec_decode(const ProtobufCMessageDescriptor *descriptor, grpc_byte_buffer *buffer)
{
    grpc_byte_buffer_reader reader;
    ProtobufCMessage *message;
    grpc_slice slice;

    if (buffer == NULL || !grpc_byte_buffer_reader_init(&reader, buffer)) {
        return NULL; /* no message, or one that does not decompress */
    }
    slice = grpc_byte_buffer_reader_readall(&reader);
    message = protobuf_c_message_unpack(descriptor, NULL, GRPC_SLICE_LENGTH(slice), GRPC_SLICE_START_PTR(slice));
    grpc_slice_unref(slice);
    grpc_byte_buffer_reader_destroy(&reader);
    return message;
}

grpc_byte_buffer *weft_codec_encode(const ProtobufCMessage *message)
{
    grpc_slice slice = grpc_slice_malloc(protobuf_c_message_get_packed_size(message));
    grpc_byte_buffer *buffer;

    protobuf_c_message_pack(message, GRPC_SLICE_START_PTR(slice));
    buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}

bool weft_codec_is_utf8(const uint8_t *bytes, size_t size)
{
    while (size > 0) {
        utf8proc_int32_t character;
        utf8proc_ssize_t used = utf8proc_iterate(bytes, (utf8proc_ssize_t)size, &character);

        if (used <= 0) {
            return false;
        }
        bytes += used;
        size -= (size_t)used;
    }
    return true;
}

/* Stop strings end at a NUL in weft.h; on the wire they carry their length. */
static const char *stop_strings(const Weft__V1__GenerateRequest *message, struct weft_request *request,
                                const char *stop_out[WEFT_CODEC_STOP_MAX])
{
    if (message->n_stop > WEFT_CODEC_STOP_MAX) {
        return "stop: at most 16 strings";
    }
    for (size_t i = 0; i < message->n_stop; i++) {
        const ProtobufCBinaryData *text = &message->stop[i];
        char *copy;

        if (text->len == 0 || memchr(text->data, 0, text->len) != NULL || !weft_codec_is_utf8(text->data, text->len)) {
            return "stop: empty, not UTF-8, or with a NUL inside";
        }
        copy = malloc(text->len + 1);
        if (copy == NULL) {
            return "stop: out of memory";
        }
        memcpy(copy, text->data, text->len);
        copy[text->len] = 0;
        stop_out[i] = copy;
        request->stop_count = (uint32_t)i + 1;
    }
    return NULL;
}

const char *weft_codec_settings(const Weft__V1__GenerateRequest *message, struct weft_request *request_out,
                                const char *stop_out[WEFT_CODEC_STOP_MAX])
{
    struct weft_request *request = request_out;

    weft_request_init(request);
    request->stop = stop_out;
    request->is_raw = message->raw;
    request->is_eos_ignored = message->ignore_eos;
    request->has_logits_digest = message->logits_digest;
    /* has_*_case is 0 for what the client did not set. */
    if (message->has_max_tokens_case != 0) {
        request->max_tokens = message->max_tokens;
    }
    if (message->has_temperature_case != 0) {
        request->temperature = message->temperature;
    }
    if (message->has_top_k_case != 0) {
        request->top_k = message->top_k;
    }
    if (message->has_top_p_case != 0) {
        request->top_p = message->top_p;
    }
    if (message->has_min_p_case != 0) {
        request->min_p = message->min_p;
    }
    if (message->has_repetition_penalty_case != 0) {
        request->repetition_penalty = message->repetition_penalty;
    }
    if (message->has_presence_penalty_case != 0) {
        request->presence_penalty = message->presence_penalty;
    }
    if (message->has_frequency_penalty_case != 0) {
        request->frequency_penalty = message->frequency_penalty;
    }
    if (message->has_seed_case != 0) {
        request->seed = message->seed;
    }
    if (request->max_tokens == 0) {
        return "max_tokens: at least 1";
    }
    return stop_strings(message, request, stop_out);
}

void weft_codec_settings_fini(const struct weft_request *request)
{
    for (uint32_t i = 0; i < request->stop_count; i++) {
        free((char *)request->stop[i]);
    }
}

grpc_status_code weft_codec_status(enum weft_status status)
{
    switch (status) {
    case WEFT_OK: return GRPC_STATUS_OK;
    case WEFT_ERR_ARGUMENT:
    case WEFT_ERR_FORMAT: return GRPC_STATUS_INVALID_ARGUMENT;
    case WEFT_ERR_MEMORY:
    case WEFT_ERR_LIMIT: return GRPC_STATUS_RESOURCE_EXHAUSTED;
    case WEFT_ERR_UNSUPPORTED: return GRPC_STATUS_UNIMPLEMENTED;
    case WEFT_ERR_CANCELLED: return GRPC_STATUS_CANCELLED;
    case WEFT_ERR_PEER:
    case WEFT_ERR_TIMEOUT:
    case WEFT_ERR_STATE: return GRPC_STATUS_UNAVAILABLE;
    case WEFT_ERR_IO:
    case WEFT_ERR_MISSING:
    case WEFT_ERR_BUSY: break;
    }
    return GRPC_STATUS_INTERNAL;
}
