/* weft.v1.Inference: Tokenize, Detokenize, GetModel. */
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "grpc_internal.h"
#include "weft_wire.pb-c.h"

static void fail(struct weft_rpc_call *call, enum weft_status status)
{
    weft_rpc_finish(call, NULL, weft_codec_status(status), weft_engine_error());
}

static void tokenize(struct weft_rpc_call *call)
{
    Weft__V1__TokenizeRequest *message =
        (Weft__V1__TokenizeRequest *)weft_codec_decode(&weft__v1__tokenize_request__descriptor, call->payload);
    Weft__V1__TokenizeResponse response = WEFT__V1__TOKENIZE_RESPONSE__INIT;
    enum weft_status status;

    if (message == NULL || !weft_codec_is_utf8(message->text.data, message->text.len)) {
        weft_rpc_finish(call, NULL, GRPC_STATUS_INVALID_ARGUMENT,
                        message == NULL ? "not a weft.v1.TokenizeRequest" : "text: not UTF-8");
    } else {
        status = weft_engine_tokenize(weft_service_engine(call->server->service), weft_codec_text(&message->text),
                                      message->text.len, message->raw, &response.token_ids, &response.n_token_ids);
        if (status != WEFT_OK) {
            fail(call, status);
        } else {
            weft_rpc_finish(call, weft_codec_encode(&response.base), GRPC_STATUS_OK, "");
            free(response.token_ids);
        }
    }
    if (message != NULL) {
        protobuf_c_message_free_unpacked(&message->base, NULL);
    }
}

static void detokenize(struct weft_rpc_call *call)
{
    Weft__V1__DetokenizeRequest *message =
        (Weft__V1__DetokenizeRequest *)weft_codec_decode(&weft__v1__detokenize_request__descriptor, call->payload);
    Weft__V1__DetokenizeResponse response = WEFT__V1__DETOKENIZE_RESPONSE__INIT;
    enum weft_status status;
    char *text = NULL;

    if (message == NULL) {
        weft_rpc_finish(call, NULL, GRPC_STATUS_INVALID_ARGUMENT, "not a weft.v1.DetokenizeRequest");
        return;
    }
    status = weft_engine_detokenize(weft_service_engine(call->server->service), message->token_ids,
                                    message->n_token_ids, &text, &response.text.len);
    if (status != WEFT_OK) {
        fail(call, status);
    } else {
        response.text.data = (uint8_t *)text;
        weft_rpc_finish(call, weft_codec_encode(&response.base), GRPC_STATUS_OK, "");
        free(text);
    }
    protobuf_c_message_free_unpacked(&message->base, NULL);
}

static ProtobufCBinaryData bytes_of(const char *text)
{
    return (ProtobufCBinaryData){.len = text != NULL ? strlen(text) : 0, .data = (uint8_t *)text};
}

/* Last component of the model folder. */
static ProtobufCBinaryData model_name(const char *folder)
{
    size_t end = strlen(folder);
    size_t begin;

    while (end > 1 && folder[end - 1] == '/') {
        end--;
    }
    begin = end;
    while (begin > 0 && folder[begin - 1] != '/') {
        begin--;
    }
    return (ProtobufCBinaryData){.len = end - begin, .data = (uint8_t *)folder + begin};
}

static void get_model(struct weft_rpc_call *call)
{
    const struct weft_engine_info *info = &call->server->info;
    Weft__V1__Model model = WEFT__V1__MODEL__INIT;
    ProtobufCMessage *message = weft_codec_decode(&weft__v1__get_model_request__descriptor, call->payload);

    if (message == NULL) {
        weft_rpc_finish(call, NULL, GRPC_STATUS_INVALID_ARGUMENT, "not a weft.v1.GetModelRequest");
        return;
    }
    protobuf_c_message_free_unpacked(message, NULL);
    model.name = model_name(info->model);
    model.architecture = bytes_of(info->architecture);
    model.parameter_count = info->parameter_count;
    model.vocab_size = info->vocab_size;
    model.context_length = info->context_length;
    model.weight_dtype = bytes_of(info->weight_dtype);
    model.kv_dtype = bytes_of(info->kv_dtype);
    model.device = bytes_of(info->device);
    model.comm = bytes_of(info->comm);
    model.rank_count = info->rank_count;
    model.thread_count = info->thread_count;
    model.leaf_count = info->leaf_count;
    model.load_ms = info->load_ms;
    model.weft_version = bytes_of(weft_version());
    weft_rpc_finish(call, weft_codec_encode(&model.base), GRPC_STATUS_OK, "");
}

const struct weft_rpc_method weft_rpc_tokenize = {
    .path = "/weft.v1.Inference/Tokenize", .is_for_engine = true, .begin = tokenize};
const struct weft_rpc_method weft_rpc_detokenize = {
    .path = "/weft.v1.Inference/Detokenize", .is_for_engine = true, .begin = detokenize};
const struct weft_rpc_method weft_rpc_get_model = {
    .path = "/weft.v1.Inference/GetModel", .is_for_engine = true, .begin = get_model};
