/*
 * Memory of emulated GPUs: what the memory table says is what is taken, to the byte, all of it before the first step,
 * and no operation takes more scratch than it said.
 */
#include "harness.h"

#include <stdlib.h>
#include <string.h>

#include "../emulator/handle.h"
#include "../model/fp8_model.h"
#include "../model/support.h"
#include "base/size_text.h"
#include "model/model.h"
#include "model/model_impl.h"
#include "weft/device.h"
#include "weft/log.h"

static struct weft_emulated_handle gpu;

static void configure(void)
{
    struct weft_emulated_config config;

    gpu.config_init(&config);
    config.device_count = 3;
    gpu.configure(&config);
}

static struct weft_device *open_device(void)
{
    const struct weft_device_options options = {.kind = "cuda:0", .module = gpu.path, .thread_count = 1};
    struct weft_device *device = NULL;

    assert_int_equal(weft_device_open(&options, &device), WEFT_OK);
    return device;
}

/* Every rank's model on one GPU, one after the other. */
static void check_model(const char *folder, uint32_t rank_count, enum weft_quantise quantise,
                        const struct weft_model_limits *limits)
{
    struct weft_model_config config;
    struct weft_range leaves[8];
    struct weft_slice slices[8];

    assert_int_equal(weft_model_config_read(folder, &config), WEFT_OK);
    config.quantise = quantise;
    assert_int_equal(weft_tree_deal(8, rank_count, NULL, leaves), 0);
    for (uint32_t rank = 0; rank < rank_count; rank++) {
        weft_slice_init(&config, 8, leaves[rank], &slices[rank]);
    }
    for (uint32_t rank = 0; rank < rank_count; rank++) {
        struct weft_device *device = open_device();
        const struct weft_model_options options = {.folder = folder,
                                                   .config = &config,
                                                   .slices = slices,
                                                   .rank = rank,
                                                   .rank_count = rank_count,
                                                   .limits = *limits,
                                                   .device = device};
        struct weft_model_memory memory;
        struct weft_model *model = NULL;
        struct weft_graphs *graphs = NULL;

        weft_model_memory(device, &config, &slices[rank], limits, &memory);
        assert_int_equal(gpu.taken(0), weft_device_own_size(device));
        assert_int_equal(weft_model_open(&options, &model), WEFT_OK);
        const struct weft_graphs_desc desc = weft_model_graphs_desc(&config, &slices[rank], limits, model->kv);
        assert_int_equal(weft_graphs_open(device, &desc, &graphs), WEFT_OK);
        assert_int_equal(gpu.taken(0), memory.weights + memory.kv_cache + memory.activations + memory.buffers);
        weft_graphs_close(device, &graphs);
        weft_model_close(&model);
        weft_device_close(&device);
        assert_int_equal(gpu.taken(0), 0);
    }
}

/* With scratch of weights, of attention and of candidates in turn the largest. */
static void test_models_take_what_was_planned(void **state)
{
    static const struct weft_model_limits limits[] = {
        {.token_count_max = 40, .logit_row_max = 3, .candidate_max = 5, .page_count = 9},
        {.token_count_max = 40, .logit_row_max = 8, .candidate_max = 5, .page_count = 9, .position_max = 1 << 17},
        {.token_count_max = 99, .logit_row_max = 64, .candidate_max = 256, .page_count = 9, .position_max = 500}};
    static const char *const models[] = {"llama2", "qwen2", "qwen3", "mistral"};

    (void)state;
    configure();
    for (size_t m = 0; m < TEST_COUNT(models); m++) {
        for (size_t i = 0; i < TEST_COUNT(limits); i++) {
            check_model(golden_model(models[m]), i % 2 == 0 ? 1 : 3, m == 1 ? WEFT_QUANTISE_Q4_0 : WEFT_QUANTISE_NONE,
                        &limits[i]);
        }
    }
}

