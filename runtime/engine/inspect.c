/* weft_engine_inspect(): what a model is and what each rank would hold, without ranks and without weights. */
#include <stdio.h>
#include <string.h>

#include "base/arena.h"
#include "engine/deal.h"
#include "engine/identity.h"
#include "engine/options.h"
#include "engine/pages.h"
#include "engine/scheduler.h"
#include "model/config.h"
#include "model/model.h"
#include "model/quantise.h"
#include "weft/device.h"
#include "weft/log.h"
#include "weft/weft.h"

#ifndef WEFT_VERSION
#error "WEFT_VERSION comes from CMake"
#endif

const char *weft_version(void)
{
    return WEFT_VERSION;
}

static void fill_summary(const struct weft_model_config *config, const struct weft_engine_options *options,
                         uint32_t rank_count, struct weft_model_summary *summary)
{
    *summary = (struct weft_model_summary){.parameter_count = config->parameter_count,
                                           .layer_count = config->layer_count,
                                           .width = config->width,
                                           .head_count = config->head_count,
                                           .kv_head_count = config->kv_head_count,
                                           .head_size = config->head_size,
                                           .ffn_width = config->ffn_width,
                                           .vocab_size = config->vocab_size,
                                           .context_length = config->context_length,
                                           .leaf_count = options->leaf_count,
                                           .rank_count = rank_count,
                                           .scale_cols = config->fp8.block_cols};
    snprintf(summary->architecture, sizeof(summary->architecture), "%s", config->architecture);
    snprintf(summary->weight_dtype, sizeof(summary->weight_dtype), "%s",
             weft_dtype_name(weft_quantise_layer(config->quantise, config->dtype)));
    _Static_assert(sizeof(summary->weight_text) == WEFT_WEIGHTS_TEXT_SIZE, "room for the text");
    (void)weft_weights_text(config, summary->weight_text);
}

/* Without kv_token_count: one request's whole context. */
static uint32_t inspected_pages(const struct weft_model_config *config, const struct weft_engine_options *options)
{
    uint32_t context = options->context_length > 0 ? options->context_length : config->context_length;

    return weft_pages_for(options->kv_token_count > 0 ? options->kv_token_count : context);
}

static void fill_rank(const struct weft_device *device, const struct weft_model_config *config,
                      const struct weft_engine_options *options, struct weft_range leaves,
                      struct weft_rank_summary *rank)
{
    const struct weft_scheduler_limits scheduler_limits = weft_scheduler_limits_of(options, config->context_length);
    const struct weft_model_limits limits = {.token_count_max = weft_scheduler_token_max(&scheduler_limits),
                                             .logit_row_max = options->sequence_count_max,
                                             .candidate_max = options->candidate_count,
                                             .page_count = inspected_pages(config, options),
                                             .position_max = options->context_length,
                                             .kv_dtype = weft_kv_dtype(options)};
    struct weft_slice slice;
    struct weft_model_memory memory;

    weft_slice_init(config, options->leaf_count, leaves, &slice);
    weft_model_memory(device, config, &slice, &limits, &memory);
    *rank = (struct weft_rank_summary){.leaf_begin = leaves.begin,
                                       .leaf_end = leaves.end,
                                       .head_begin = slice.heads.begin,
                                       .head_end = slice.heads.end,
                                       .weight_size = memory.weights,
                                       .kv_size = memory.kv_cache,
                                       .activation_size = memory.activations,
                                       .kv_token_size = memory.kv_page / WEFT_PAGE_POSITIONS};
}

static enum weft_status inspect(const struct weft_engine_options *options, struct weft_model_summary *summary_out,
                                struct weft_rank_summary *ranks_out, uint32_t capacity)
{
    struct weft_model_config config;
    struct weft_range leaves[WEFT_RANK_COUNT_MAX];
    const struct weft_device_options device_options = {
        .kind = options->device, .thread_count = 1, .module = options->cuda_module};
    struct weft_device *device = NULL;
    uint32_t rank_count = options->rank_count == 0 ? 1 : options->rank_count;

    WEFT_TRY(weft_model_folder_check(options->model));
    WEFT_TRY(weft_model_config_read(options->model, &config));
    config.quantise = weft_options_quantise(options);
    WEFT_TRY(weft_deal_leaves(options->leaf_count, rank_count, options->shares, options->share_count, leaves));
    WEFT_TRY(weft_device_open(&device_options, &device));
    for (uint32_t r = 0; r < rank_count && r < capacity; r++) {
        fill_rank(device, &config, options, leaves[r], &ranks_out[r]);
    }
    weft_device_close(&device);
    fill_summary(&config, options, rank_count, summary_out);
    return WEFT_OK;
}

enum weft_status weft_engine_inspect(const struct weft_engine_options *options, struct weft_model_summary *summary_out,
                                     struct weft_rank_summary *ranks_out, uint32_t capacity)
{
    struct weft_arena arena = {0};
    struct weft_engine_options resolved;
    enum weft_status status = weft_options_resolve(options, &arena, &resolved);

    if (status == WEFT_OK) {
        status = inspect(&resolved, summary_out, ranks_out, capacity);
    }
    weft_arena_fini(&arena);
    return status;
}
