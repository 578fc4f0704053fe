/*
 * FP8 checkpoints in every form: the logits are those of the same weights taken apart by other arithmetic and stored as
 * bf16, to the bit, at any rank count, read or streamed; what is damaged or unknown is refused in one line.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fp8_model.h"
#include "group.h"
#include "model/fp8.h"
#include "model/model.h"
#include "weft/log.h"

#define COMPRESSED(strategy)                                                                                           \
    "{\"quant_method\": \"compressed-tensors\", \"format\": \"float-quantized\", \"ignore\": [\"lm_head\"], "          \
    "\"config_groups\": {\"group_0\": {\"targets\": [\"Linear\"], \"input_activations\": null, \"weights\": "          \
    "{\"num_bits\": 8, \"type\": \"float\", \"symmetric\": true, " strategy "}}}}"
#define BLOCKS_128                                                                                                     \
    "{\"activation_scheme\": \"dynamic\", \"fmt\": \"e4m3\", \"quant_method\": \"fp8\", \"weight_block_size\": "       \
    "[128, 128]}"
#define PLAIN "{\"quant_method\": \"fp8\", \"activation_scheme\": \"static\", \"ignored_layers\": [\"lm_head\"]}"

static const struct fp8_form forms[] = {
    {.name = "blocks of 128, as DeepSeek-V3 and Qwen3-FP8",
     .golden = "llama2",
     .config = BLOCKS_128,
     .ending = "_scale_inv",
     .block_rows = 128,
     .block_cols = 128,
     .scale_type = "BF16"},
    /* neither heads, nor leaves, nor slices end where these blocks do */
    {.name = "blocks of 24 x 40, ends included",
     .golden = "qwen2",
     .config = COMPRESSED("\"strategy\": \"block\", \"block_structure\": [24, 40]"),
     .ending = "_scale",
     .block_rows = 24,
     .block_cols = 40,
     .scale_type = "F32",
     .has_ends = true},
    {.name = "a scale per row",
     .golden = "qwen3",
     .config = COMPRESSED("\"strategy\": \"channel\""),
     .ending = "_scale",
     .block_rows = 1,
     .scale_type = "BF16",
     .scale_dims = 2},
    {.name = "a scale per row, fbgemm, k_proj left out",
     .golden = "llama3",
     .config = "{\"quant_method\": \"fbgemm_fp8\", \"activation_scale_ub\": 1200.0}",
     .ending = "_scale",
     .block_rows = 1,
     .scale_type = "F32",
     .scale_dims = 1,
     .is_mixed = true},
    {.name = "a scale per tensor",
     .golden = "mistral",
     .config = PLAIN,
     .ending = "_scale",
     .scale_type = "F32",
     .scale_dims = 0},
};
enum { FORM_COUNT = sizeof(forms) / sizeof(forms[0]) };

static void golden_of(const struct fp8_form *form, struct golden *golden)
{
    char folder[4096];

    snprintf(folder, sizeof(folder), "%s/%s", GOLDEN_FOLDER, form->golden);
    golden_open(folder, golden);
    golden->token_count = 4;
}

static void compare(const struct fp8_form *form, const struct group_options *options,
                    const struct group_result *expected, const struct golden *golden)
{
    struct group_result found;

    group_run(options, golden, &found);
    size_t size = (size_t)expected->position_count * expected->vocab_size * sizeof(float);
    if (memcmp(found.logits, expected->logits, size) != 0 ||
        memcmp(found.tokens, expected->tokens, golden->token_count * sizeof(int32_t)) != 0) {
        fail_msg("%s: %u ranks%s%s: not the logits of the reference", form->name, options->rank_count,
                 options->shares != NULL ? " uneven" : "", options->is_streamed ? ", streamed" : "");
    }
    group_result_fini(&found);
}

/* fp8 against reference, at every rank count, read and streamed. */
static void check_form(const struct fp8_form *form, enum weft_quantise quantise)
{
    static const uint32_t rank_counts[] = {1, 2, 3, 5, 8};
    static const uint32_t uneven[] = {3, 1, 1, 2, 1, 1, 1, 1};
    struct golden golden;
    struct group_result expected;
    char fp8[4096], reference[4096];

    fp8_model_make(form, fp8, reference);
    golden_of(form, &golden);
    struct group_options options = {
        .folder = reference, .rank_count = 1, .thread_count = 1, .chunk = 64, .quantise = quantise};
    group_run(&options, &golden, &expected);
    options.folder = fp8;
    for (size_t i = 0; i < 2 * sizeof(rank_counts) / sizeof(rank_counts[0]); i++) {
        options.rank_count = rank_counts[i / 2];
        options.shares = i / 2 % 2 == 1 ? uneven : NULL;
        options.is_streamed = i % 2 == 1;
        compare(form, &options, &expected, &golden);
    }
    assert_true(isfinite(expected.logits[0]));
    group_result_fini(&expected);
    golden_close(&golden);
    folder_remove(fp8);
    folder_remove(reference);
}

