/*
 * FP8 checkpoints on emulated GPUs: the tokens and logits of a checkpoint that holds the same weights as bf16, at any
 * number of ranks, in any numerics, replayed as graphs or not; and about half of its memory.
 */
#include "gpu_answers.h"

#include <string.h>

#include "../model/fp8_model.h"
#include "../model/support.h"
#include "weft/log.h"

#define BLOCKS_OF(size)                                                                                                \
    "{\"quant_method\": \"fp8\", \"activation_scheme\": \"dynamic\", \"weight_block_size\": [" size ", " size "]}"
#define ROWS                                                                                                           \
    "{\"quant_method\": \"compressed-tensors\", \"format\": \"float-quantized\", \"ignore\": [\"lm_head\"], "          \
    "\"config_groups\": {\"group_0\": {\"targets\": [\"Linear\"], \"input_activations\": null, \"weights\": "          \
    "{\"num_bits\": 8, \"type\": \"float\", \"symmetric\": true, \"strategy\": \"channel\"}}}}"

/* Slices of mistral's and llama2's FFN begin inside blocks. Blocks of 24 columns are kept as bf16 by a GPU. */
static const struct fp8_form forms[] = {
    {.name = "blocks of 64, ends included",
     .golden = "mistral",
     .config = BLOCKS_OF("64"),
     .ending = "_scale_inv",
     .block_rows = 64,
     .block_cols = 64,
     .scale_type = "F32",
     .has_ends = true},
    {.name = "blocks of 128",
     .golden = "llama2",
     .config = BLOCKS_OF("128"),
     .ending = "_scale_inv",
     .block_rows = 128,
     .block_cols = 128,
     .scale_type = "BF16"},
    {.name = "a scale per row",
     .golden = "qwen3",
     .config = ROWS,
     .ending = "_scale",
     .block_rows = 1,
     .scale_type = "BF16",
     .scale_dims = 2},
    {.name = "blocks of 24",
     .golden = "qwen2",
     .config = BLOCKS_OF("24"),
     .ending = "_scale_inv",
     .block_rows = 24,
     .block_cols = 24,
     .scale_type = "F32"},
};
enum { FORM_COUNT = TEST_COUNT(forms), REQUESTS = 4, PROMPT_MAX = 40 };

static struct weft_emulated_handle gpu;
static int32_t prompts[REQUESTS][PROMPT_MAX];
static struct weft_request requests[REQUESTS];

static void check_answers(const struct fp8_form *form, const struct weft_engine_options *options,
                          const struct answer *expected, bool is_replayed)
{
    static struct answer found[REQUESTS];

    configure_gpus(&gpu, options->rank_count);
    assert_int_equal(answer_on_gpu(&gpu, options, requests, REQUESTS, found) > 0, is_replayed);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        assert_int_equal(found[i].finish, WEFT_FINISH_LENGTH);
        if (strcmp(found[i].logits_sha256, expected[i].logits_sha256) != 0) {
            fail_msg("%s, %u ranks, %s: not the logits of bf16", form->name, options->rank_count, options->numerics);
        }
        assert_same_answer(&found[i], &expected[i]);
    }
}

/* Prompts in chunks of 5 and 64 tokens, up to 5 sequences in a step: products of few tokens, and of many. */
static void test_answers_of_bf16(void **state)
{
    static struct answer expected[REQUESTS];
    char fp8[4096], reference[4096];

    (void)state;
    for (uint32_t f = 0; f < FORM_COUNT; f++) {
        struct weft_engine_options options;

        fp8_model_make(&forms[f], fp8, reference);
        configure_gpus(&gpu, 0);
        gpu_options(&gpu, &options, reference, 1, "exact");
        (void)answer_on_gpu(&gpu, &options, requests, REQUESTS, expected);
        for (uint32_t ranks = 1; ranks <= 4; ranks *= 2) {
            gpu_options(&gpu, &options, fp8, ranks, "exact");
            options.prefill_chunk = ranks == 2 ? 5 : 64;
            options.sequence_count_max = 1 + ranks;
            check_answers(&forms[f], &options, expected, true);
        }
        options.is_eager = true;
        check_answers(&forms[f], &options, expected, false);
        folder_remove(fp8);
        folder_remove(reference);
    }
}

/* In numerics reference they are the CPU's, too. */
static void test_answers_of_the_cpu(void **state)
{
    static struct answer expected[REQUESTS];
    char fp8[4096];

    (void)state;
    for (uint32_t f = 0; f < FORM_COUNT; f++) {
        struct weft_engine_options options;

        fp8_model_make(&forms[f], fp8, NULL);
        configure_gpus(&gpu, 0);
        test_options(&options, fp8, 1);
        (void)answer_on_gpu(&gpu, &options, requests, REQUESTS, expected);
        gpu_options(&gpu, &options, fp8, 1 + f % 3, "reference");
        check_answers(&forms[f], &options, expected, true);
        folder_remove(fp8);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers_of_bf16),
        cmocka_unit_test(test_answers_of_the_cpu),
    };

    if (!weft_emulated_open(&gpu)) {
        print_message("SKIPPED: no weft_cuda_emulated.so beside this program\n");
        return 77;
    }
    make_random_requests(41, REQUESTS, PROMPT_MAX, prompts[0], requests);
    weft_log_configure(WEFT_LOG_ERROR, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
