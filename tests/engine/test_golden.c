/* Greedy answers of every family through weft.h are those of Hugging Face transformers (tests/model/golden). */
#include "harness.h"

#include <stdio.h>
#include <string.h>

#include "../model/support.h"
#include "weft/log.h"

static void check_family(const char *name, uint32_t rank_count)
{
    struct weft_engine_options options;
    struct weft_request request;
    struct answer answer;
    struct golden golden;

    golden_open(golden_model(name), &golden);
    assert_true(golden.token_count >= 64);
    test_options(&options, golden_model(name), rank_count);
    options.prefill_chunk = 16;
    struct weft_engine *engine = open_engine(&options);
    weft_request_init(&request);
    request.token_ids = golden.prompt;
    request.token_count = golden.prompt_count;
    request.max_tokens = golden.token_count;
    request.is_eos_ignored = true;
    run_requests(engine, &request, 1, &answer);
    if (answer.token_count != golden.token_count ||
        memcmp(answer.token_ids, golden.tokens, golden.token_count * sizeof(int32_t)) != 0) {
        fail_msg("%s at %d ranks: other tokens than transformers", name, (int)rank_count);
    }
    weft_engine_close(&engine);
    golden_close(&golden);
}

static void test_greedy_tokens_of_every_family(void **state)
{
    static const char *const families[] = {"llama2", "llama3",       "mistral", "qwen2",
                                           "qwen3",  "qwen2-window", "linear",  "yarn"};

    (void)state;
    for (size_t i = 0; i < TEST_COUNT(families); i++) {
        for (uint32_t ranks = 1; ranks <= 3; ranks += 2) {
            check_family(families[i], ranks);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_greedy_tokens_of_every_family)};

    weft_log_configure(WEFT_LOG_ERROR, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
