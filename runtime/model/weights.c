/*
 * The table of tensors, and what follows from it: checks, counts, sizes, loading. A "part" is one tensor as one rank
 * needs it; with a slice that covers the whole model, as it stands in the file.
 */
#include "model/weights.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/slice.h"
#include "weft/log.h"

static const char where[] = "model/weights";

enum { PART_COUNT_MAX = 18, GLOBAL_PART_COUNT = 3, NAME_SIZE = 96, VECTOR_ALIGNMENT = 16 };

/* One tensor, [row_count, col_count] or [row_count], and the rows and columns of it that this rank holds. */
struct part {
    const char *suffix; /* after "layers.N." */
    int matrix;         /* enum weft_layer_matrix, or -1 */
    int vector;         /* enum weft_layer_vector, or -1 */
    uint32_t row_count;
    uint32_t col_count; /* 0: a vector */
    struct weft_range rows;
    struct weft_range cols;
    uint32_t row_to; /* where they begin in the fused matrix or vector */
};

struct part_list {
    struct part parts[PART_COUNT_MAX];
    uint32_t count;
};

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

static void add_matrix(struct part_list *list, const char *suffix, int matrix, struct part shape)
{
    shape.suffix = suffix;
    shape.matrix = matrix;
    shape.vector = -1;
    assert(list->count < PART_COUNT_MAX);
    list->parts[list->count++] = shape;
}

static void add_vector(struct part_list *list, const char *suffix, int vector, uint32_t count, struct weft_range rows,
                       uint32_t row_to)
{
    assert(list->count < PART_COUNT_MAX);
    list->parts[list->count++] = (struct part){.suffix = suffix,
                                               .matrix = -1,
                                               .vector = vector,
                                               .row_count = count,
                                               .rows = rows,
                                               .cols = all(1),
                                               .row_to = row_to};
}

static void list_attention(const struct weft_model_config *config, const struct weft_slice *slice,
                           struct part_list *list)
{
    uint32_t size = config->head_size, width = config->width;
    uint32_t q_count = config->head_count * size, kv_count = config->kv_head_count * size;
    struct weft_range q = scaled(slice->heads, size), kv = scaled(slice->kv_heads, size), cols = all(width);
    uint32_t k_to = weft_range_count(q), v_to = k_to + weft_range_count(kv);

