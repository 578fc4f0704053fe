/* The table of tensors of a model, and what a checkpoint must have of them. */
#include "model/tensors.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/fp8.h"
#include "model/slice.h"
#include "weft/log.h"

static const char where[] = "model/tensors";

static struct weft_range all(uint32_t count)
{
    return (struct weft_range){0, count};
}

static struct weft_range scaled(struct weft_range range, uint32_t factor)
{
    return (struct weft_range){range.begin * factor, range.end * factor};
}

static struct weft_slice whole_slice(const struct weft_model_config *config)
{
    struct weft_slice slice;

    weft_slice_init(config, 1, all(1), &slice);
    return slice;
}

static void add_matrix(struct weft_part_list *list, const char *suffix, int matrix, struct weft_part shape)
{
    shape.suffix = suffix;
    shape.matrix = matrix;
    shape.vector = -1;
    assert(list->count < WEFT_PART_COUNT_MAX);
    list->parts[list->count++] = shape;
}

static void add_vector(struct weft_part_list *list, const char *suffix, int vector, uint32_t count,
                       struct weft_range rows, uint32_t row_to)
{
    assert(list->count < WEFT_PART_COUNT_MAX);
    list->parts[list->count++] = (struct weft_part){.suffix = suffix,
                                                    .matrix = -1,
                                                    .vector = vector,
                                                    .row_count = count,
                                                    .rows = rows,
                                                    .cols = all(1),
                                                    .row_to = row_to};
}

static void list_attention(const struct weft_model_config *config, const struct weft_slice *slice,
                           struct weft_part_list *list)
{
    uint32_t size = config->head_size, width = config->width;
    uint32_t q_count = config->head_count * size, kv_count = config->kv_head_count * size;
    struct weft_range q = scaled(slice->heads, size), kv = scaled(slice->kv_heads, size), cols = all(width);
    uint32_t k_to = weft_range_count(q), v_to = k_to + weft_range_count(kv);

    add_vector(list, "input_layernorm.weight", WEFT_ATTENTION_NORM, width, all(width), 0);
    add_matrix(list, "self_attn.q_proj.weight", WEFT_QKV,
               (struct weft_part){.row_count = q_count, .col_count = width, .rows = q, .cols = cols});
    add_matrix(list, "self_attn.k_proj.weight", WEFT_QKV,
               (struct weft_part){.row_count = kv_count, .col_count = width, .rows = kv, .cols = cols, .row_to = k_to});
    add_matrix(list, "self_attn.v_proj.weight", WEFT_QKV,
               (struct weft_part){.row_count = kv_count, .col_count = width, .rows = kv, .cols = cols, .row_to = v_to});
    add_matrix(list, "self_attn.o_proj.weight", WEFT_ATTENTION_OUT,
               (struct weft_part){.row_count = width, .col_count = q_count, .rows = cols, .cols = q});
    if (config->has_qkv_bias) {
        add_vector(list, "self_attn.q_proj.bias", WEFT_QKV_BIAS, q_count, q, 0);
        add_vector(list, "self_attn.k_proj.bias", WEFT_QKV_BIAS, kv_count, kv, k_to);
        add_vector(list, "self_attn.v_proj.bias", WEFT_QKV_BIAS, kv_count, kv, v_to);
    }
    if (config->has_output_bias) {
        add_vector(list, "self_attn.o_proj.bias", WEFT_OUTPUT_BIAS, width, all(width), 0);
    }
    if (config->has_qk_norm) {
        add_vector(list, "self_attn.q_norm.weight", WEFT_Q_NORM, size, all(size), 0);
        add_vector(list, "self_attn.k_norm.weight", WEFT_K_NORM, size, all(size), 0);
    }
}

static void list_ffn(const struct weft_model_config *config, const struct weft_slice *slice,
                     struct weft_part_list *list)
{
    uint32_t width = config->width, count = config->ffn_width;
    struct weft_range ffn = slice->ffn, cols = all(width);
    uint32_t up_to = weft_range_count(ffn);

    add_vector(list, "post_attention_layernorm.weight", WEFT_FFN_NORM, width, all(width), 0);
    add_matrix(list, "mlp.gate_proj.weight", WEFT_GATE_UP,
               (struct weft_part){.row_count = count, .col_count = width, .rows = ffn, .cols = cols});
    add_matrix(list, "mlp.up_proj.weight", WEFT_GATE_UP,
               (struct weft_part){.row_count = count, .col_count = width, .rows = ffn, .cols = cols, .row_to = up_to});
    add_matrix(list, "mlp.down_proj.weight", WEFT_DOWN,
               (struct weft_part){.row_count = width, .col_count = count, .rows = cols, .cols = ffn});
    if (config->has_mlp_bias) {
        add_vector(list, "mlp.gate_proj.bias", WEFT_GATE_UP_BIAS, count, ffn, 0);
        add_vector(list, "mlp.up_proj.bias", WEFT_GATE_UP_BIAS, count, ffn, up_to);
        add_vector(list, "mlp.down_proj.bias", WEFT_DOWN_BIAS, width, all(width), 0);
    }
}

