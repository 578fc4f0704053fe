/* quantization_config of config.json: FP8 in its forms, and a clear line for everything else. */
#include <string.h>

#include "model/fp8.h"
#include "weft/log.h"

static const char where[] = "model/config";

enum { BLOCK_MAX = 1 << 16 };

#define SUPPORTED "fp8, fbgemm_fp8, and compressed-tensors of 8-bit float weights are"

/* A member that may be absent or null; *out NULL then. */
static enum weft_status get_text(const char *name, const json_t *object, const char *key, const char **out)
{
    const json_t *member = json_object_get(object, key);

    if (member != NULL && !json_is_null(member) && !json_is_string(member)) {
        weft_log(WEFT_LOG_ERROR, where, "%s: quantization_config: %s: expected a string", name, key);
        return WEFT_ERR_FORMAT;
    }
    *out = json_string_value(member);
    return WEFT_OK;
}

static enum weft_status refuse(const char *name, const char *member, const char *found, const char *supported)
{
    weft_log(WEFT_LOG_ERROR, where, "%s: quantization_config: %s \"%.40s\" is not supported: %s", name, member,
             found != NULL ? found : "(none)", supported);
    return WEFT_ERR_UNSUPPORTED;
}

/* [rows, columns] of a block. */
static enum weft_status get_block(const char *name, const json_t *object, const char *key, struct weft_fp8 *fp8)
{
    const json_t *member = json_object_get(object, key);
    json_int_t rows = json_integer_value(json_array_get(member, 0));
    json_int_t cols = json_integer_value(json_array_get(member, 1));

    if (json_array_size(member) != 2 || rows < 1 || rows > BLOCK_MAX || cols < 1 || cols > BLOCK_MAX) {
        weft_log(WEFT_LOG_ERROR, where,
                 "%s: quantization_config: %s: expected two integers in [1, %d] such as [128, 128]", name, key,
                 BLOCK_MAX);
        return WEFT_ERR_FORMAT;
    }
    fp8->block_rows = (uint32_t)rows;
    fp8->block_cols = (uint32_t)cols;
    return WEFT_OK;
}

static enum weft_status parse_plain(const char *name, const json_t *object, struct weft_fp8 *fp8)
{
    const json_t *block = json_object_get(object, "weight_block_size");
    const char *format;

    WEFT_TRY(get_text(name, object, "fmt", &format));
    if (format != NULL && strcmp(format, "e4m3") != 0) {
        return refuse(name, "fmt", format, "e4m3 is");
    }
    return block == NULL || json_is_null(block) ? WEFT_OK : get_block(name, object, "weight_block_size", fp8);
}

/* The weights of one group of compressed-tensors. */
static enum weft_status parse_weights(const char *name, const json_t *weights, struct weft_fp8 *fp8)
{
    const struct weft_json_int_args bits_args = {.name = name, .key = "num_bits", .min = 1, .max = 64};
    const char *type, *strategy;
    int64_t bits;

    WEFT_TRY(weft_json_int(weights, &bits_args, &bits));
    WEFT_TRY(get_text(name, weights, "type", &type));
    WEFT_TRY(get_text(name, weights, "strategy", &strategy));
    if (bits != 8 || type == NULL || strcmp(type, "float") != 0) {
        weft_log(WEFT_LOG_ERROR, where,
                 "%s: quantization_config: weights of %d bits, type \"%.40s\", are not supported: " SUPPORTED, name,
                 (int)bits, type != NULL ? type : "(none)");
        return WEFT_ERR_UNSUPPORTED;
    }
    if (strategy != NULL && strcmp(strategy, "block") == 0) {
        return get_block(name, weights, "block_structure", fp8);
    }
    if (strategy == NULL || (strcmp(strategy, "tensor") != 0 && strcmp(strategy, "channel") != 0)) {
        return refuse(name, "strategy", strategy, "tensor, channel and block are");
    }
    return WEFT_OK;
}

static enum weft_status parse_group(const char *name, const json_t *group, const char *format, struct weft_fp8 *fp8)
{
    const json_t *weights = json_object_get(group, "weights");
    const char *own;

    WEFT_TRY(get_text(name, group, "format", &own));
    format = own != NULL ? own : format;
    if (json_is_null(weights)) {
        return WEFT_OK; /* the KV cache, or activations alone */
    }
    if (!json_is_object(weights)) {
        weft_log(WEFT_LOG_ERROR, where, "%s: quantization_config: config_groups: weights: expected an object", name);
        return WEFT_ERR_FORMAT;
    }
    if (format != NULL && strcmp(format, "float-quantized") != 0 && strcmp(format, "naive-quantized") != 0) {
        return refuse(name, "format", format, SUPPORTED);
    }
    return parse_weights(name, weights, fp8);
}

static enum weft_status parse_compressed(const char *name, const json_t *object, struct weft_fp8 *fp8)
{
    json_t *groups = json_object_get(object, "config_groups");
    const char *key, *format;
    json_t *group;
    uint32_t count = 0;

    WEFT_TRY(get_text(name, object, "format", &format));
    if (!json_is_object(groups) || json_object_size(groups) == 0) {
        weft_log(WEFT_LOG_ERROR, where, "%s: quantization_config: config_groups: expected an object with a group",
                 name);
        return WEFT_ERR_FORMAT;
    }
    json_object_foreach(groups, key, group)
    {
        struct weft_fp8 found = {.is_there = true};
        WEFT_TRY(parse_group(name, group, format, &found));
        if (!json_is_object(json_object_get(group, "weights"))) {
            continue;
        }
        if (count++ > 0 && (found.block_rows != fp8->block_rows || found.block_cols != fp8->block_cols)) {
            return refuse(name, "config_groups", key, "groups with the same blocks are");
        }
        *fp8 = found;
    }
    return WEFT_OK;
}

enum weft_status weft_fp8_parse(const char *name, const json_t *root, struct weft_fp8 *out)
{
    const json_t *object = json_object_get(root, "quantization_config");
    struct weft_fp8 fp8 = {.is_there = true};
    const char *method;

    object = object == NULL ? json_object_get(root, "compression_config") : object; /* its older name */
    if (object == NULL || json_is_null(object)) {
        *out = (struct weft_fp8){.is_there = false};
        return WEFT_OK;
    }
    if (!json_is_object(object)) {
        weft_log(WEFT_LOG_ERROR, where, "%s: quantization_config: expected an object", name);
        return WEFT_ERR_FORMAT;
    }
    WEFT_TRY(get_text(name, object, "quant_method", &method));
    if (method != NULL && strcmp(method, "fp8") == 0) {
        WEFT_TRY(parse_plain(name, object, &fp8));
    } else if (method != NULL && strcmp(method, "compressed-tensors") == 0) {
        WEFT_TRY(parse_compressed(name, object, &fp8));
    } else if (method == NULL || strcmp(method, "fbgemm_fp8") != 0) {
        return refuse(name, "quant_method", method, SUPPORTED);
    }
    *out = fp8;
    return WEFT_OK;
}
