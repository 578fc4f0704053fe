/*
 * Weights quantised while they are loaded: what is kept as what, how much memory that takes, the same logits read and
 * streamed, and how far they are from those of the weights as stored.
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
#include "model/model.h"
#include "model/quantise.h"
#include "weft/log.h"

static const char *const families[] = {"llama2",       "llama3", "mistral", "qwen2",
                                       "qwen2-window", "qwen3",  "linear",  "yarn"};
enum { FAMILY_COUNT = sizeof(families) / sizeof(families[0]) };
static const enum weft_quantise both[] = {WEFT_QUANTISE_Q8_0, WEFT_QUANTISE_Q4_0};

static void test_names(void **state)
{
    enum weft_quantise found;

    (void)state;
    for (int i = 0; i < 4; i++) {
        assert_int_equal(weft_quantise_parse(weft_quantise_name((enum weft_quantise)i), &found), 0);
        assert_int_equal(found, i);
    }
    assert_int_equal(weft_quantise_parse(NULL, &found), 0);
    assert_int_equal(found, WEFT_QUANTISE_NONE);
    assert_int_equal(weft_quantise_parse("bf16", &found), 0);
    assert_int_equal(found, WEFT_QUANTISE_BF16);
    assert_int_equal(weft_quantise_parse("q5_0", &found), -1);
}

static void test_what_is_kept_as_what(void **state)
{
    struct weft_model_config config = {.dtype = WEFT_BF16};
    char text[WEFT_WEIGHTS_TEXT_SIZE];

    (void)state;
    assert_int_equal(weft_quantise_layer(WEFT_QUANTISE_NONE, WEFT_F16), WEFT_F16);
    assert_int_equal(weft_quantise_layer(WEFT_QUANTISE_Q8_0, WEFT_F16), WEFT_Q8_0);
    assert_int_equal(weft_quantise_layer(WEFT_QUANTISE_Q4_0, WEFT_F16), WEFT_Q4_0);
    assert_int_equal(weft_quantise_end(WEFT_QUANTISE_NONE, WEFT_F16), WEFT_F16);
    assert_int_equal(weft_quantise_end(WEFT_QUANTISE_Q4_0, WEFT_F16), WEFT_Q8_0);
    assert_string_equal(weft_weights_text(&config, text), "bf16");
    config.quantise = WEFT_QUANTISE_Q4_0;
    assert_string_equal(weft_weights_text(&config, text),
                        "q4_0 (embedding and head q8_0), quantised while loading, from bf16");
    assert_int_equal(weft_quantise_source(&config, WEFT_BF16), WEFT_BF16);
    config.fp8.is_there = true;
    config.dtype = WEFT_F8_E4M3;
    assert_int_equal(weft_quantise_source(&config, WEFT_F8_E4M3), WEFT_F32);
    assert_int_equal(weft_quantise_source(&config, WEFT_BF16), WEFT_F32);
    assert_int_equal(weft_quantise_source(&config, WEFT_F16), WEFT_F16);
    assert_string_equal(weft_weights_text(&config, text),
                        "q4_0 (embedding and head q8_0), quantised while loading, from f8_e4m3");
    config.quantise = WEFT_QUANTISE_NONE;
    assert_int_equal(weft_quantise_source(&config, WEFT_BF16), WEFT_BF16);
    assert_int_equal(weft_quantise_source(&config, WEFT_F8_E4M3), WEFT_F8_E4M3);
    assert_string_equal(weft_weights_text(&config, text), "f8_e4m3");
}

/* bf16 is for FP8 alone. */
static void test_what_is_converted(void **state)
{
    struct weft_model_config config = {.dtype = WEFT_F8_E4M3, .fp8.is_there = true, .quantise = WEFT_QUANTISE_BF16};
    static const enum weft_dtype others[] = {WEFT_F32, WEFT_F16, WEFT_BF16};
    char text[WEFT_WEIGHTS_TEXT_SIZE];

    (void)state;
    assert_int_equal(weft_quantise_layer(WEFT_QUANTISE_BF16, WEFT_F8_E4M3), WEFT_BF16);
    assert_int_equal(weft_quantise_end(WEFT_QUANTISE_BF16, WEFT_F8_E4M3), WEFT_BF16);
    assert_int_equal(weft_quantise_source(&config, WEFT_F8_E4M3), WEFT_BF16);
    assert_string_equal(weft_weights_text(&config, text), "bf16, converted while loading, from f8_e4m3");
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        assert_int_equal(weft_quantise_layer(WEFT_QUANTISE_BF16, others[i]), others[i]);
        assert_int_equal(weft_quantise_end(WEFT_QUANTISE_BF16, others[i]), others[i]);
        assert_int_equal(weft_quantise_source(&config, others[i]), others[i]);
    }
    config = (struct weft_model_config){.dtype = WEFT_F16, .quantise = WEFT_QUANTISE_BF16};
    assert_string_equal(weft_weights_text(&config, text), "f16");
}