static void test_every_form_is_its_reference(void **state)
{
    (void)state;
    for (size_t i = 0; i < FORM_COUNT; i++) {
        check_form(&forms[i], WEFT_QUANTISE_NONE);
    }
}

/* FP8 that is quantised is rounded once, from the products as f32. */
static void test_quantised_fp8_is_rounded_once(void **state)
{
    (void)state;
    for (size_t i = 0; i < FORM_COUNT; i++) {
        struct fp8_form form = forms[i];
        form.is_f32 = true;
        check_form(&form, i % 2 == 0 ? WEFT_QUANTISE_Q8_0 : WEFT_QUANTISE_Q4_0);
    }
}

/* Bytes of a folder's weights in the memory of one rank. */
static size_t memory_of(struct weft_device *device, const char *folder, enum weft_quantise quantise)
{
    const struct weft_model_limits limits = {
        .token_count_max = 1, .logit_row_max = 1, .page_count = 1, .kv_dtype = WEFT_BF16};
    struct weft_model_config config;
    struct weft_model_memory memory;
    struct weft_slice slice;

    assert_int_equal(weft_model_config_read(folder, &config), WEFT_OK);
    config.quantise = quantise;
    weft_slice_init(&config, 8, (struct weft_range){0, 8}, &slice);
    weft_model_memory(device, &config, &slice, &limits, &memory);
    return memory.weights;
}

/* Converted to bf16 it is the reference, in its bits and in its memory; kept it takes less. */
static void test_converted_is_its_reference(void **state)
{
    const struct weft_device_options device_options = {.kind = "cpu", .thread_count = 1, .wait = WEFT_WAIT_YIELD};
    struct weft_device *device = NULL;
    char fp8[4096], reference[4096];

    (void)state;
    assert_int_equal(weft_device_open(&device_options, &device), WEFT_OK);
    for (size_t i = 0; i < FORM_COUNT; i++) {
        if (i % 2 == 0) {
            check_form(&forms[i], WEFT_QUANTISE_BF16);
        }
        fp8_model_make(&forms[i], fp8, reference);
        size_t wanted = memory_of(device, reference, WEFT_QUANTISE_NONE);
        assert_int_equal(memory_of(device, fp8, WEFT_QUANTISE_BF16), wanted);
        assert_true(memory_of(device, fp8, WEFT_QUANTISE_NONE) < wanted);
        folder_remove(fp8);
        folder_remove(reference);
    }
    weft_device_close(&device);
}

/* What is kept as FP8, and which form. */
static void test_config_knows_the_form(void **state)
{
    struct weft_model_config config;
    char fp8[4096];

    (void)state;
    for (size_t i = 0; i < FORM_COUNT; i++) {
        fp8_model_make(&forms[i], fp8, NULL);
        assert_int_equal(weft_model_config_read(fp8, &config), WEFT_OK);
        assert_true(config.fp8.is_there);
        assert_int_equal(config.fp8.block_rows, forms[i].block_cols != 0 ? forms[i].block_rows : 0);
        assert_int_equal(config.fp8.block_cols, forms[i].block_cols);
        assert_int_equal(config.dtype, WEFT_F8_E4M3);
        assert_int_equal(config.dtypes.down[1], WEFT_F8_E4M3);
        assert_int_equal(config.dtypes.head, forms[i].has_ends ? WEFT_F8_E4M3 : WEFT_BF16);
        assert_int_equal(config.dtypes.qkv[0], forms[i].is_mixed ? WEFT_F32 : WEFT_F8_E4M3);
        folder_remove(fp8);
    }
}

/* A layer's matrix takes a byte for each weight, and its scales; slices take no more than their share. */
static void test_memory_is_bytes_and_scales(void **state)
{
    const struct weft_device_options device_options = {.kind = "cpu", .thread_count = 1, .wait = WEFT_WAIT_YIELD};
    const struct weft_matrix_desc f8 = {
        .dtype = WEFT_F8_E4M3, .scale_cols = 128, .scale_phase = 96, .row_count = 160, .col_count = 1024};
    const struct weft_matrix_desc bf16 = {.dtype = WEFT_BF16, .row_count = 160, .col_count = 1024};
    struct weft_device *device = NULL;

    (void)state;
    assert_int_equal(weft_device_open(&device_options, &device), WEFT_OK);
    assert_int_equal(weft_matrix_size(device, &f8), 160 * (1024 + 9 * sizeof(float)));
    assert_int_equal(weft_matrix_size(device, &bf16), 160 * 1024 * 2);
    weft_device_close(&device);
}

/* Every byte, against the definition. */
static void test_every_byte(void **state)
{
    float table[256];

    (void)state;
    weft_fp8_table(table);
    for (unsigned i = 0; i < 256; i++) {
        unsigned exponent = i >> 3 & 15, fraction = i & 7;
        double value = exponent == 0 ? fraction / 512.0 : (8 + fraction) * pow(2, (double)exponent - 10);
        if ((i & 0x7f) == 0x7f) {
            assert_true(isnan(table[i]));
        } else {
            assert_true(table[i] == (float)(i < 128 ? value : -value));
            assert_int_equal(signbit(table[i]) != 0, i >= 128);
        }
    }
    assert_true(table[0x7e] == 448.0f && table[1] == 0x1p-9f);
}