void weft_part_list_layer(const struct weft_model_config *config, const struct weft_slice *slice,
                          struct weft_part_list *list)
{
    list->count = 0;
    list_attention(config, slice, list);
    list_ffn(config, slice, list);
}

const char *weft_tensor_global_name(enum weft_global global)
{
    static const char *const names[WEFT_GLOBAL_COUNT] = {
        [WEFT_EMBEDDING] = "embed_tokens.weight", [WEFT_HEAD] = "lm_head.weight", [WEFT_NORM] = "norm.weight"};

    return names[global];
}

struct weft_part weft_part_global(const struct weft_model_config *config, const struct weft_slice *slice,
                                  enum weft_global global)
{
    if (global == WEFT_NORM) {
        return (struct weft_part){
            .row_count = config->width, .rows = all(config->width), .cols = all(1), .matrix = -1, .vector = 0};
    }
    return (struct weft_part){.row_count = config->vocab_size,
                              .col_count = config->width,
                              .rows = slice->vocab,
                              .cols = all(config->width),
                              .matrix = 0,
                              .vector = -1};
}

/* The one tensor that not every model has is the head. */
static uint32_t global_count(const struct weft_model_config *config)
{
    return config->is_tied ? WEFT_GLOBAL_COUNT - 1 : WEFT_GLOBAL_COUNT;
}

uint32_t weft_tensor_count(const struct weft_model_config *config, const struct weft_part_list *list)
{
    return global_count(config) + config->layer_count * list->count;
}

struct weft_part weft_tensor_part(const struct weft_model_config *config, const struct weft_slice *slice,
                                  const struct weft_part_list *list, uint32_t tensor)
{
    uint32_t globals = global_count(config);

    assert(tensor < weft_tensor_count(config, list));
    if (tensor >= globals) {
        return list->parts[(tensor - globals) % list->count];
    }
    return weft_part_global(config, slice, (enum weft_global)(config->is_tied && tensor > 0 ? tensor + 1 : tensor));
}

/* ---- finding and checking tensors ---- */

/* "model.NAME", "NAME"; NULL when there is neither. */
const struct weft_tensor *weft_tensor_find(const struct weft_checkpoint *checkpoint, const char *name)
{
    char full[WEFT_TENSOR_NAME_SIZE + 8];

    snprintf(full, sizeof(full), "model.%s", name);
    const struct weft_tensor *tensor = weft_checkpoint_find(checkpoint, full);
    return tensor != NULL ? tensor : weft_checkpoint_find(checkpoint, name);
}

void weft_tensor_layer_name(uint32_t layer, const char *suffix, char *name)
{
    snprintf(name, WEFT_TENSOR_NAME_SIZE, "layers.%u.%s", layer, suffix);
}

static enum weft_status missing(const struct weft_checkpoint *checkpoint, const char *name)
{
    char full[WEFT_TENSOR_NAME_SIZE + 8];

    snprintf(full, sizeof(full), "model.%s", name);
    const char *claim = weft_checkpoint_claim(checkpoint, full);
    claim = claim != NULL ? claim : weft_checkpoint_claim(checkpoint, name);
    if (claim != NULL) {
        weft_log(WEFT_LOG_ERROR, where, "%s/%.200s: tensor %s is missing, although the index says it is there",
                 weft_checkpoint_folder(checkpoint), claim, name);
    } else {
        weft_log(WEFT_LOG_ERROR, where, "%s: tensor %s is missing", weft_checkpoint_folder(checkpoint), full);
    }
    return WEFT_ERR_FORMAT;
}

/* The tensor has the part's shape and a type that we can read. */
static enum weft_status check(const struct weft_checkpoint *checkpoint, const struct weft_model_config *config,
                              const struct weft_tensor *tensor, const struct weft_part *part, struct weft_stored *out)
{
    struct weft_stored stored = {.tensor = tensor};
    char found[200], expected[64];
    bool is_vector = part->col_count == 0;

    if (tensor->dim_count != (is_vector ? 1 : 2) || tensor->dims[0] != part->row_count ||
        (!is_vector && tensor->dims[1] != part->col_count)) {
        snprintf(expected, sizeof(expected), is_vector ? "[%u]" : "[%u, %u]", part->row_count, part->col_count);
        weft_log(WEFT_LOG_ERROR, where, "%s: %s: expected shape %s from config.json, found %s",
                 weft_checkpoint_file(checkpoint, tensor->file), tensor->name, expected,
                 weft_tensor_shape(tensor, found, sizeof(found)));
        return WEFT_ERR_FORMAT;
    }
    if (weft_tensor_element(tensor, &stored.element) != 0 || (is_vector && stored.element == WEFT_ELEMENT_F8_E4M3)) {
        weft_log(WEFT_LOG_ERROR, where, "%s: %s: element type %s is not supported: F32, F16, BF16%s are",
                 weft_checkpoint_file(checkpoint, tensor->file), tensor->name, tensor->dtype,
                 is_vector ? "" : ", F8_E4M3");
        return WEFT_ERR_UNSUPPORTED;
    }
    if (stored.element == WEFT_ELEMENT_F8_E4M3) {
        WEFT_TRY(weft_fp8_scale_find(checkpoint, &config->fp8, tensor, &stored.scale));
    }
    *out = stored;
    return WEFT_OK;
}