/* Of a model of round sizes, which no padding blurs: 34 and 18 bytes for each block of 32 weights. */
static void test_memory_by_bits(void **state)
{
    const struct weft_device_options options = {.kind = "cpu", .thread_count = 1, .wait = WEFT_WAIT_YIELD};
    const struct weft_model_limits limits = {
        .token_count_max = 1, .logit_row_max = 1, .page_count = 1, .kv_dtype = WEFT_BF16};
    struct weft_model_config config = {.layer_count = 2,
                                       .width = 1024,
                                       .head_count = 16,
                                       .kv_head_count = 8,
                                       .head_size = 64,
                                       .ffn_width = 4096,
                                       .vocab_size = 2048,
                                       .context_length = 16,
                                       .is_tied = true};
    struct weft_device *device = NULL;
    struct weft_model_memory memory[3];
    struct weft_slice slice;

    (void)state;
    assert_int_equal(weft_device_open(&options, &device), WEFT_OK);
    config.dtypes.embedding = config.dtypes.head = WEFT_BF16;
    for (int i = 0; i < 2; i++) {
        config.dtypes.qkv[i] = config.dtypes.attention_out[i] = WEFT_BF16;
        config.dtypes.gate_up[i] = config.dtypes.down[i] = WEFT_BF16;
    }
    weft_slice_init(&config, 8, (struct weft_range){0, 8}, &slice);
    for (int i = 0; i < 3; i++) {
        config.quantise = (enum weft_quantise)i;
        weft_model_memory(device, &config, &slice, &limits, &memory[i]);
    }
    size_t layers = (size_t)2 * 1024 * (2 * 1024 + 2 * 512 + 3 * 4096), ends = (size_t)2048 * 1024;
    size_t vectors = memory[0].weights - 2 * (layers + ends);
    assert_true(vectors < 1 << 16);
    assert_int_equal(memory[1].weights - vectors, (layers + ends) / 32 * 34);
    assert_int_equal(memory[2].weights - vectors, layers / 32 * 18 + ends / 32 * 34);
    assert_int_equal(memory[2].kv_cache, memory[0].kv_cache);
    weft_device_close(&device);
}

static void golden_of(const char *name, char *folder, struct golden *golden)
{
    snprintf(folder, 4096, "%s/%s", GOLDEN_FOLDER, name);
    golden_open(folder, golden);
    golden->token_count = 0;
}

static void test_streamed_is_read(void **state)
{
    static const uint32_t rank_counts[] = {2, 3, 8};

    (void)state;
    for (size_t i = 0; i < 2 * FAMILY_COUNT; i++) {
        char folder[4096];
        struct golden golden;
        struct group_result read, streamed;
        golden_of(families[i / 2], folder, &golden);
        struct group_options options = {
            .folder = folder, .rank_count = 1, .thread_count = 1, .chunk = 64, .quantise = both[i % 2]};
        group_run(&options, &golden, &read);
        options.rank_count = rank_counts[i % 3];
        options.is_streamed = true;
        group_run(&options, &golden, &streamed);
        assert_memory_equal(streamed.logits, read.logits,
                            (size_t)read.position_count * read.vocab_size * sizeof(float));
        group_result_fini(&read);
        group_result_fini(&streamed);
        golden_close(&golden);
    }
}

