/* Weights in memory: how large, allocated as what, and the reads that fill them. */
#include "model/weights.h"

#include <string.h>

#include "model/quantise.h"
#include "model/slice.h"
#include "model/stream.h"
#include "model/tensors.h"

/* Vectors begin on 64-byte lines. */
enum { VECTOR_ALIGNMENT = 16 };

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
    struct weft_range inputs[WEFT_LEAF_COUNT_MAX] = {{0, 0}};
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

/* Type of the rows that are written to a matrix of a layer, and to the embedding or the head. */
static enum weft_dtype layer_source(const struct weft_model_config *config, uint32_t layer,
                                    enum weft_layer_matrix matrix)
{
    const struct weft_model_dtypes *dtypes = &config->dtypes;

    switch (matrix) {
    case WEFT_QKV: return weft_quantise_source(config, dtypes->qkv[layer]);
    case WEFT_ATTENTION_OUT: return weft_quantise_source(config, dtypes->attention_out[layer]);
    case WEFT_GATE_UP: return weft_quantise_source(config, dtypes->gate_up[layer]);
    default: return weft_quantise_source(config, dtypes->down[layer]);
    }
}

static enum weft_dtype end_source(const struct weft_model_config *config, bool is_embedding)
{
    return weft_quantise_source(config, is_embedding ? config->dtypes.embedding : config->dtypes.head);
}

/* How the scales of an FP8 matrix lie whose columns begin at `first` of the tensors'. */
static void plan_scales(const struct weft_model_config *config, uint32_t first, struct weft_matrix_desc *desc)
{
    if (desc->dtype == WEFT_F8_E4M3 && config->fp8.block_cols != 0) {
        desc->scale_cols = config->fp8.block_cols;
        desc->scale_phase = first % config->fp8.block_cols;
    }
}

static void plan_matrix(const struct weft_model_config *config, const struct weft_slice *slice, uint32_t layer,
                        enum weft_layer_matrix matrix, struct matrix_plan *plan)
{
    uint32_t heads = weft_range_count(slice->heads), kv_heads = weft_range_count(slice->kv_heads);
    uint32_t ffn = weft_range_count(slice->ffn), width = config->width, first = 0;

    *plan = (struct matrix_plan){0};
    switch (matrix) {
    case WEFT_QKV:
        plan->desc =
            (struct weft_matrix_desc){.row_count = (heads + 2 * kv_heads) * config->head_size, .col_count = width};
        break;
    case WEFT_ATTENTION_OUT:
        plan->desc = (struct weft_matrix_desc){.row_count = width, .col_count = heads * config->head_size};
        plan_leaves(config, slice, true, plan);
        first = slice->heads.begin * config->head_size;
        break;
    case WEFT_GATE_UP:
        plan->desc = (struct weft_matrix_desc){.row_count = 2 * ffn, .col_count = width, .is_gated = true};
        break;
    case WEFT_DOWN:
        plan->desc = (struct weft_matrix_desc){.row_count = width, .col_count = ffn};
        plan_leaves(config, slice, false, plan);
        first = slice->ffn.begin;
        break;
    case WEFT_LAYER_MATRIX_COUNT: break;
    }
    plan->desc.source = layer_source(config, layer, matrix);
    plan->desc.dtype = weft_quantise_layer(config->quantise, plan->desc.source);
    plan_scales(config, first, &plan->desc);
}

/* Of the embedding or the head. */
static struct weft_matrix_desc vocab_desc(const struct weft_model_config *config, const struct weft_slice *slice,
                                          bool is_embedding)
{
    enum weft_dtype source = end_source(config, is_embedding);

    struct weft_matrix_desc desc = {.dtype = weft_quantise_end(config->quantise, source),
                                    .source = source,
                                    .row_count = weft_range_count(slice->vocab),
                                    .col_count = config->width};

    plan_scales(config, 0, &desc);
    return desc;
}

static uint32_t aligned(uint32_t count)
{
    return (count + VECTOR_ALIGNMENT - 1) / VECTOR_ALIGNMENT * VECTOR_ALIGNMENT;
}