/* Per row, and in blocks that slices begin inside of. A layer takes about half of what it takes as bf16. */
static void test_fp8_takes_what_was_planned(void **state)
{
    static const struct weft_model_limits limits = {
        .token_count_max = 40, .logit_row_max = 3, .candidate_max = 5, .page_count = 9};
    static const struct fp8_form forms[] = {{.name = "rows",
                                             .golden = "qwen3",
                                             .config = "{\"quant_method\": \"fbgemm_fp8\"}",
                                             .ending = "_scale",
                                             .block_rows = 1,
                                             .scale_type = "F32",
                                             .scale_dims = 1,
                                             .has_ends = true},
                                            {.name = "blocks",
                                             .golden = "mistral",
                                             .config = "{\"quant_method\": \"fp8\", \"weight_block_size\": [64, 64]}",
                                             .ending = "_scale_inv",
                                             .block_rows = 64,
                                             .block_cols = 64,
                                             .scale_type = "F32",
                                             .has_ends = true}};
    char fp8[4096], reference[4096];

    (void)state;
    configure();
    for (size_t i = 0; i < TEST_COUNT(forms); i++) {
        uint64_t sizes[2];

        fp8_model_make(&forms[i], fp8, reference);
        for (uint32_t ranks = 1; ranks <= 3; ranks += 2) {
            check_model(fp8, ranks, WEFT_QUANTISE_NONE, &limits);
        }
        for (uint32_t j = 0; j < 2; j++) {
            struct weft_device *device = open_device();
            struct weft_model_config config;
            struct weft_model_memory memory;
            struct weft_slice slice;

            assert_int_equal(weft_model_config_read(j == 0 ? fp8 : reference, &config), WEFT_OK);
            weft_slice_init(&config, 8, (struct weft_range){0, 8}, &slice);
            weft_model_memory(device, &config, &slice, &limits, &memory);
            sizes[j] = memory.weights;
            weft_device_close(&device);
        }
        assert_true(sizes[0] < sizes[1] * 3 / 4); /* tiny ones have much padding */
        folder_remove(fp8);
        folder_remove(reference);
    }
}

/* ---- operations ---- */

/* Steps over a cache: all sequences the same, with `count` more tokens from `position` on. */
static void attend(struct weft_device *device, struct weft_kv_cache *cache, const struct weft_kv_desc *desc,
                   const struct weft_heads *heads, uint32_t sequence_count, uint32_t position, uint32_t count,
                   float *memory)
{
    static uint32_t pages[4096]; /* the first one, again and again */
    struct weft_batch_sequence sequences[16];
    struct weft_batch batch = {sequence_count * count, sequence_count, sequences};
    struct weft_attention_args args = {
        .heads = *heads, .scale = 1.0f, .qkv = memory, .out = memory + (size_t)desc->token_max * 12 * desc->head_size};

    assert_true(sequence_count <= 16 && position + count <= desc->position_max);
    for (uint32_t i = 0; i < sequence_count; i++) {
        sequences[i] = (struct weft_batch_sequence){i * count, count, position,
                                                    (position + count - 1) / WEFT_PAGE_POSITIONS + 1, pages};
    }
    weft_device_attention(device, cache, &batch, &args);
    assert_int_equal(weft_device_sync(device), WEFT_OK);
}

static void check_attention(const struct weft_heads *heads, uint32_t token_max, uint32_t position_max)
{
    const struct weft_kv_desc desc = {.dtype = WEFT_BF16,
                                      .layer_count = 1,
                                      .kv_head_count = heads->kv_head_count,
                                      .head_size = heads->head_size,
                                      .page_count = 1,
                                      .token_max = token_max,
                                      .sequence_max = 16,
                                      .position_max = position_max,
                                      .group_head_max = heads->head_count < heads->group_size ? heads->head_count
                                                                                              : heads->group_size};
    struct weft_device *device = open_device();
    struct weft_kv_cache *cache = NULL;
    float *memory = weft_device_alloc(device, (size_t)token_max * 24 * heads->head_size * sizeof(float));

    assert_non_null(memory);
    assert_int_equal(weft_kv_cache_open(device, &desc, &cache), WEFT_OK);
    assert_int_equal(weft_device_reserve(device, weft_kv_cache_scratch_size(device, &desc)), WEFT_OK);
    uint64_t before = gpu.taken(0);
    for (uint32_t count = 1; count <= token_max; count = count < 4 ? count + 1 : count * 2 - 1) {
        for (uint32_t sequences = 1; sequences <= 16 && sequences * count <= token_max; sequences *= 2) {
            attend(device, cache, &desc, heads, sequences, position_max - count, count, memory);
            attend(device, cache, &desc, heads, sequences, position_max / 3, count, memory);
            assert_int_equal(gpu.taken(0), before);
        }
    }
    weft_kv_cache_close(device, &cache);
    weft_device_free(device, memory);
    weft_device_close(&device);
}

static void test_attention_takes_no_more_than_it_said(void **state)
{
    static const struct weft_heads heads[] = {{1, 1, 4, 0, 1}, {2, 2, 4, 0, 1}, {6, 2, 4, 1, 4}, {10, 1, 6, 0, 10}};

    (void)state;
    configure();
    for (size_t i = 0; i < TEST_COUNT(heads); i++) {
        check_attention(&heads[i], 32, 200);
        check_attention(&heads[i], 20, 1000);
        check_attention(&heads[i], 32, 2600);
    }
}