enum weft_status weft_tensor_locate(const struct weft_checkpoint *checkpoint, const struct weft_model_config *config,
                                    const char *name, const struct weft_part *part, struct weft_stored *out)
{
    const struct weft_tensor *tensor = weft_tensor_find(checkpoint, name);

    if (tensor == NULL) {
        return missing(checkpoint, name);
    }
    return check(checkpoint, config, tensor, part, out);
}

/* Type of a matrix of tensors of both types; FP8 beside others becomes bf16, as a weight of it is one. */
static enum weft_dtype merged(enum weft_dtype a, enum weft_dtype b)
{
    if (a != b) {
        a = a == WEFT_F8_E4M3 ? WEFT_BF16 : a;
        b = b == WEFT_F8_E4M3 ? WEFT_BF16 : b;
    }
    return a == b ? a : WEFT_F32;
}

static enum weft_status resolve_layer(const struct weft_checkpoint *checkpoint, const struct weft_part_list *list,
                                      uint32_t layer, struct weft_model_config *config)
{
    enum weft_dtype *const to[WEFT_LAYER_MATRIX_COUNT] = {
        [WEFT_QKV] = &config->dtypes.qkv[layer],
        [WEFT_ATTENTION_OUT] = &config->dtypes.attention_out[layer],
        [WEFT_GATE_UP] = &config->dtypes.gate_up[layer],
        [WEFT_DOWN] = &config->dtypes.down[layer],
    };
    bool is_seen[WEFT_LAYER_MATRIX_COUNT] = {false};
    struct weft_stored stored;
    char name[WEFT_TENSOR_NAME_SIZE];

    for (uint32_t i = 0; i < list->count; i++) {
        const struct weft_part *part = &list->parts[i];
        weft_tensor_layer_name(layer, part->suffix, name);
        WEFT_TRY(weft_tensor_locate(checkpoint, config, name, part, &stored));
        if (part->matrix >= 0) {
            enum weft_dtype dtype = weft_element_dtype(stored.element);
            *to[part->matrix] = is_seen[part->matrix] ? merged(*to[part->matrix], dtype) : dtype;
            is_seen[part->matrix] = true;
        }
    }
    return WEFT_OK;
}

/*
 * Which of embedding and head are there. Either alone serves as both, whatever config.json says; both together are both
 * kept: they are equal where an exporter stored a tied weight twice, and must not be tied where they differ.
 */
static enum weft_status resolve_ends(const struct weft_checkpoint *checkpoint, struct weft_model_config *config)
{
    struct weft_slice slice = whole_slice(config);
    struct weft_part part = weft_part_global(config, &slice, WEFT_EMBEDDING);
    struct weft_part norm = weft_part_global(config, &slice, WEFT_NORM);
    const struct weft_tensor *embedding = weft_tensor_find(checkpoint, weft_tensor_global_name(WEFT_EMBEDDING));
    const struct weft_tensor *head = weft_tensor_find(checkpoint, weft_tensor_global_name(WEFT_HEAD));
    struct weft_stored stored;

    if (embedding == NULL && head == NULL) {
        return missing(checkpoint, weft_tensor_global_name(WEFT_EMBEDDING));
    }
    WEFT_TRY(check(checkpoint, config, embedding != NULL ? embedding : head, &part, &stored));
    config->dtypes.embedding = weft_element_dtype(stored.element);
    WEFT_TRY(check(checkpoint, config, head != NULL ? head : embedding, &part, &stored));
    config->dtypes.head = weft_element_dtype(stored.element);
    config->is_tied = embedding == NULL || head == NULL;
    return weft_tensor_locate(checkpoint, config, weft_tensor_global_name(WEFT_NORM), &norm, &stored);
}

enum weft_status weft_tensors_resolve(const struct weft_checkpoint *checkpoint, struct weft_model_config *config)
{
    struct weft_slice slice = whole_slice(config);
    struct weft_part_list list;

    WEFT_TRY(resolve_ends(checkpoint, config));
    weft_part_list_layer(config, &slice, &list);
    for (uint32_t i = 0; i < config->layer_count; i++) {
        WEFT_TRY(resolve_layer(checkpoint, &list, i, config));
    }
    config->parameter_count = weft_tensors_parameter_count(config);
    return WEFT_OK;
}

static uint64_t part_parameters(const struct weft_part *part)
{
    return (uint64_t)part->row_count * (part->col_count == 0 ? 1 : part->col_count);
}

uint64_t weft_tensors_parameter_count(const struct weft_model_config *config)
{
    struct weft_slice slice = whole_slice(config);
    struct weft_part embedding = weft_part_global(config, &slice, WEFT_EMBEDDING);
    struct weft_part_list list;
    uint64_t count = 0;

    weft_part_list_layer(config, &slice, &list);
    for (uint32_t i = 0; i < list.count; i++) {
        count += part_parameters(&list.parts[i]);
    }
    return count * config->layer_count + part_parameters(&embedding) * (config->is_tied ? 1 : 2) + config->width;
}
