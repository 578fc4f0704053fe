/* Opening and closing a model on one rank, and its memory: known before anything is allocated, by the same sums. */
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

#include "model/model_impl.h"
#include "weft/log.h"

static const char where[] = "model/model";

enum { ACTIVATION_COUNT = 8, ALIGNMENT = 64 };

/* A buffer of a step: where its pointer goes, and how many floats it has. */
struct activation {
    float **to;
    size_t count;
};

static void list_activations(const struct weft_model_config *config, const struct weft_slice *slice,
                             const struct weft_model_limits *limits, struct weft_activations *activations,
                             struct activation list[ACTIVATION_COUNT])
{
    size_t tokens = limits->token_count_max, width = config->width, size = config->head_size;
    size_t heads = weft_range_count(slice->heads), kv_heads = weft_range_count(slice->kv_heads);
    size_t ffn = weft_range_count(slice->ffn), vocab = weft_range_count(slice->vocab);
    const struct activation all[ACTIVATION_COUNT] = {
        {&activations->x, tokens * width},
        {&activations->norm, tokens * width},
        {&activations->sum, tokens * width},
        {&activations->qkv, tokens * (heads + 2 * kv_heads) * size},
        {&activations->heads, tokens * heads * size},
        {&activations->ffn, tokens * ffn},
        {&activations->angles, tokens * size},
        {&activations->logits, limits->logit_row_max * vocab},
    };

    memcpy(list, all, sizeof(all));
}

