/*
 * Between gRPC's byte buffers, protobuf-c messages and the engine's structures. No state, no I/O.
 */
#ifndef WEFT_SERVE_CODEC_H
#define WEFT_SERVE_CODEC_H

#include <grpc/grpc.h>
#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>

#include "weft/status.h"
#include "weft/weft.h"

/* Generated from weft.proto. */
struct Weft__V1__GenerateRequest;

/* Largest `stop` list of a request, as the engine. */
enum { WEFT_CODEC_STOP_MAX = 16 };

/* The message in `buffer` (NULL: none came), owned by the caller; NULL when the bytes are no such message. */
ProtobufCMessage *weft_codec_decode(const ProtobufCMessageDescriptor *descriptor, grpc_byte_buffer *buffer);

/* The bytes of `message`, owned by the caller. */
grpc_byte_buffer *weft_codec_encode(const ProtobufCMessage *message);

/* The bytes as a text to point at, never NULL: protobuf-c leaves the data of an empty field NULL. */
static inline const char *weft_codec_text(const ProtobufCBinaryData *bytes)
{
    return bytes->len > 0 ? (const char *)bytes->data : "";
}

/* True when bytes[size] are UTF-8 as Unicode defines it: no surrogates, nothing overlong. */
bool weft_codec_is_utf8(const uint8_t *bytes, size_t size);

/*
 * Everything of a request but the prompt itself. Strings are borrowed from `message`, the list of stop strings lies in
 * stop_out. Returns NULL, or what is wrong with it, for the client.
 */
const char *weft_codec_settings(const struct Weft__V1__GenerateRequest *message, struct weft_request *request_out,
                                const char *stop_out[WEFT_CODEC_STOP_MAX]);
/* What weft_codec_settings() allocated. */
void weft_codec_settings_fini(const struct weft_request *request);

/* gRPC's status code for a status of the engine. */
grpc_status_code weft_codec_status(enum weft_status status);

#endif
