/*
 * The promise of weft.h: an answer depends on model, prompt, sampling and seed alone. One set of requests, answered one
 * by one on one rank, must come out the same in any company, at any rank count, chunk and candidate count.
 */
#include "harness.h"

#include <string.h>

#include "weft/device.h"
#include "weft/log.h"

enum { REQUESTS = 9, PROMPT_MAX = 40 };

static int32_t prompts[REQUESTS][PROMPT_MAX];
static struct weft_request requests[REQUESTS];
static struct answer expected[REQUESTS];

/* Every sampling setting appears, alone and together. */
static void make_requests(void)
{
    uint64_t seed = 11;

    for (uint32_t i = 0; i < REQUESTS; i++) {
        weft_request_init(&requests[i]);
        requests[i].token_count = 1 + (uint32_t)(test_random(&seed) % PROMPT_MAX);
        for (uint32_t j = 0; j < requests[i].token_count; j++) {
            prompts[i][j] = (int32_t)(test_random(&seed) % 250);
        }
        requests[i].token_ids = prompts[i];
        requests[i].max_tokens = 8 + i;
        requests[i].has_logits_digest = i != 3;
        requests[i].is_eos_ignored = true;
        requests[i].seed = 100 + i;
        requests[i].temperature = i < 2 ? 0.0f : 1.0f;
    }
    requests[1].repetition_penalty = 1.3f;
    requests[1].presence_penalty = 0.5f;
    requests[3].top_k = 5;
    requests[4].top_p = 0.7f;
    requests[4].temperature = 0.5f;
    requests[5].min_p = 0.2f;
    requests[6].temperature = 3.0f; /* flat: candidates often cannot decide */
    requests[7].top_p = 0.98f;
    requests[7].temperature = 2.0f;
    requests[7].frequency_penalty = 1.0f;
    requests[8].top_k = 100; /* more than the candidates of most runs */
    requests[8].repetition_penalty = 0.8f;
    requests[8].temperature = 2.0f;
}

static void answer_alone_as(const char *model, uint32_t leaf_count, const char *quantize)
{
    struct weft_engine_options options;

    test_options(&options, model, 1);
    options.leaf_count = leaf_count;
    options.quantize = quantize;
    for (uint32_t i = 0; i < REQUESTS; i++) {
        struct weft_engine *engine = open_engine(&options);
        run_requests(engine, &requests[i], 1, &expected[i]);
        weft_engine_close(&engine);
        assert_null(engine);
        assert_int_equal(expected[i].finish, WEFT_FINISH_LENGTH);
        assert_int_equal(expected[i].token_count, requests[i].max_tokens);
        assert_int_equal(expected[i].prompt_token_count, requests[i].token_count);
        assert_int_equal(strlen(expected[i].logits_sha256), requests[i].has_logits_digest ? 64 : 0);
    }
}

static void answer_alone(const char *model, uint32_t leaf_count)
{
    answer_alone_as(model, leaf_count, NULL);
}

static bool has_level(const char *level)
{
    const struct weft_device_options options = {.kind = "cpu", .thread_count = 1, .cpu_level = level};
    struct weft_device *device = NULL;

    if (weft_device_open(&options, &device) != WEFT_OK) {
        return false;
    }
    weft_device_close(&device);
    return true;
}

static void check(const struct weft_engine_options *options)
{
    struct weft_engine *engine = open_engine(options);
    static struct answer answers[REQUESTS];

    run_requests(engine, requests, REQUESTS, answers);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        assert_same_answer(&answers[i], &expected[i]);
    }
    weft_engine_close(&engine);
}

static void test_any_ranks_company_and_chunk(void **state)
{
    static const char *const models[] = {"qwen2", "qwen3", "llama2"};
    static const uint32_t chunks[] = {1, 5, 64, 0, 7};
    struct weft_engine_options options;

    (void)state;
    for (size_t m = 0; m < TEST_COUNT(models); m++) {
        answer_alone(golden_model(models[m]), 0);
        for (uint32_t ranks = 1; ranks <= 5; ranks++) {
            test_options(&options, golden_model(models[m]), ranks);
            options.prefill_chunk = chunks[ranks - 1];
            options.sequence_count_max = 1 + ranks;
            check(&options);
        }
    }
}

static void test_candidates_or_whole_rows(void **state)
{
    static const uint32_t counts[] = {1, 3, 16, 256};
    struct weft_engine_options options;

    (void)state;
    answer_alone(golden_model("qwen3"), 0);
    for (size_t i = 0; i < TEST_COUNT(counts); i++) {
        test_options(&options, golden_model("qwen3"), 1 + (uint32_t)i);
        options.candidate_count = counts[i];
        check(&options);
    }
}