/* Bytes of one buffer; one line at least, so that a rank without heads still has valid pointers. */
static size_t activation_size(const struct activation *activation)
{
    size_t size = activation->count * sizeof(float);

    return size == 0 ? ALIGNMENT : (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

uint32_t weft_model_position_max(const struct weft_model_config *config, const struct weft_model_limits *limits)
{
    return limits->position_max > 0 ? limits->position_max : config->context_length;
}

static struct weft_kv_desc kv_desc(const struct weft_model_config *config, const struct weft_slice *slice,
                                   const struct weft_model_limits *limits)
{
    uint32_t heads = weft_range_count(slice->heads), group_size = config->head_count / config->kv_head_count;

    return (struct weft_kv_desc){.dtype = limits->kv_dtype,
                                 .layer_count = config->layer_count,
                                 .kv_head_count = weft_range_count(slice->kv_heads),
                                 .head_size = config->head_size,
                                 .page_count = limits->page_count,
                                 .token_max = limits->token_count_max,
                                 .sequence_max = limits->token_count_max,
                                 .position_max = weft_model_position_max(config, limits),
                                 .group_head_max = heads < group_size ? heads : group_size};
}

/* Of every sum of a rank with that slice. */
static uint32_t node_count_of(const struct weft_slice *slice)
{
    struct weft_range nodes[WEFT_TREE_NODE_MAX];

    return (uint32_t)weft_tree_nodes(slice->leaf_count, slice->leaves, nodes);
}

struct weft_graphs_desc weft_model_graphs_desc(const struct weft_model_config *config, const struct weft_slice *slice,
                                               const struct weft_model_limits *limits, const struct weft_kv_cache *kv)
{
    uint32_t position_max = weft_model_position_max(config, limits);

    return (struct weft_graphs_desc){.kv = kv,
                                     .row_max = limits->logit_row_max,
                                     .embed_max = node_count_of(slice) * limits->logit_row_max,
                                     .page_max = (position_max + WEFT_PAGE_POSITIONS - 1) / WEFT_PAGE_POSITIONS,
                                     .part_max = 2 * config->layer_count + 2,
                                     .is_shared = slice->leaves.begin > 0 || slice->leaves.end < slice->leaf_count};
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* What operations share, page_count is not looked at. */
static size_t scratch_size(const struct weft_device *device, const struct weft_model_config *config,
                           const struct weft_slice *slice, const struct weft_model_limits *limits)
{
    const struct weft_kv_desc kv = kv_desc(config, slice, limits);
    const struct weft_candidates_args candidates = {.row_count = limits->logit_row_max,
                                                    .width = weft_range_count(slice->vocab),
                                                    .leaf_count = weft_range_count(slice->leaves),
                                                    .count = limits->candidate_max};

    return larger(weft_weights_scratch_size(device, config, slice),
                  larger(weft_kv_cache_scratch_size(device, &kv), weft_candidates_scratch_size(device, &candidates)));
}

void weft_model_memory(const struct weft_device *device, const struct weft_model_config *config,
                       const struct weft_slice *slice, const struct weft_model_limits *limits,
                       struct weft_model_memory *memory_out)
{
    struct weft_kv_desc one = kv_desc(config, slice, limits), all = one;
    struct weft_activations none;
    struct activation list[ACTIVATION_COUNT];
    const struct weft_graphs_desc graphs = weft_model_graphs_desc(config, slice, limits, NULL);

    one.page_count = 1;
    list_activations(config, slice, limits, &none, list);
    *memory_out = (struct weft_model_memory){.weights = weft_weights_size(device, config, slice),
                                             .buffers = weft_device_own_size(device) +
                                                        scratch_size(device, config, slice, limits) +
                                                        weft_graphs_size(device, &graphs),
                                             .kv_cache = weft_kv_cache_size(device, &all),
                                             .kv_page = weft_kv_cache_size(device, &one)};
    for (int i = 0; i < ACTIVATION_COUNT; i++) {
        memory_out->activations += activation_size(&list[i]);
    }
}

size_t weft_model_sum_count_max(const struct weft_model_config *config, const struct weft_model_limits *limits)
{
    return (size_t)limits->token_count_max * config->width;
}

static enum weft_status open_activations(struct weft_model *model)
{
    struct activation list[ACTIVATION_COUNT];

    list_activations(&model->config, &model->slice, &model->limits, &model->activations, list);
    for (int i = 0; i < ACTIVATION_COUNT; i++) {
        *list[i].to = weft_device_alloc(model->device, activation_size(&list[i]));
        if (*list[i].to == NULL) {
            return WEFT_ERR_MEMORY;
        }
    }
    return WEFT_OK;
}

static void close_activations(struct weft_model *model)
{
    struct activation list[ACTIVATION_COUNT];

    list_activations(&model->config, &model->slice, &model->limits, &model->activations, list);
    for (int i = 0; i < ACTIVATION_COUNT; i++) {
        weft_device_free(model->device, *list[i].to);
    }
}

static enum weft_status open_host_memory(struct weft_model *model, const struct weft_slice *slices)
{
    model->slices = calloc(model->rank_count, sizeof(model->slices[0]));
    model->rows = calloc((size_t)model->node_count * model->limits.token_count_max, sizeof(model->rows[0]));
    if (model->slices == NULL || model->rows == NULL) {
        weft_log(WEFT_LOG_ERROR, where, "out of memory for %u ranks and %u tokens", model->rank_count,
                 model->limits.token_count_max);
        return WEFT_ERR_MEMORY;
    }
    memcpy(model->slices, slices, model->rank_count * sizeof(model->slices[0]));
    return WEFT_OK;
}

/* The checkpoint may have changed since the configuration was read; what memory was planned for must still hold. */
static enum weft_status open_checkpoint(const struct weft_model *model, const char *folder,
                                        struct weft_checkpoint **checkpoint_out)
{
    struct weft_model_config config = model->config;

    WEFT_TRY(weft_checkpoint_open(folder, checkpoint_out));
    WEFT_TRY(weft_tensors_resolve(*checkpoint_out, &config));
    if (config.is_tied != model->config.is_tied ||
        memcmp(&config.dtypes, &model->config.dtypes, sizeof(config.dtypes)) != 0) {
        weft_log(WEFT_LOG_ERROR, where, "%s: the tensors' types are not those the configuration was read with", folder);
        return WEFT_ERR_STATE;
    }
    return WEFT_OK;
}

static enum weft_status open_weights(struct weft_model *model, const struct weft_model_options *options)
{
    struct weft_checkpoint *checkpoint = NULL;
    enum weft_status status = WEFT_OK;

    if (options->stream == NULL || options->rank == 0) {
        status = open_checkpoint(model, options->folder, &checkpoint);
    }
    if (status == WEFT_OK) {
        const struct weft_weights_args args = {.device = model->device,
                                               .checkpoint = checkpoint,
                                               .config = &model->config,
                                               .slices = model->slices,
                                               .rank = model->rank,
                                               .rank_count = model->rank_count,
                                               .comm = model->rank_count > 1 ? options->stream : NULL,
                                               .progress = options->progress,
                                               .progress_context = options->progress_context};
        status = weft_weights_open(&args, &model->weights, &model->load);
    }
    weft_checkpoint_close(&checkpoint);
    return status;
}

static enum weft_status open_parts(struct weft_model *model, const struct weft_model_options *options)
{
    struct weft_kv_desc desc = kv_desc(&model->config, &model->slice, &model->limits);

    WEFT_TRY(open_host_memory(model, options->slices));
    WEFT_TRY(
        weft_device_reserve(model->device, scratch_size(model->device, &model->config, &model->slice, &model->limits)));
    WEFT_TRY(open_weights(model, options));
    WEFT_TRY(weft_kv_cache_open(model->device, &desc, &model->kv));
    WEFT_TRY(open_activations(model));
    return weft_device_sync(model->device); /* what went wrong on the way shows now, not in the first step */
}

enum weft_status weft_model_open(const struct weft_model_options *options, struct weft_model **out)
{
    struct weft_model *model = calloc(1, sizeof(*model));

    if (model == NULL) {
        weft_log(WEFT_LOG_ERROR, where, "%s: out of memory", options->folder);
        return WEFT_ERR_MEMORY;
    }
    model->config = *options->config;
    model->slice = options->slices[options->rank];
    model->node_count = node_count_of(&model->slice);
    model->rank = options->rank;
    model->rank_count = options->rank_count;
    model->limits = options->limits;
    model->device = options->device;
    enum weft_status status = open_parts(model, options);
    if (status != WEFT_OK) {
        weft_model_close(&model);
        return status;
    }
    *out = model;
    return WEFT_OK;
}

void weft_model_close(struct weft_model **model)
{
    struct weft_model *closed = *model;

    if (closed == NULL) {
        return;
    }
    weft_graphs_close(closed->device, &closed->graphs);
    close_activations(closed);
    if (closed->kv != NULL) {
        weft_kv_cache_close(closed->device, &closed->kv);
    }
    weft_weights_close(closed->device, &closed->config, &closed->weights);
    free(closed->slices);
    free(closed->rows);
    free(closed);
    *model = NULL;
}

void weft_model_load_stats(const struct weft_model *model, uint64_t *byte_count_out, uint64_t *time_ns_out)
{
    *byte_count_out = model->load.byte_count;
    *time_ns_out = model->load.time_ns;
}

const struct weft_slice *weft_model_slice(const struct weft_model *model)
{
    return &model->slice;
}