/* ---- refusals ---- */

static void expect_damage(struct fp8_form form, enum weft_status status, const char *words, bool is_late)
{
    struct weft_model_config config;
    struct weft_device *device = NULL;
    struct weft_model *model = NULL;
    struct weft_slice slice;
    const struct weft_device_options device_options = {.kind = "cpu", .thread_count = 1, .wait = WEFT_WAIT_YIELD};
    struct weft_model_options options = {
        .config = &config,
        .slices = &slice,
        .rank_count = 1,
        .limits = {.token_count_max = 8, .logit_row_max = 8, .page_count = 4, .kv_dtype = WEFT_F32}};
    char fp8[4096];

    fp8_model_make(&form, fp8, NULL);
    assert_int_equal(weft_device_open(&device_options, &device), WEFT_OK);
    options.folder = fp8;
    options.device = device;
    log_capture_begin();
    enum weft_status found = weft_model_config_read(fp8, &config);
    assert_int_equal(found == WEFT_OK, is_late); /* what headers show is refused before anything is allocated */
    if (found == WEFT_OK) {
        weft_slice_init(&config, 8, (struct weft_range){0, 8}, &slice);
        found = weft_model_open(&options, &model);
    }
    log_capture_end();
    if (found != status || log_capture_count() != 1 || strstr(log_capture_line(), words) == NULL) {
        fail_msg("damage %d: status %d, %d lines, \"%s\", expected \"%s\"", form.damage, found, log_capture_count(),
                 log_capture_line(), words);
    }
    weft_device_close(&device);
    folder_remove(fp8);
}

static void test_damage_is_refused_in_one_line(void **state)
{
    static const struct {
        enum fp8_damage damage;
        enum weft_status status;
        const char *words;
        bool is_late;
    } cases[] = {
        {FP8_NO_SCALE, WEFT_ERR_FORMAT,
         "model.layers.1.self_attn.o_proj.weight is F8_E4M3: its scales "
         "model.layers.1.self_attn.o_proj.weight_scale_inv or model.layers.1.self_attn.o_proj.weight_scale are missing",
         false},
        {FP8_SCALE_SHAPE, WEFT_ERR_FORMAT, "expected shape [1, 1] for blocks of [128, 128], found [2, 1]", false},
        {FP8_SCALE_TYPE, WEFT_ERR_UNSUPPORTED, "o_proj.weight_scale_inv: element type I32 is not supported for scales",
         false},
        {FP8_SCALE_INFINITE, WEFT_ERR_FORMAT, "o_proj.weight_scale_inv: scale 0: expected a finite factor, found inf",
         true},
        {FP8_SCALE_HUGE, WEFT_ERR_FORMAT, "scale 0: expected a finite factor, found 1.00211e+36", true},
        {FP8_NAN, WEFT_ERR_FORMAT, "o_proj.weight: row 3, column 5: expected a number, found NaN (0x7f)", true},
        {FP8_MINUS_NAN, WEFT_ERR_FORMAT, "row 3, column 5: expected a number, found NaN (0xff)", true},
        {FP8_E5M2, WEFT_ERR_UNSUPPORTED, "element type F8_E5M2 is not supported: F32, F16, BF16, F8_E4M3 are", false},
        {FP8_NORM, WEFT_ERR_UNSUPPORTED,
         "input_layernorm.weight: element type F8_E4M3 is not supported: F32, F16, BF16", false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct fp8_form form = forms[0];
        form.damage = cases[i].damage;
        expect_damage(form, cases[i].status, cases[i].words, cases[i].is_late);
    }
}

static void test_scales_must_fit_the_form(void **state)
{
    struct fp8_form form = forms[2]; /* a scale per row, but blocks are announced */

    (void)state;
    form.config = BLOCKS_128;
    expect_damage(form, WEFT_ERR_FORMAT, "for blocks of [128, 128], found [", false);
    form = forms[1]; /* blocks, but a scale per row is announced */
    form.config = PLAIN;
    expect_damage(form, WEFT_ERR_FORMAT, "for rows or [1] for the tensor, found [", false);
    form.config = NULL;
    expect_damage(form, WEFT_ERR_UNSUPPORTED, "F8_E4M3, but config.json has no quantization_config", false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_byte),
        cmocka_unit_test(test_config_knows_the_form),
        cmocka_unit_test(test_memory_is_bytes_and_scales),
        cmocka_unit_test(test_every_form_is_its_reference),
        cmocka_unit_test(test_quantised_fp8_is_rounded_once),
        cmocka_unit_test(test_converted_is_its_reference),
        cmocka_unit_test(test_damage_is_refused_in_one_line),
        cmocka_unit_test(test_scales_must_fit_the_form),
    };

    weft_log_configure(WEFT_LOG_WARN, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
