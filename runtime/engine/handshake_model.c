/*
 * The message Model: a configuration for a rank without the folder. The texts travel as they are and are parsed there
 * with the same checks; what only the tensors can say (types, tied or not) travels beside them.
 */
#include "engine/handshake.h"

#include <string.h>

#include "engine/message.h"
#include "weft/log.h"
#include "wire.pb-c.h"

/* Two texts of at most 16 MiB each, and little else. */
enum { MESSAGE_SIZE_MAX = 33 << 20, GLOBAL_DTYPES = 2, LAYER_DTYPES = 4 };

static uint32_t dtype_count(const struct weft_model_config *config)
{
    return GLOBAL_DTYPES + config->layer_count * LAYER_DTYPES;
}

static enum weft_dtype *dtype_at(struct weft_model_dtypes *dtypes, uint32_t index)
{
    enum weft_dtype *const globals[GLOBAL_DTYPES] = {&dtypes->embedding, &dtypes->head};
    enum weft_dtype *const layers[LAYER_DTYPES] = {dtypes->qkv, dtypes->attention_out, dtypes->gate_up, dtypes->down};

    if (index < GLOBAL_DTYPES) {
        return globals[index];
    }
    index -= GLOBAL_DTYPES;
    return &layers[index % LAYER_DTYPES][index / LAYER_DTYPES];
}

enum weft_status weft_model_send(struct weft_bootstrap *bootstrap, uint32_t rank, const char *folder,
                                 const struct weft_model_config *config, uint32_t timeout_ms)
{
    Weft__Wire__Model message = WEFT__WIRE__MODEL__INIT;
    uint32_t dtypes[GLOBAL_DTYPES + WEFT_LAYER_COUNT_MAX * LAYER_DTYPES];
    struct weft_model_dtypes copy = config->dtypes;
    struct weft_model_texts texts;

    WEFT_TRY(weft_model_texts_read(folder, &texts));
    for (uint32_t i = 0; i < dtype_count(config); i++) {
        dtypes[i] = (uint32_t)*dtype_at(&copy, i);
    }
    message.config = (ProtobufCBinaryData){texts.config_size, (uint8_t *)texts.config};
    message.generation_config = (ProtobufCBinaryData){texts.generation_size, (uint8_t *)texts.generation};
    message.n_dtypes = dtype_count(config);
    message.dtypes = dtypes;
    message.is_tied = config->is_tied;
    message.parameter_count = config->parameter_count;
    enum weft_status status = weft_message_send(bootstrap, rank, &message.base, timeout_ms);
    weft_model_texts_fini(&texts);
    return status;
}

static enum weft_status take_model(const Weft__Wire__Model *message, struct weft_model_config *config)
{
    bool has_generation = message->generation_config.len > 0;

    WEFT_TRY(weft_model_config_parse(
        "the leader's config.json", (const char *)message->config.data, message->config.len,
        has_generation ? (const char *)message->generation_config.data : NULL, message->generation_config.len, config));
    if (message->n_dtypes != dtype_count(config)) {
        weft_log(WEFT_LOG_ERROR, "engine/group", "the leader's Model has %zu element types: expected %u for %u layers",
                 message->n_dtypes, dtype_count(config), config->layer_count);
        return WEFT_ERR_FORMAT;
    }
    for (uint32_t i = 0; i < dtype_count(config); i++) {
        bool is_fp8 = config->fp8.is_there && message->dtypes[i] == WEFT_F8_E4M3;
        if (message->dtypes[i] > WEFT_BF16 && !is_fp8) {
            weft_log(WEFT_LOG_ERROR, "engine/group", "the leader's Model has element type %u: expected at most %d%s",
                     message->dtypes[i], WEFT_BF16, config->fp8.is_there ? " or that of FP8" : "");
            return WEFT_ERR_FORMAT;
        }
        *dtype_at(&config->dtypes, i) = (enum weft_dtype)message->dtypes[i];
    }
    config->is_tied = message->is_tied != 0;
    config->parameter_count = message->parameter_count;
    return WEFT_OK;
}

enum weft_status weft_model_recv(struct weft_bootstrap *bootstrap, uint32_t timeout_ms,
                                 struct weft_model_config *config_out)
{
    ProtobufCMessage *base;

    WEFT_TRY(weft_message_recv(bootstrap, 0, &weft__wire__model__descriptor, MESSAGE_SIZE_MAX, timeout_ms, &base));
    enum weft_status status = take_model((const Weft__Wire__Model *)base, config_out);
    protobuf_c_message_free_unpacked(base, NULL);
    return status;
}