/* Elements of each vector of a layer on this rank, 0: none. */
static void vector_counts(const struct weft_part_list *list, uint32_t counts[WEFT_LAYER_VECTOR_COUNT])
{
    memset(counts, 0, WEFT_LAYER_VECTOR_COUNT * sizeof(counts[0]));
    for (uint32_t i = 0; i < list->count; i++) {
        const struct weft_part *part = &list->parts[i];
        if (part->vector >= 0) {
            counts[part->vector] = part->row_to + weft_range_count(part->rows);
        }
    }
}

/* f32 elements of all vectors of the model on this rank. */
static size_t vector_total(const struct weft_model_config *config, const struct weft_slice *slice)
{
    uint32_t counts[WEFT_LAYER_VECTOR_COUNT];
    struct weft_part_list list;
    size_t total = 0;

    weft_part_list_layer(config, slice, &list);
    vector_counts(&list, counts);
    for (int i = 0; i < WEFT_LAYER_VECTOR_COUNT; i++) {
        total += aligned(counts[i]);
    }
    return total * config->layer_count + aligned(config->width);
}

size_t weft_weights_size(const struct weft_device *device, const struct weft_model_config *config,
                         const struct weft_slice *slice)
{
    struct weft_matrix_desc embedding = vocab_desc(config, slice, true);
    struct weft_matrix_desc head = vocab_desc(config, slice, false);
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

size_t weft_weights_scratch_size(const struct weft_device *device, const struct weft_model_config *config,
                                 const struct weft_slice *slice)
{
    struct weft_matrix_desc vocab = vocab_desc(config, slice, true);
    struct matrix_plan plan;
    size_t most = weft_matrix_scratch_size(device, &vocab);

    if (!config->is_tied) {
        vocab = vocab_desc(config, slice, false);
        size_t size = weft_matrix_scratch_size(device, &vocab);
        most = size > most ? size : most;
    }
    for (uint32_t layer = 0; layer < config->layer_count; layer++) {
        for (int i = 0; i < WEFT_LAYER_MATRIX_COUNT; i++) {
            plan_matrix(config, slice, layer, (enum weft_layer_matrix)i, &plan);
            size_t size = weft_matrix_scratch_size(device, &plan.desc);
            most = size > most ? size : most;
        }
    }
    return most;
}

/* ---- loading ---- */

static enum weft_status open_layer(const struct weft_weights_args *args, uint32_t layer, struct weft_layer *out)
{
    struct matrix_plan plan;

    for (int i = 0; i < WEFT_LAYER_MATRIX_COUNT; i++) {
        plan_matrix(args->config, &args->slices[args->rank], layer, (enum weft_layer_matrix)i, &plan);
        WEFT_TRY(weft_matrix_open(args->device, &plan.desc, &out->matrices[i]));
    }
    return WEFT_OK;
}

/* Points every vector of the model into the one allocation. */
static void place_vectors(const struct weft_weights_args *args, struct weft_weights *weights)
{
    uint32_t counts[WEFT_LAYER_VECTOR_COUNT];
    struct weft_part_list list;
    float *next = weights->vectors;

    weft_part_list_layer(args->config, &args->slices[args->rank], &list);
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
    struct weft_matrix_desc embedding = vocab_desc(config, &args->slices[args->rank], true);
    struct weft_matrix_desc head = vocab_desc(config, &args->slices[args->rank], false);

    weights->layers = weft_arena_alloc(&weights->arena, config->layer_count, sizeof(weights->layers[0]));
    weights->vectors = weft_device_alloc(args->device, vector_total(config, &args->slices[args->rank]) * sizeof(float));
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

/*
 * The read that brings a part of a tensor to its place; without a tensor (this rank has no checkpoint) only the place
 * is known.
 */
static struct weft_read plan_read(const struct weft_stored *stored, const struct weft_part *part)
{
    const struct weft_tensor *tensor = stored->tensor;
    uint32_t width = part->col_count == 0 ? 1 : part->col_count;
    uint64_t before = (uint64_t)part->rows.begin * width * weft_element_size(stored->element);

    return (struct weft_read){
        .file = tensor == NULL ? 0 : tensor->file,
        .from = stored->element,
        .tensor = tensor,
        .scale = stored->scale,
        .tensor_row = part->rows.begin,
        .offset = (tensor == NULL ? 0 : tensor->offset) + before,
        .row_count = weft_range_count(part->rows),
        .row_width = width,
        .col_begin = part->cols.begin,
        .col_count = weft_range_count(part->cols),
        .row_begin = part->row_to,
    };
}

static enum weft_status locate(const struct weft_weights_args *args, const char *name, const struct weft_part *part,
                               struct weft_stored *out)
{
    *out = (struct weft_stored){.tensor = NULL};
    return args->checkpoint == NULL ? WEFT_OK : weft_tensor_locate(args->checkpoint, args->config, name, part, out);
}

static enum weft_status plan_layer_reads(const struct weft_weights_args *args, const struct weft_part_list *list,
                                         uint32_t layer, struct weft_layer *weights, struct weft_read *reads)
{
    struct weft_stored stored;
    char name[WEFT_TENSOR_NAME_SIZE];

    for (uint32_t i = 0; i < list->count; i++) {
        const struct weft_part *part = &list->parts[i];
        weft_tensor_layer_name(layer, part->suffix, name);
        WEFT_TRY(locate(args, name, part, &stored));
        reads[i] = plan_read(&stored, part);
        if (part->matrix >= 0) {
            reads[i].matrix = weights->matrices[part->matrix];
            reads[i].to = layer_source(args->config, layer, (enum weft_layer_matrix)part->matrix);
        } else if (reads[i].row_count > 0) {
            reads[i].vector = weights->vectors[part->vector] + part->row_to;
        }
    }
    return WEFT_OK;
}

static enum weft_status plan_global_reads(const struct weft_weights_args *args, const struct weft_weights *weights,
                                          struct weft_read *reads, size_t *count_out)
{
    bool is_head_alone =
        args->checkpoint != NULL && weft_tensor_find(args->checkpoint, weft_tensor_global_name(WEFT_EMBEDDING)) == NULL;
    size_t count = 0;

    for (int i = 0; i < WEFT_GLOBAL_COUNT; i++) {
        struct weft_part part = weft_part_global(args->config, &args->slices[args->rank], (enum weft_global)i);
        struct weft_stored stored;
        bool is_embedding = i == WEFT_EMBEDDING;
        if (i == WEFT_HEAD && args->config->is_tied) {
            continue;
        }
        const char *name = is_embedding && is_head_alone ? weft_tensor_global_name(WEFT_HEAD)
                                                         : weft_tensor_global_name((enum weft_global)i);
        WEFT_TRY(locate(args, name, &part, &stored));
        reads[count] = plan_read(&stored, &part);
        if (i == WEFT_NORM) {
            reads[count].vector = weights->norm;
        } else {
            reads[count].matrix = is_embedding ? weights->embedding : weights->head;
            reads[count].to = end_source(args->config, is_embedding);
        }
        count++;
    }
    *count_out = count;
    return WEFT_OK;
}

/* In the order of weft_tensor_part(). */
static enum weft_status plan_reads(const struct weft_weights_args *args, struct weft_weights *weights,
                                   struct weft_read *reads, size_t *count_out)
{
    struct weft_part_list list;
    size_t count;

    WEFT_TRY(plan_global_reads(args, weights, reads, &count));
    weft_part_list_layer(args->config, &args->slices[args->rank], &list);
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
    size_t count_max = (size_t)args->config->layer_count * WEFT_PART_COUNT_MAX + WEFT_GLOBAL_COUNT;
    struct weft_reader_args reader = {.device = args->device,
                                      .checkpoint = args->checkpoint,
                                      .fp8 = &args->config->fp8,
                                      .reads = weft_arena_alloc(&arena, count_max, sizeof(struct weft_read)),
                                      .progress = args->progress,
                                      .progress_context = args->progress_context};
    enum weft_status status = WEFT_ERR_MEMORY;

    if (reader.reads != NULL) {
        status = plan_reads(args, weights, reader.reads, &reader.read_count);
    }
    if (status == WEFT_OK && args->comm == NULL) {
        status = weft_reader_run(&reader, stats_out);
    } else if (status == WEFT_OK) {
        const struct weft_stream_args stream = {.reader = reader,
                                                .comm = args->comm,
                                                .config = args->config,
                                                .slices = args->slices,
                                                .rank = args->rank,
                                                .rank_count = args->rank_count};
        status = weft_stream_run(&stream, stats_out);
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