static void test_uneven_shares_and_little_cache(void **state)
{
    static const uint32_t shares[] = {3, 1, 2};
    struct weft_engine_options options;

    (void)state;
    answer_alone(golden_model("qwen2"), 0);
    test_options(&options, golden_model("qwen2"), 3);
    options.shares = shares;
    options.share_count = 3;
    check(&options);
    /* Room for about one request at a time: the others wait for pages, not for places. */
    test_options(&options, golden_model("qwen2"), 2);
    options.kv_token_count = 64;
    options.context_length = 64;
    options.sequence_count_max = 9;
    options.is_traced = true;
    check(&options);
}

static void test_levels_and_threads(void **state)
{
    static const char *const levels[] = {"ref", "avx2", "avx512", "avx512vnni"};
    struct weft_engine_options options;

    (void)state;
    answer_alone(golden_model("mistral"), 0); /* at the best level of this machine */
    for (size_t i = 0; i < TEST_COUNT(levels); i++) {
        for (uint32_t threads = 1; threads <= 2; threads++) {
            test_options(&options, golden_model("mistral"), threads == 1 ? 8 : 2);
            options.cpu_level = levels[i];
            options.thread_count = threads;
            options.prefill_chunk = 11;
            if (i > 0 && !has_level(levels[i])) {
                print_message("SKIPPED: this CPU has no %s\n", levels[i]);
                continue;
            }
            check(&options);
        }
    }
}

/* Read and streamed, at every level, in any company: fewer bits, but the same ones. */
static void test_quantised(void **state)
{
    static const struct {
        const char *model;
        const char *quantize;
    } cases[] = {{"qwen2", "q8_0"}, {"qwen3", "q8_0"}, {"llama2", "q4_0"}, {"mistral", "q4_0"}};
    static const uint32_t ranks[] = {1, 2, 3, 8};
    static const uint32_t chunks[] = {1, 5, 64, 7};
    static const char *const levels[] = {NULL, "ref", "avx2", "avx512"};
    struct weft_engine_options options;

    (void)state;
    for (size_t i = 0; i < TEST_COUNT(cases); i++) {
        answer_alone_as(golden_model(cases[i].model), 0, cases[i].quantize);
        for (size_t j = 0; j < TEST_COUNT(ranks); j++) {
            const char *level = levels[(i + j) % TEST_COUNT(levels)];
            test_options(&options, golden_model(cases[i].model), ranks[j]);
            options.quantize = cases[i].quantize;
            options.prefill_chunk = chunks[(i + j) / 2 % TEST_COUNT(chunks)];
            options.sequence_count_max = 2 + (uint32_t)j;
            options.weights = j % 2 == 1 ? "stream" : "local";
            options.cpu_level = level == NULL || has_level(level) ? level : NULL;
            check(&options);
        }
    }
}

/* 64 leaves for 6 heads and 16 panels of vocabulary: most ranks own no head or no vocabulary, some own nothing at all.
 */
static void test_more_ranks_than_there_is_to_own(void **state)
{
    struct weft_engine_options options;

    (void)state;
    answer_alone(golden_model("qwen3"), 64);
    test_options(&options, golden_model("qwen3"), 24);
    options.leaf_count = 64;
    check(&options);
}

static void test_seeds_differ(void **state)
{
    struct weft_engine_options options;
    struct weft_request pair[2] = {requests[6], requests[6]};
    struct answer answers[2];

    (void)state;
    pair[1].seed++;
    test_options(&options, golden_model("qwen2"), 2);
    struct weft_engine *engine = open_engine(&options);
    run_requests(engine, pair, 2, answers);
    assert_int_equal(answers[0].token_count, answers[1].token_count);
    assert_memory_not_equal(answers[0].token_ids, answers[1].token_ids, answers[0].token_count * sizeof(int32_t));
    weft_engine_close(&engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_ranks_company_and_chunk),
        cmocka_unit_test(test_candidates_or_whole_rows),
        cmocka_unit_test(test_uneven_shares_and_little_cache),
        cmocka_unit_test(test_levels_and_threads),
        cmocka_unit_test(test_more_ranks_than_there_is_to_own),
        cmocka_unit_test(test_seeds_differ),
        cmocka_unit_test(test_quantised),
    };

    make_requests();
    weft_log_configure(WEFT_LOG_ERROR, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