    add_vector(list, "input_layernorm.weight", WEFT_ATTENTION_NORM, width, all(width), 0);
    add_matrix(list, "self_attn.q_proj.weight", WEFT_QKV,
               (struct part){.row_count = q_count, .col_count = width, .rows = q, .cols = cols});
    add_matrix(list, "self_attn.k_proj.weight", WEFT_QKV,
               (struct part){.row_count = kv_count, .col_count = width, .rows = kv, .cols = cols, .row_to = k_to});
    add_matrix(list, "self_attn.v_proj.weight", WEFT_QKV,
               (struct part){.row_count = kv_count, .col_count = width, .rows = kv, .cols = cols, .row_to = v_to});
    add_matrix(list, "self_attn.o_proj.weight", WEFT_ATTENTION_OUT,
               (struct part){.row_count = width, .col_count = q_count, .rows = cols, .cols = q});
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

static void list_ffn(const struct weft_model_config *config, const struct weft_slice *slice, struct part_list *list)
{
    uint32_t width = config->width, count = config->ffn_width;
    struct weft_range ffn = slice->ffn, cols = all(width);
    uint32_t up_to = weft_range_count(ffn);

    add_vector(list, "post_attention_layernorm.weight", WEFT_FFN_NORM, width, all(width), 0);
    add_matrix(list, "mlp.gate_proj.weight", WEFT_GATE_UP,
               (struct part){.row_count = count, .col_count = width, .rows = ffn, .cols = cols});
    add_matrix(list, "mlp.up_proj.weight", WEFT_GATE_UP,
               (struct part){.row_count = count, .col_count = width, .rows = ffn, .cols = cols, .row_to = up_to});
    add_matrix(list, "mlp.down_proj.weight", WEFT_DOWN,
               (struct part){.row_count = width, .col_count = count, .rows = cols, .cols = ffn});
    if (config->has_mlp_bias) {
        add_vector(list, "mlp.gate_proj.bias", WEFT_GATE_UP_BIAS, count, ffn, 0);
        add_vector(list, "mlp.up_proj.bias", WEFT_GATE_UP_BIAS, count, ffn, up_to);
        add_vector(list, "mlp.down_proj.bias", WEFT_DOWN_BIAS, width, all(width), 0);
    }
}

/* Every tensor of a layer. */
static void list_layer(const struct weft_model_config *config, const struct weft_slice *slice, struct part_list *list)
{
    list->count = 0;
    list_attention(config, slice, list);
    list_ffn(config, slice, list);
}

enum global { GLOBAL_EMBEDDING, GLOBAL_HEAD, GLOBAL_NORM };
static const char *const global_names[GLOBAL_PART_COUNT] = {"embed_tokens.weight", "lm_head.weight", "norm.weight"};

static struct part global_part(const struct weft_model_config *config, const struct weft_slice *slice,
                               enum global global)
{
    if (global == GLOBAL_NORM) {
        return (struct part){
            .row_count = config->width, .rows = all(config->width), .cols = all(1), .matrix = -1, .vector = 0};
    }
    return (struct part){.row_count = config->vocab_size,
                         .col_count = config->width,
                         .rows = slice->vocab,
                         .cols = all(config->width),
                         .matrix = 0,
                         .vector = -1};
}

/* ---- finding and checking tensors ---- */

/* "model.NAME", "NAME"; NULL when there is neither. */
static const struct weft_tensor *find(const struct weft_checkpoint *checkpoint, const char *name)
{
    char full[NAME_SIZE + 8];

    snprintf(full, sizeof(full), "model.%s", name);
    const struct weft_tensor *tensor = weft_checkpoint_find(checkpoint, full);
    return tensor != NULL ? tensor : weft_checkpoint_find(checkpoint, name);
}

static void layer_name(uint32_t layer, const char *suffix, char *name)
{
    snprintf(name, NAME_SIZE, "layers.%u.%s", layer, suffix);
}

static enum weft_status missing(const struct weft_checkpoint *checkpoint, const char *name)
{
    char full[NAME_SIZE + 8];

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
static enum weft_status check(const struct weft_checkpoint *checkpoint, const struct weft_tensor *tensor,
                              const struct part *part, enum weft_dtype *dtype_out)
{
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
    if (weft_tensor_dtype(tensor, dtype_out) != 0) {
        weft_log(WEFT_LOG_ERROR, where, "%s: %s: element type %s is not supported: F32, F16, BF16 are",
                 weft_checkpoint_file(checkpoint, tensor->file), tensor->name, tensor->dtype);
        return WEFT_ERR_UNSUPPORTED;
    }
    return WEFT_OK;
}

static enum weft_status locate(const struct weft_checkpoint *checkpoint, const char *name, const struct part *part,
                               const struct weft_tensor **tensor_out, enum weft_dtype *dtype_out)
{
    const struct weft_tensor *tensor = find(checkpoint, name);

    if (tensor == NULL) {
        return missing(checkpoint, name);
    }
    *tensor_out = tensor;
    return check(checkpoint, tensor, part, dtype_out);
}

static enum weft_status resolve_layer(const struct weft_checkpoint *checkpoint, const struct part_list *list,
                                      uint32_t layer, struct weft_model_config *config)
{
    enum weft_dtype *const to[WEFT_LAYER_MATRIX_COUNT] = {
        [WEFT_QKV] = &config->dtypes.qkv[layer],
        [WEFT_ATTENTION_OUT] = &config->dtypes.attention_out[layer],
        [WEFT_GATE_UP] = &config->dtypes.gate_up[layer],
        [WEFT_DOWN] = &config->dtypes.down[layer],
    };
    bool is_seen[WEFT_LAYER_MATRIX_COUNT] = {false};
    const struct weft_tensor *tensor;
    enum weft_dtype dtype;
    char name[NAME_SIZE];

    for (uint32_t i = 0; i < list->count; i++) {
        const struct part *part = &list->parts[i];
        layer_name(layer, part->suffix, name);
        WEFT_TRY(locate(checkpoint, name, part, &tensor, &dtype));
        if (part->matrix >= 0) {
            *to[part->matrix] = !is_seen[part->matrix] || *to[part->matrix] == dtype ? dtype : WEFT_F32;
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
    struct part part = global_part(config, &slice, GLOBAL_EMBEDDING);
    struct part norm = global_part(config, &slice, GLOBAL_NORM);
    const struct weft_tensor *embedding = find(checkpoint, global_names[GLOBAL_EMBEDDING]);
    const struct weft_tensor *head = find(checkpoint, global_names[GLOBAL_HEAD]);
    const struct weft_tensor *tensor;
    enum weft_dtype dtype;

    if (embedding == NULL && head == NULL) {
        return missing(checkpoint, global_names[GLOBAL_EMBEDDING]);
    }
    WEFT_TRY(check(checkpoint, embedding != NULL ? embedding : head, &part, &config->dtypes.embedding));
    WEFT_TRY(check(checkpoint, head != NULL ? head : embedding, &part, &config->dtypes.head));
    config->is_tied = embedding == NULL || head == NULL;
    return locate(checkpoint, global_names[GLOBAL_NORM], &norm, &tensor, &dtype);
}

enum weft_status weft_weights_resolve(const struct weft_checkpoint *checkpoint, struct weft_model_config *config)
{
    struct weft_slice slice = whole_slice(config);
    struct part_list list;

    WEFT_TRY(resolve_ends(checkpoint, config));
    list_layer(config, &slice, &list);
    for (uint32_t i = 0; i < config->layer_count; i++) {
        WEFT_TRY(resolve_layer(checkpoint, &list, i, config));
    }
    config->parameter_count = weft_weights_parameter_count(config);
    return WEFT_OK;
}

static uint64_t part_parameters(const struct part *part)
{
    return (uint64_t)part->row_count * (part->col_count == 0 ? 1 : part->col_count);
}

uint64_t weft_weights_parameter_count(const struct weft_model_config *config)
{
    struct weft_slice slice = whole_slice(config);
    struct part embedding = global_part(config, &slice, GLOBAL_EMBEDDING);
    struct part_list list;
    uint64_t count = 0;

    list_layer(config, &slice, &list);
    for (uint32_t i = 0; i < list.count; i++) {
        count += part_parameters(&list.parts[i]);
    }
    return count * config->layer_count + part_parameters(&embedding) * (config->is_tied ? 1 : 2) + config->width;
}

/* ---- memory ---- */

/* A matrix's description together with the arrays it points to. */
struct matrix_plan {
    struct weft_matrix_desc desc;
    struct weft_range leaves[WEFT_LEAF_COUNT_MAX];
    struct weft_tree_add adds[WEFT_LEAF_COUNT_MAX];
};

/* Columns cut at the rank's leaves: query heads for the attention output, 32-column blocks for FFN down. */
static void plan_leaves(const struct weft_model_config *config, const struct weft_slice *slice, bool is_attention,
                        struct matrix_plan *plan)
{
    struct weft_range inputs[WEFT_LEAF_COUNT_MAX];
    uint32_t count = weft_range_count(slice->leaves);
    uint32_t first = is_attention ? slice->heads.begin : slice->ffn.begin;
    uint32_t factor = is_attention ? config->head_size : 1;

    for (uint32_t i = 0; i < count; i++) {
        inputs[i] = (struct weft_range){slice->leaves.begin + i, slice->leaves.begin + i + 1};
        struct weft_range units = is_attention ? weft_slice_heads(config, slice->leaf_count, inputs[i])
                                               : weft_slice_ffn(config, slice->leaf_count, inputs[i]);
        plan->leaves[i].begin = (units.begin - first) * factor;
        plan->leaves[i].end = (units.end - first) * factor;
    }
    plan->desc.leaves = plan->leaves;
    plan->desc.leaf_count = count;
    plan->desc.adds = plan->adds;
    plan->desc.add_count = (uint32_t)weft_tree_adds(slice->leaf_count, inputs, count, plan->adds);
}

static void plan_matrix(const struct weft_model_config *config, const struct weft_slice *slice, uint32_t layer,
                        enum weft_layer_matrix matrix, struct matrix_plan *plan)
{
    const struct weft_model_dtypes *dtypes = &config->dtypes;
    uint32_t heads = weft_range_count(slice->heads), kv_heads = weft_range_count(slice->kv_heads);
    uint32_t ffn = weft_range_count(slice->ffn), width = config->width;

    *plan = (struct matrix_plan){0};
    switch (matrix) {
    case WEFT_QKV:
        plan->desc = (struct weft_matrix_desc){
            .dtype = dtypes->qkv[layer], .row_count = (heads + 2 * kv_heads) * config->head_size, .col_count = width};
        break;
    case WEFT_ATTENTION_OUT:
        plan->desc = (struct weft_matrix_desc){
            .dtype = dtypes->attention_out[layer], .row_count = width, .col_count = heads * config->head_size};
        plan_leaves(config, slice, true, plan);
        break;
    case WEFT_GATE_UP:
        plan->desc =
            (struct weft_matrix_desc){.dtype = dtypes->gate_up[layer], .row_count = 2 * ffn, .col_count = width};
        break;
    case WEFT_DOWN:
        plan->desc = (struct weft_matrix_desc){.dtype = dtypes->down[layer], .row_count = width, .col_count = ffn};
        plan_leaves(config, slice, false, plan);
        break;
    case WEFT_LAYER_MATRIX_COUNT: break;
    }
}

static struct weft_matrix_desc vocab_desc(const struct weft_model_config *config, const struct weft_slice *slice,
                                          enum weft_dtype dtype)
{
    return (struct weft_matrix_desc){
        .dtype = dtype, .row_count = weft_range_count(slice->vocab), .col_count = config->width};
}

static uint32_t aligned(uint32_t count)
{
    return (count + VECTOR_ALIGNMENT - 1) / VECTOR_ALIGNMENT * VECTOR_ALIGNMENT;
}

/* Elements of each vector of a layer on this rank, 0: none. */
static void vector_counts(const struct part_list *list, uint32_t counts[WEFT_LAYER_VECTOR_COUNT])
{
    memset(counts, 0, WEFT_LAYER_VECTOR_COUNT * sizeof(counts[0]));
    for (uint32_t i = 0; i < list->count; i++) {
        const struct part *part = &list->parts[i];
        if (part->vector >= 0) {
            counts[part->vector] = part->row_to + weft_range_count(part->rows);
        }
    }
}

/* f32 elements of all vectors of the model on this rank. */
static size_t vector_total(const struct weft_model_config *config, const struct weft_slice *slice)
{
    uint32_t counts[WEFT_LAYER_VECTOR_COUNT];
    struct part_list list;
    size_t total = 0;

    list_layer(config, slice, &list);
    vector_counts(&list, counts);
    for (int i = 0; i < WEFT_LAYER_VECTOR_COUNT; i++) {
        total += aligned(counts[i]);
    }
    return total * config->layer_count + aligned(config->width);
}

size_t weft_weights_size(const struct weft_device *device, const struct weft_model_config *config,
                         const struct weft_slice *slice)
{
    struct weft_matrix_desc embedding = vocab_desc(config, slice, config->dtypes.embedding);
    struct weft_matrix_desc head = vocab_desc(config, slice, config->dtypes.head);
    struct matrix_plan plan;
    size_t size = vector_total(config, slice) * sizeof(float) + weft_matrix_size(device, &embedding);

    if (!config->is_tied) {
        size += weft_matrix_size(device, &head);
    }
    for (uint32_t layer = 0; layer < config->layer_count; layer++) {
        for (int i = 0; i < WEFT_LAYER_MATRIX_COUNT; i++) {
            plan_matrix(config, slice, layer, (enum weft_layer_matrix)i, &plan);
            size += weft_matrix_size(device, &plan.desc);
        }
    }
    return size;
}

/* ---- loading ---- */

static enum weft_status open_layer(const struct weft_weights_args *args, uint32_t layer, struct weft_layer *out)
{
    struct matrix_plan plan;

    for (int i = 0; i < WEFT_LAYER_MATRIX_COUNT; i++) {
        plan_matrix(args->config, args->slice, layer, (enum weft_layer_matrix)i, &plan);
        WEFT_TRY(weft_matrix_open(args->device, &plan.desc, &out->matrices[i]));
    }
    return WEFT_OK;
}

/* Points every vector of the model into the one allocation. */
static void place_vectors(const struct weft_weights_args *args, struct weft_weights *weights)
{
    uint32_t counts[WEFT_LAYER_VECTOR_COUNT];
    struct part_list list;
    float *next = weights->vectors;

    list_layer(args->config, args->slice, &list);
    vector_counts(&list, counts);
    weights->norm = next;
    next += aligned(args->config->width);
    for (uint32_t layer = 0; layer < args->config->layer_count; layer++) {
        for (int i = 0; i < WEFT_LAYER_VECTOR_COUNT; i++) {
            weights->layers[layer].vectors[i] = counts[i] > 0 ? next : NULL;
            next += aligned(counts[i]);
        }
    }
}

static enum weft_status allocate(const struct weft_weights_args *args, struct weft_weights *weights)
{
    const struct weft_model_config *config = args->config;
    struct weft_matrix_desc embedding = vocab_desc(config, args->slice, config->dtypes.embedding);
    struct weft_matrix_desc head = vocab_desc(config, args->slice, config->dtypes.head);

    weights->layers = weft_arena_alloc(&weights->arena, config->layer_count, sizeof(weights->layers[0]));
    weights->vectors = weft_device_alloc(args->device, vector_total(config, args->slice) * sizeof(float));
    if (weights->layers == NULL || weights->vectors == NULL) {
        return WEFT_ERR_MEMORY;
    }
    place_vectors(args, weights);
    WEFT_TRY(weft_matrix_open(args->device, &embedding, &weights->embedding));
    if (config->is_tied) {
        weights->head = weights->embedding;
    } else {
        WEFT_TRY(weft_matrix_open(args->device, &head, &weights->head));
    }
    for (uint32_t i = 0; i < config->layer_count; i++) {
        WEFT_TRY(open_layer(args, i, &weights->layers[i]));
    }
    return WEFT_OK;
}

/* The read that brings a part of `tensor` to its place. */
static struct weft_read plan_read(const struct weft_tensor *tensor, enum weft_dtype from, const struct part *part)
{
    uint32_t width = part->col_count == 0 ? 1 : part->col_count;

    return (struct weft_read){
        .file = tensor->file,
        .from = from,
        .offset = tensor->offset + (uint64_t)part->rows.begin * width * weft_dtype_size(from),
        .row_count = weft_range_count(part->rows),
        .row_width = width,
        .col_begin = part->cols.begin,
        .col_count = weft_range_count(part->cols),
        .row_begin = part->row_to,
    };
}

static enum weft_dtype layer_dtype(const struct weft_model_config *config, uint32_t layer, int matrix)
{
    switch (matrix) {
    case WEFT_QKV: return config->dtypes.qkv[layer];
    case WEFT_ATTENTION_OUT: return config->dtypes.attention_out[layer];
    case WEFT_GATE_UP: return config->dtypes.gate_up[layer];
    default: return config->dtypes.down[layer];
    }
}

static enum weft_status plan_layer_reads(const struct weft_weights_args *args, const struct part_list *list,
                                         uint32_t layer, struct weft_layer *weights, struct weft_read *reads)
{
    const struct weft_tensor *tensor = NULL;
    enum weft_dtype from = WEFT_F32;
    char name[NAME_SIZE];

    for (uint32_t i = 0; i < list->count; i++) {
        const struct part *part = &list->parts[i];
        layer_name(layer, part->suffix, name);
        WEFT_TRY(locate(args->checkpoint, name, part, &tensor, &from));
        reads[i] = plan_read(tensor, from, part);
        if (part->matrix >= 0) {
            reads[i].matrix = weights->matrices[part->matrix];
            reads[i].to = layer_dtype(args->config, layer, part->matrix);
        } else if (reads[i].row_count > 0) {
            reads[i].vector = weights->vectors[part->vector] + part->row_to;
        }
    }
    return WEFT_OK;
}

static enum weft_status plan_global_reads(const struct weft_weights_args *args, const struct weft_weights *weights,
                                          struct weft_read *reads, size_t *count_out)
{
    bool is_head_alone = find(args->checkpoint, global_names[GLOBAL_EMBEDDING]) == NULL;
    size_t count = 0;

    for (int i = 0; i < GLOBAL_PART_COUNT; i++) {
        struct part part = global_part(args->config, args->slice, (enum global)i);
        const struct weft_tensor *tensor = NULL;
        enum weft_dtype from = WEFT_F32;
        bool is_embedding = i == GLOBAL_EMBEDDING;
        if (i == GLOBAL_HEAD && args->config->is_tied) {
            continue;
        }
        const char *name = is_embedding && is_head_alone ? global_names[GLOBAL_HEAD] : global_names[i];
        WEFT_TRY(locate(args->checkpoint, name, &part, &tensor, &from));
        reads[count] = plan_read(tensor, from, &part);
        if (i == GLOBAL_NORM) {
            reads[count].vector = weights->norm;
        } else {
            reads[count].matrix = is_embedding ? weights->embedding : weights->head;
            reads[count].to = from;
        }
        count++;
    }
    *count_out = count;
    return WEFT_OK;
}

static enum weft_status plan_reads(const struct weft_weights_args *args, struct weft_weights *weights,
                                   struct weft_read *reads, size_t *count_out)
{
    struct part_list list;
    size_t count;

    WEFT_TRY(plan_global_reads(args, weights, reads, &count));
    list_layer(args->config, args->slice, &list);
    for (uint32_t i = 0; i < args->config->layer_count; i++) {
        WEFT_TRY(plan_layer_reads(args, &list, i, &weights->layers[i], reads + count));
        count += list.count;
    }
    *count_out = count;
    return WEFT_OK;
}

static enum weft_status load(const struct weft_weights_args *args, struct weft_weights *weights,
                             struct weft_reader_stats *stats_out)
{
    struct weft_arena arena = {0}; /* of this call: the list of reads */
    size_t count_max = (size_t)args->config->layer_count * PART_COUNT_MAX + GLOBAL_PART_COUNT;
    struct weft_reader_args reader = {.device = args->device,
                                      .checkpoint = args->checkpoint,
                                      .reads = weft_arena_alloc(&arena, count_max, sizeof(struct weft_read)),
                                      .progress = args->progress,
                                      .progress_context = args->progress_context};
    enum weft_status status = WEFT_ERR_MEMORY;

    if (reader.reads != NULL) {
        status = plan_reads(args, weights, reader.reads, &reader.read_count);
    }
    if (status == WEFT_OK) {
        status = weft_reader_run(&reader, stats_out);
    }
    weft_arena_fini(&arena);
    return status;
}

enum weft_status weft_weights_open(const struct weft_weights_args *args, struct weft_weights *out,
                                   struct weft_reader_stats *stats_out)
{
    struct weft_weights weights = {0};
    enum weft_status status = allocate(args, &weights);

    if (status == WEFT_OK) {
        status = load(args, &weights, stats_out);
    }
    if (status != WEFT_OK) {
        weft_weights_close(args->device, args->config, &weights);
        return status;
    }
    *out = weights;
    return WEFT_OK;
}

static void close_matrix(struct weft_device *device, struct weft_matrix **matrix)
{
    if (*matrix != NULL) {
        weft_matrix_close(device, matrix);
    }
}

void weft_weights_close(struct weft_device *device, const struct weft_model_config *config,
                        struct weft_weights *weights)
{
    for (uint32_t i = 0; weights->layers != NULL && i < config->layer_count; i++) {
        for (int j = 0; j < WEFT_LAYER_MATRIX_COUNT; j++) {
            close_matrix(device, &weights->layers[i].matrices[j]);
        }
    }
    if (weights->head != weights->embedding) {
        close_matrix(device, &weights->head);
    }
    close_matrix(device, &weights->embedding);
    weft_device_free(device, weights->vectors);
    weft_arena_fini(&weights->arena);
    *weights = (struct weft_weights){0};
}