static void check_candidates(uint32_t row_count, uint32_t width, uint32_t count)
{
    static const uint32_t counts[] = {1, 100, 2048, 2500};
    const struct weft_range leaf = {0, width};
    struct weft_device *device = open_device();
    struct weft_candidates_args args = {.row_count = row_count,
                                        .width = width,
                                        .leaves = &leaf,
                                        .leaf_count = 1,
                                        .count = count,
                                        .logits = weft_device_alloc(device, (size_t)row_count * width * 4),
                                        .inv_temperatures = calloc(row_count, sizeof(float)),
                                        .best_out = calloc((size_t)row_count * count, sizeof(struct weft_candidate)),
                                        .lse_out = calloc(row_count, sizeof(struct weft_lse))};

    assert_int_equal(weft_device_reserve(device, weft_candidates_scratch_size(device, &args)), WEFT_OK);
    uint64_t before = gpu.taken(0);
    for (size_t i = 0; i < TEST_COUNT(counts) && counts[i] <= count; i++) {
        args.count = counts[i];
        weft_device_candidates(device, &args);
        assert_int_equal(weft_device_sync(device), WEFT_OK);
        assert_int_equal(gpu.taken(0), before);
    }
    free((void *)args.inv_temperatures);
    free(args.best_out);
    free(args.lse_out);
    weft_device_free(device, (void *)args.logits);
    weft_device_close(&device);
}

static void test_candidates_take_no_more_than_they_said(void **state)
{
    (void)state;
    configure();
    check_candidates(3, 300, 100);
    check_candidates(2, 9000, 2048);
    check_candidates(1, 12300, 2500); /* fewer of them take more */
}

/* ---- whole engines ---- */

static char lines[8][256];
static uint32_t line_count;

static void keep_line(void *context, const char *line)
{
    (void)context;
    if (line_count < TEST_COUNT(lines)) {
        snprintf(lines[line_count++], sizeof(lines[0]), "%s", line);
    }
}

/* Bytes in column "together" of the table, as exactly as it is written there. */
static uint64_t together(uint32_t rank, char *text_out)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB"};
    char name[32];
    char unit[8];
    double value = 0;

    assert_true(line_count > rank + 1);
    char *end = strstr(lines[0], "together");
    assert_non_null(end);
    const char *begin = lines[rank + 1] + (end - lines[0]) - 3; /* columns are 11 wide and end together */
    assert_int_equal(sscanf(begin, "%lf %7s", &value, unit), 2);
    snprintf(name, sizeof(name), value >= 100.0 ? "%.0f %s" : "%.1f %s", value, unit);
    strcpy(text_out, name);
    for (size_t i = 0; i < TEST_COUNT(units); i++, value *= 1024.0) {
        if (strcmp(unit, units[i]) == 0) {
            return (uint64_t)value;
        }
    }
    fail_msg("no size: \"%s\"", begin);
    return 0;
}

static void check_engine(const char *model, uint32_t rank_count)
{
    static int32_t prompt[100];
    struct weft_engine_options options;
    struct weft_request requests[3];
    struct answer answers[3];
    char said[32];
    char found[WEFT_SIZE_TEXT_SIZE];

    configure();
    test_options(&options, golden_model(model), rank_count);
    options.device = "cuda";
    options.cuda_module = gpu.path;
    options.kv_token_count = 1024;
    options.sequence_count_max = 24;
    options.memory_table = keep_line;
    line_count = 0;
    struct weft_engine *engine = open_engine(&options);
    uint64_t before = gpu.taken(0);
    for (uint32_t r = 0; r < rank_count; r++) {
        uint64_t most = together(r, said);
        assert_true(gpu.taken(r) <= most + most / 50); /* "1.0 MiB" may be 5 % more, but tables have more digits */
        if (rank_count == 1) {
            assert_string_equal(weft_size_text(gpu.taken(r), found), said);
        }
    }
    for (uint32_t i = 0; i < 3; i++) {
        weft_request_init(&requests[i]);
        requests[i].token_ids = prompt;
        requests[i].token_count = i == 0 ? 100 : 3;
        requests[i].max_tokens = 5;
        requests[i].is_eos_ignored = true;
        requests[i].temperature = i == 1 ? 3.0f : 0.0f;
    }
    uint32_t count = gpu.count("cudaMalloc");
    run_requests(engine, requests, 3, answers);
    assert_int_equal(gpu.count("cudaMalloc"), count);
    assert_int_equal(gpu.taken(0), before);
    weft_engine_close(&engine);
    assert_int_equal(gpu.live_count(), 0);
}

static void test_the_table_is_what_is_taken(void **state)
{
    static const char *const models[] = {"llama2", "linear", "qwen3"};

    (void)state;
    for (size_t i = 0; i < TEST_COUNT(models); i++) {
        check_engine(models[i], 1);
        check_engine(models[i], 3);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_models_take_what_was_planned),
        cmocka_unit_test(test_fp8_takes_what_was_planned),
        cmocka_unit_test(test_attention_takes_no_more_than_it_said),
        cmocka_unit_test(test_candidates_take_no_more_than_they_said),
        cmocka_unit_test(test_the_table_is_what_is_taken),
    };

    if (!weft_emulated_open(&gpu)) {
        print_message("SKIPPED: no weft_cuda_emulated.so beside this program\n");
        return 77;
    }
    weft_log_configure(WEFT_LOG_ERROR, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