/* Root of the mean square of the differences, relative to that of the logits. */
static double distance(const struct group_result *a, const struct group_result *b)
{
    double error = 0, power = 0;

    for (size_t i = 0; i < (size_t)a->position_count * a->vocab_size; i++) {
        double difference = (double)a->logits[i] - b->logits[i];
        error += difference * difference;
        power += (double)a->logits[i] * a->logits[i];
    }
    return sqrt(error / power);
}

/* Logits of a folder's golden prompt. */
static void run_one(const char *folder, const struct golden *golden, enum weft_quantise quantise,
                    struct group_result *result)
{
    const struct group_options options = {
        .folder = folder, .rank_count = 1, .thread_count = 1, .chunk = 64, .quantise = quantise};

    group_run(&options, golden, result);
}

/* How far the logits move when every weight is rounded to 3 bits of fraction (FP8), which is nobody's quantisation
 * here. */
static double distance_fp8(const char *name, const struct golden *golden, const struct group_result *stored)
{
    const struct fp8_form form = {
        .golden = name, .ending = "_scale", .block_rows = 1, .scale_type = "F32", .is_f32 = true, .has_ends = true};
    char fp8[4096], rounded[4096];
    struct group_result result;

    fp8_model_make(&form, fp8, rounded);
    run_one(rounded, golden, WEFT_QUANTISE_NONE, &result);
    double far = distance(stored, &result);
    group_result_fini(&result);
    folder_remove(fp8);
    folder_remove(rounded);
    return far;
}

/*
 * How far logits may be. Rounding errors of a given size move the logits of a model by a factor that is the model's:
 * it is measured with errors of another make. Rounded to 3 bits of fraction a weight has steps of 1/8 in [1, 2): an
 * error of 1 / (8 sqrt(12)) over about 1.4, 2.6 % of its size. Of 32 normally distributed weights the largest is
 * about 2.1 deviations: Q8_0 has steps of 2.1 / 127, Q4_0 of 2.1 / 8, and errors of a step / sqrt(12): 0.5 % and 7.6 %
 * of a deviation. Activations have Q8_0's steps, but longer tails: 3 deviations, 0.7 %. A quarter more is allowed.
 */
static void test_logits_stay_close(void **state)
{
    static const double fp8_error = 0.026;
    static const double errors[] = {0.0085, 0.076}; /* weights and activations, added as squares */

    (void)state;
    for (size_t f = 0; f < FAMILY_COUNT; f++) {
        char folder[4096];
        struct golden golden;
        struct group_result stored, quantised;
        golden_of(families[f], folder, &golden);
        run_one(folder, &golden, WEFT_QUANTISE_NONE, &stored);
        double factor = distance_fp8(families[f], &golden, &stored) / fp8_error;
        for (int i = 0; i < 2; i++) {
            run_one(folder, &golden, both[i], &quantised);
            double far = distance(&stored, &quantised), expected = factor * errors[i];
            print_message("%s, %s: logits off by %.4f, expected %.4f\n", families[f], weft_quantise_name(both[i]), far,
                          expected);
            if (!(far <= 1.25 * expected) || far < 0.6 * expected) { /* hardly off at all: not quantised */
                fail_msg("%s, %s: logits off by %g", families[f], weft_quantise_name(both[i]), far);
            }
            group_result_fini(&quantised);
        }
        group_result_fini(&stored);
        golden_close(&golden);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_what_is_kept_as_what),
        cmocka_unit_test(test_what_is_converted),
        cmocka_unit_test(test_memory_by_bits),
        cmocka_unit_test(test_streamed_is_read),
        cmocka_unit_test(test_logits_stay_close),
    };

    weft_log_configure(WEFT_LOG_WARN, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
