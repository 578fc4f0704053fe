/* Tests of config.c and rope.c: real configurations, every family's switches, frequencies against transformers, errors.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/config.h"
#include "support.h"
#include "weft/numeric.h"

static struct weft_model_config config;

static enum weft_status parse_with(const char *text, const char *generation)
{
    return weft_model_config_parse("config.json", text, strlen(text), generation,
                                   generation == NULL ? 0 : strlen(generation), &config);
}

#define SHAPE                                                                                                          \
    "\"num_hidden_layers\": 4, \"hidden_size\": 64, \"intermediate_size\": 96, \"vocab_size\": 300, "                  \
    "\"num_attention_heads\": 8, \"num_key_value_heads\": 2"

static enum weft_status parse_family(const char *architecture, const char *more)
{
    char text[4096];

    snprintf(text, sizeof(text), "{\"architectures\": [\"%s\"], " SHAPE "%s%s}", architecture,
             more[0] == '\0' ? "" : ", ", more);
    return parse_with(text, NULL);
}

static void expect_refused(const char *architecture, const char *more, enum weft_status status, const char *words)
{
    log_capture_begin();
    int found = parse_family(architecture, more);
    if (found != (int)status || strstr(log_capture_line(), words) == NULL || log_capture_count() != 1) {
        fail_msg("%s: status %d, %d lines: %s", more, found, log_capture_count(), log_capture_line());
    }
    log_capture_end();
}

static void test_families_differ_as_in_transformers(void **state)
{
    (void)state;
    assert_int_equal(parse_family("LlamaForCausalLM", "\"attention_bias\": true, \"mlp_bias\": true"), WEFT_OK);
    assert_int_equal(config.family, WEFT_FAMILY_LLAMA);
    assert_int_equal(config.head_size, 8);
    assert_true(config.has_qkv_bias && config.has_output_bias && config.has_mlp_bias && !config.has_qk_norm);
    assert_int_equal(config.context_length, 2048);
    assert_int_equal(config.bos_token_id, -1);
    assert_int_equal(config.dtype, WEFT_F32);

    assert_int_equal(parse_family("MistralForCausalLM", "\"attention_bias\": true"), WEFT_OK);
    assert_false(config.has_qkv_bias);
    assert_int_equal(config.windows[0], 4096); /* absent: the default of the class */
    assert_int_equal(parse_family("MistralForCausalLM", "\"sliding_window\": null"), WEFT_OK);
    assert_int_equal(config.windows[3], 0);

    assert_int_equal(parse_family("Qwen2ForCausalLM", "\"sliding_window\": 16, \"dtype\": \"bfloat16\""), WEFT_OK);
    assert_true(config.has_qkv_bias && !config.has_output_bias && !config.has_qk_norm);
    assert_int_equal(config.windows[3], 0); /* use_sliding_window is off */
    assert_int_equal(config.dtype, WEFT_BF16);
    assert_int_equal(config.dtypes.down[3], WEFT_BF16);

    assert_int_equal(parse_family("Qwen3ForCausalLM", "\"torch_dtype\": \"float16\""), WEFT_OK);
    assert_true(config.has_qk_norm && !config.has_qkv_bias);
    assert_int_equal(config.head_size, 128); /* the default of the class, not D / H */
    assert_int_equal(config.dtype, WEFT_F16);
}

static void test_qwen_windows(void **state)
{
    (void)state;
    assert_int_equal(parse_family("Qwen2ForCausalLM", "\"sliding_window\": 16, \"use_sliding_window\": true, "
                                                      "\"max_window_layers\": 3"),
                     WEFT_OK);
    assert_int_equal(config.windows[2], 0);
    assert_int_equal(config.windows[3], 16);
    assert_int_equal(parse_family("Qwen3ForCausalLM",
                                  "\"sliding_window\": 16, \"use_sliding_window\": true, \"layer_types\": "
                                  "[\"sliding_attention\", \"full_attention\", \"full_attention\", "
                                  "\"sliding_attention\"]"),
                     WEFT_OK);
    assert_int_equal(config.windows[0], 16);
    assert_int_equal(config.windows[1], 0);
    assert_int_equal(config.windows[3], 16);
    expect_refused("Qwen3ForCausalLM", "\"layer_types\": [\"full_attention\"]", WEFT_ERR_FORMAT, "layer_types");
    expect_refused(
        "Qwen3ForCausalLM",
        "\"layer_types\": [\"linear_attention\", \"full_attention\", \"full_attention\", \"full_attention\"]",
        WEFT_ERR_UNSUPPORTED, "linear_attention");
    expect_refused("Qwen3ForCausalLM",
                   "\"layer_types\": [\"sliding_attention\", \"full_attention\", \"full_attention\", "
                   "\"full_attention\"]",
                   WEFT_ERR_FORMAT, "no window");
}

