/*
 * Whole engines on emulated GPUs (tests/emulator). Multiplying in the CPU's order, or with quantised weights in
 * whatever numerics, a GPU gives the CPU's answers bit by bit; with 16-bit weights on tensor cores its own, the same
 * for every rank count, chunk and company, and still the tokens of transformers for tiny models. A GPU that fails ends
 * in one line, not in waiting.
 */
#include "gpu_answers.h"

#include <stdio.h>
#include <string.h>

#include "../model/support.h"
#include "weft/log.h"

enum { REQUESTS = 5, PROMPT_MAX = 40 };

static struct weft_emulated_handle gpu;
static int32_t prompts[REQUESTS][PROMPT_MAX];
static struct weft_request requests[REQUESTS];

static void make_requests(void)
{
    make_random_requests(29, REQUESTS, PROMPT_MAX, prompts[0], requests);
    requests[1].repetition_penalty = 1.3f;
    requests[1].presence_penalty = 0.5f;
    requests[3].top_p = 0.8f;
}

static void answer_all(const struct weft_engine_options *options, struct answer answers[REQUESTS])
{
    (void)answer_on_gpu(&gpu, options, requests, REQUESTS, answers);
}

static void assert_same_answers(const struct answer *a, const struct answer *b)
{
    for (uint32_t i = 0; i < REQUESTS; i++) {
        assert_int_equal(a[i].finish, WEFT_FINISH_LENGTH);
        assert_same_answer(&a[i], &b[i]);
    }
}

/* f32 weights with any numerics, 16-bit weights in the CPU's order: tokens and logits of the CPU. */
static void test_bits_of_the_cpu(void **state)
{
    static const struct {
        const char *model;
        const char *numerics;
        uint32_t rank_count;
    } runs[] = {{"llama2", "exact", 1},      {"llama2", "exact", 3},    {"qwen2", "reference", 1},
                {"qwen2", "reference", 2},   {"qwen3", "reference", 4}, {"yarn", "reference", 1},
                {"qwen2-window", "exact", 2}};
    static struct answer expected[REQUESTS];
    static struct answer found[REQUESTS];

    (void)state;
    for (size_t i = 0; i < TEST_COUNT(runs); i++) {
        struct weft_engine_options options;

        configure_gpus(&gpu, (uint32_t)i);
        test_options(&options, golden_model(runs[i].model), 1);
        answer_all(&options, expected);
        gpu_options(&gpu, &options, golden_model(runs[i].model), runs[i].rank_count, runs[i].numerics);
        options.prefill_chunk = i % 2 == 0 ? 7 : 64;
        answer_all(&options, found);
        assert_same_answers(found, expected);
        assert_true(gpu.launch_count() > 100);
    }
}

/* Quantised weights on tensor cores: tokens and logits of the CPU, which are others for each type. */
static void test_quantised_bits_of_the_cpu(void **state)
{
    static const struct {
        const char *model;
        const char *numerics;
    } models[] = {{"qwen2", "exact"}, {"llama2", "exact"}, {"qwen3", "reference"}};
    static const char *const types[] = {"none", "q8_0", "q4_0"};
    static struct answer expected[3][REQUESTS];
    static struct answer found[REQUESTS];

    (void)state;
    for (size_t m = 0; m < TEST_COUNT(models); m++) {
        for (uint32_t type = 0; type < 3; type++) {
            struct weft_engine_options options;

            test_options(&options, golden_model(models[m].model), 1);
            options.quantize = types[type];
            configure_gpus(&gpu, 0);
            answer_all(&options, expected[type]);
            for (uint32_t other = 0; other < type; other++) {
                assert_string_not_equal(expected[type][0].logits_sha256, expected[other][0].logits_sha256);
            }
            for (uint32_t ranks = 1; type > 0 && ranks <= 4; ranks++) {
                configure_gpus(&gpu, ranks);
                gpu_options(&gpu, &options, golden_model(models[m].model), ranks, models[m].numerics);
                options.quantize = types[type];
                options.prefill_chunk = ranks % 2 == 0 ? 7 : 64; /* with products of few tokens, and of many */
                answer_all(&options, found);
                assert_same_answers(found, expected[type]);
                assert_true(gpu.launch_count() > 100);
            }
        }
    }
}

/* On tensor cores: one request after another on one rank, against all together on any number of ranks. */
static void test_tensor_cores_at_any_ranks(void **state)
{
    static const char *const models[] = {"qwen2", "mistral"};
    static const uint32_t chunks[] = {1, 64, 5, 16};
    static struct answer expected[REQUESTS];
    static struct answer found[REQUESTS];
    struct weft_engine_options options;

    (void)state;
    for (size_t m = 0; m < TEST_COUNT(models); m++) {
        configure_gpus(&gpu, 0);
        gpu_options(&gpu, &options, golden_model(models[m]), 1, "exact");
        for (uint32_t i = 0; i < REQUESTS; i++) {
            struct weft_engine *engine = open_engine(&options);
            run_requests(engine, &requests[i], 1, &expected[i]);
            weft_engine_close(&engine);
        }
        for (uint32_t ranks = 1; ranks <= 4; ranks++) {
            configure_gpus(&gpu, ranks);
            gpu_options(&gpu, &options, golden_model(models[m]), ranks, "exact");
            options.prefill_chunk = chunks[ranks - 1];
            options.sequence_count_max = 1 + ranks;
            answer_all(&options, found);
            assert_same_answers(found, expected);
        }
    }
}

/* transformers computed in f32; rounding activations to 16 bits tips a close choice of qwen3 at its 14th token. */
static void test_greedy_tokens_of_transformers(void **state)
{
    static const struct {
        const char *name;
        uint32_t token_count;
    } families[] = {{"llama2", 24}, {"llama3", 24}, {"mistral", 24}, {"qwen2", 24},
                    {"qwen3", 13},  {"linear", 24}, {"yarn", 24},    {"qwen2-window", 24}};

    (void)state;
    configure_gpus(&gpu, 0);
    for (size_t i = 0; i < TEST_COUNT(families); i++) {
        struct weft_engine_options options;
        struct weft_request request;
        struct answer answer;
        struct golden golden;

        golden_open(golden_model(families[i].name), &golden);
        gpu_options(&gpu, &options, golden_model(families[i].name), 1, "exact");
        struct weft_engine *engine = open_engine(&options);
        weft_request_init(&request);
        request.token_ids = golden.prompt;
        request.token_count = golden.prompt_count;
        request.max_tokens = families[i].token_count;
        request.is_eos_ignored = true;
        run_requests(engine, &request, 1, &answer);
        weft_engine_close(&engine);
        assert_int_equal(answer.token_count, families[i].token_count);
        if (memcmp(answer.token_ids, golden.tokens, answer.token_count * sizeof(int32_t)) != 0) {
            fail_msg("%s: other tokens than transformers", families[i].name);
        }
        golden_close(&golden);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits_of_the_cpu),
        cmocka_unit_test(test_quantised_bits_of_the_cpu),
        cmocka_unit_test(test_tensor_cores_at_any_ranks),
        cmocka_unit_test(test_greedy_tokens_of_transformers),
    };

    if (!weft_emulated_open(&gpu)) {
        print_message("SKIPPED: no weft_cuda_emulated.so beside this program\n");
        return 77;
    }
    make_requests();
    weft_log_configure(WEFT_LOG_ERROR, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