static void test_refusals_name_the_member(void **state)
{
    static const struct {
        const char *more;
        enum weft_status status;
        const char *words;
    } cases[] = {
        {"\"hidden_act\": \"gelu\"", WEFT_ERR_UNSUPPORTED, "hidden_act \"gelu\""},
        {"\"hidden_act\": 3", WEFT_ERR_FORMAT, "hidden_act"},
        {"\"quantization_config\": {\"quant_method\": \"awq\"}", WEFT_ERR_UNSUPPORTED, "awq"},
        {"\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4}", WEFT_ERR_UNSUPPORTED,
         "quantization_config: quant_method \"gptq\" is not supported: fp8, fbgemm_fp8"},
        {"\"quantization_config\": {\"quant_method\": \"bitsandbytes\", \"load_in_4bit\": true}", WEFT_ERR_UNSUPPORTED,
         "bitsandbytes"},
        {"\"quantization_config\": {\"bits\": 4}", WEFT_ERR_UNSUPPORTED, "quant_method \"(none)\""},
        {"\"quantization_config\": \"fp8\"", WEFT_ERR_FORMAT, "quantization_config: expected an object"},
        {"\"quantization_config\": {\"quant_method\": 8}", WEFT_ERR_FORMAT, "quant_method: expected a string"},
        {"\"quantization_config\": {\"quant_method\": \"fp8\", \"fmt\": \"e5m2\"}", WEFT_ERR_UNSUPPORTED,
         "fmt \"e5m2\""},
        {"\"quantization_config\": {\"quant_method\": \"fp8\", \"weight_block_size\": [128]}", WEFT_ERR_FORMAT,
         "weight_block_size: expected two integers"},
        {"\"quantization_config\": {\"quant_method\": \"fp8\", \"weight_block_size\": [128, 0]}", WEFT_ERR_FORMAT,
         "weight_block_size: expected two integers"},
        {"\"quantization_config\": {\"quant_method\": \"compressed-tensors\"}", WEFT_ERR_FORMAT, "config_groups"},
        {"\"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"config_groups\": {\"g\": {\"weights\": "
         "{\"num_bits\": 4, \"type\": \"int\", \"strategy\": \"group\"}}}}",
         WEFT_ERR_UNSUPPORTED, "weights of 4 bits, type \"int\""},
        {"\"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"config_groups\": {\"g\": {\"weights\": "
         "{\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"group\"}}}}",
         WEFT_ERR_UNSUPPORTED, "strategy \"group\""},
        {"\"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\", "
         "\"config_groups\": {\"g\": {\"weights\": {\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"tensor\"}}}}",
         WEFT_ERR_UNSUPPORTED, "format \"pack-quantized\""},
        {"\"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"config_groups\": {\"g\": {\"weights\": "
         "3}}}",
         WEFT_ERR_FORMAT, "weights: expected an object"},
        {"\"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"config_groups\": {\"a\": {\"weights\": "
         "{\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"block\", \"block_structure\": [128, 128]}}, \"b\": "
         "{\"weights\": {\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"channel\"}}}}",
         WEFT_ERR_UNSUPPORTED, "groups with the same blocks"},
        {"\"torch_dtype\": \"int8\"", WEFT_ERR_UNSUPPORTED, "int8"},
        {"\"hidden_size\": 65", WEFT_ERR_FORMAT, "hidden_size 65"},
        {"\"hidden_size\": 0", WEFT_ERR_FORMAT, "hidden_size"},
        {"\"hidden_size\": \"64\"", WEFT_ERR_FORMAT, "hidden_size"},
        {"\"hidden_size\": 1e300", WEFT_ERR_FORMAT, "hidden_size"},
        {"\"hidden_size\": 1048576, \"num_attention_heads\": 1, \"num_key_value_heads\": 1", WEFT_ERR_UNSUPPORTED,
         "head width"},
        {"\"num_hidden_layers\": 100000", WEFT_ERR_FORMAT, "num_hidden_layers"},
        {"\"vocab_size\": null", WEFT_ERR_FORMAT, "vocab_size"},
        {"\"num_key_value_heads\": 3", WEFT_ERR_FORMAT, "divisor of num_attention_heads 8"},
        {"\"head_dim\": 7", WEFT_ERR_UNSUPPORTED, "head width"},
        {"\"head_dim\": -8", WEFT_ERR_FORMAT, "head_dim"},
        {"\"rms_norm_eps\": -1", WEFT_ERR_FORMAT, "rms_norm_eps"},
        {"\"model_type\": \"gemma\"", WEFT_ERR_UNSUPPORTED, "gemma"},
        {"\"rope_theta\": 0", WEFT_ERR_FORMAT, "rope_theta"},
        {"\"rope_theta\": \"big\"", WEFT_ERR_FORMAT, "rope_theta"},
        {"\"rope_scaling\": 8", WEFT_ERR_FORMAT, "rope_scaling"},
        {"\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2}", WEFT_ERR_UNSUPPORTED, "dynamic"},
        {"\"rope_scaling\": {\"type\": \"linear\"}", WEFT_ERR_FORMAT, "factor"},
        {"\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0}", WEFT_ERR_FORMAT, "factor"},
        {"\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, "
         "\"high_freq_factor\": 4}",
         WEFT_ERR_FORMAT, "high_freq_factor"},
        {"\"rope_scaling\": {\"rope_type\": \"yarn\"}", WEFT_ERR_FORMAT, "factor"},
        {"\"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\"}}", WEFT_ERR_UNSUPPORTED,
         "full_attention"},
        {"\"partial_rotary_factor\": 0.5", WEFT_ERR_UNSUPPORTED, "partial_rotary_factor"},
        {"\"eos_token_id\": \"</s>\"", WEFT_ERR_FORMAT, "eos_token_id"},
        {"\"eos_token_id\": [1, -2]", WEFT_ERR_FORMAT, "eos_token_id"},
        {"\"eos_token_id\": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]", WEFT_ERR_LIMIT, "eos_token_id"},
        {"\"tie_word_embeddings\": 1", WEFT_ERR_FORMAT, "tie_word_embeddings"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        expect_refused("LlamaForCausalLM", cases[i].more, cases[i].status, cases[i].words);
    }
    expect_refused("DeepseekV3ForCausalLM", "", WEFT_ERR_UNSUPPORTED, "DeepseekV3ForCausalLM");
    log_capture_begin();
    assert_int_equal(parse_with("[1]", NULL), WEFT_ERR_FORMAT);
    assert_int_equal(parse_with("{}", NULL), WEFT_ERR_FORMAT);
    assert_int_equal(parse_with("{\"architectures\": \"LlamaForCausalLM\"}", NULL), WEFT_ERR_FORMAT);
    assert_int_equal(parse_with("", NULL), WEFT_ERR_FORMAT);
    assert_int_equal(log_capture_count(), 4);
    log_capture_end();
}

static void test_end_tokens_come_from_generation_config(void **state)
{
    const char *text = "{\"model_type\": \"llama\", " SHAPE ", \"eos_token_id\": 2, \"bos_token_id\": 1}";

    (void)state;
    assert_int_equal(parse_with(text, NULL), WEFT_OK);
    assert_int_equal(config.eos_token_count, 1);
    assert_int_equal(config.eos_token_ids[0], 2);
    assert_int_equal(config.bos_token_id, 1);
    assert_int_equal(parse_with(text, "{\"eos_token_id\": [7, 9]}"), WEFT_OK);
    assert_int_equal(config.eos_token_count, 2);
    assert_int_equal(config.eos_token_ids[1], 9);
    assert_int_equal(parse_with(text, "{\"eos_token_id\": null}"), WEFT_OK);
    assert_int_equal(config.eos_token_ids[0], 2);
    assert_int_equal(parse_with(text, "{}"), WEFT_OK);
    assert_int_equal(config.eos_token_ids[0], 2);
}

static void test_yarn_stretches_the_context(void **state)
{
    (void)state;
    assert_int_equal(parse_family("Qwen2ForCausalLM",
                                  "\"max_position_embeddings\": 32768, \"rope_scaling\": {\"type\": "
                                  "\"yarn\", \"factor\": 4.0, "
                                  "\"original_max_position_embeddings\": 32768}"),
                     WEFT_OK);
    assert_int_equal(config.context_length, 131072);
    assert_int_equal(parse_family("Qwen2ForCausalLM", "\"max_position_embeddings\": 131072, \"rope_scaling\": "
                                                      "{\"type\": \"yarn\", \"factor\": 4.0, "
                                                      "\"original_max_position_embeddings\": 32768}"),
                     WEFT_OK);
    assert_int_equal(config.context_length, 131072);
}

/* Distance in units of the last place; both are positive. */
static uint32_t ulps(float a, float b)
{
    uint32_t left = weft_f32_bits(a), right = weft_f32_bits(b);

    return left > right ? left - right : right - left;
}

static void test_frequencies_equal_transformers(void **state)
{
    char path[4096];
    size_t i;
    json_t *entry;
    uint64_t different = 0, total = 0;

    (void)state;
    snprintf(path, sizeof(path), "%s/rope.json", GOLDEN_FOLDER);
    json_t *entries = json_load_file(path, 0, NULL);
    assert_non_null(entries);
    assert_true(json_array_size(entries) > 50);
    json_array_foreach(entries, i, entry)
    {
        char *text = json_dumps(json_object_get(entry, "config"), 0);
        const json_t *bits = json_object_get(entry, "inv_freq_bits");
        assert_int_equal(parse_with(text, NULL), WEFT_OK);
        assert_int_equal(json_array_size(bits), config.head_size / 2);
        for (size_t j = 0; j < json_array_size(bits); j++) {
            float expected = weft_f32_from_bits((uint32_t)json_integer_value(json_array_get(bits, j)));
            uint32_t distance = ulps(config.inv_freq[j], expected);
            /* yarn and llama3 subtract nearly equal numbers: an ulp before is several after */
            if (distance > 16) {
                fail_msg("%s: frequency %zu: expected %.9g, found %.9g", text, j, (double)expected,
                         (double)config.inv_freq[j]);
            }
            different += distance > 1;
            total++;
        }
        assert_true(ulps(config.rope_scale, (float)json_number_value(json_object_get(entry, "scale"))) <= 1);
        free(text);
    }
    print_message("%llu of %llu frequencies differ from PyTorch's by more than one unit of the last place\n",
                  (unsigned long long)different, (unsigned long long)total);
    assert_true(different * 20 < total);
    json_decref(entries);
}

static void test_real_configurations(void **state)
{
    static const struct {
        const char *folder;
        bool is_supported;
        uint64_t parameter_count;
    } cases[] = {
        {"llama-3-8b", true, 8030261248}, {"llama-3-70b", true, 70553706496}, {"qwen2-7b", true, 7615616512},
        {"qwen2-72b", true, 72287920128}, {"qwen2-0_5b", true, 463987712},    {"qwen3-0.6b", true, 596049920},
        {"qwen3-4b", true, 4022468096},   {"qwen3-8b", true, 8190735360},     {"qwen3-32b", true, 32762123264},
        {"qwen3-30b", false, 0},          {"qwen3-235b", false, 0},           {"deepseek-r1", false, 0},
    };
    char folder[4096];

    (void)state;
    if (access(SHARED_FOLDER "/configs", F_OK) != 0) {
        print_message("SKIPPED: %s is not there\n", SHARED_FOLDER "/configs");
        skip();
    }
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(folder, sizeof(folder), "%s/configs/%s", SHARED_FOLDER, cases[i].folder);
        log_capture_begin();
        enum weft_status status = weft_model_config_read(folder, &config);
        log_capture_end();
        assert_int_equal(status, cases[i].is_supported ? WEFT_OK : WEFT_ERR_UNSUPPORTED);
        assert_int_equal(log_capture_count(), cases[i].is_supported ? 0 : 1);
        if (cases[i].parameter_count != 0) {
            assert_int_equal(config.parameter_count, cases[i].parameter_count);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families_differ_as_in_transformers),
        cmocka_unit_test(test_qwen_windows),
        cmocka_unit_test(test_refusals_name_the_member),
        cmocka_unit_test(test_end_tokens_come_from_generation_config),
        cmocka_unit_test(test_yarn_stretches_the_context),
        cmocka_unit_test(test_frequencies_equal_transformers),
        cmocka_unit_test(test_real_configurations),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
