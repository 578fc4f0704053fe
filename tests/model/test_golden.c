/* Logits and greedy tokens against transformers, one rank: every golden folder, and story-model when ../shared is
 * there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "group.h"
#include "support.h"
#include "weft/log.h"

/* Of the row's largest magnitude. */
static const double TOLERANCE = 1e-4;

static void compare_row(const char *folder, uint32_t position, const float *found, const float *expected,
                        uint32_t count, double *worst)
{
    double largest = 0.0, error = 0.0;

    for (uint32_t i = 0; i < count; i++) {
        double magnitude = fabs((double)expected[i]), difference = fabs((double)found[i] - (double)expected[i]);
        largest = magnitude > largest ? magnitude : largest;
        error = !(difference <= error) ? difference : error;
    }
    if (!(error <= TOLERANCE * largest)) {
        fail_msg("%s: position %u: largest difference %g, largest logit %g", folder, position, error, largest);
    }
    *worst = error / largest > *worst ? error / largest : *worst;
}

static void check_folder(const char *model_folder, const char *golden_folder)
{
    const struct group_options options = {.folder = model_folder, .rank_count = 1, .thread_count = 1, .chunk = 16};
    struct group_result result;
    struct golden golden;
    double worst = 0.0;

    golden_open(golden_folder, &golden);
    group_run(&options, &golden, &result);
    for (uint32_t i = 0; i < golden.row_count; i++) {
        compare_row(golden_folder, (uint32_t)golden.rows[i], result.logits + (size_t)golden.rows[i] * golden.vocab_size,
                    golden.logits + (size_t)i * golden.vocab_size, golden.vocab_size, &worst);
    }
    assert_memory_equal(result.tokens, golden.tokens, golden.token_count * sizeof(golden.tokens[0]));
    print_message("%s: logits within %.1e of transformers, %u greedy tokens the same\n", golden_folder, worst,
                  golden.token_count);
    group_result_fini(&result);
    golden_close(&golden);
}

static void test_family(void **state)
{
    char folder[4096];

    snprintf(folder, sizeof(folder), "%s/%s", GOLDEN_FOLDER, (const char *)*state);
    check_folder(folder, folder);
}

static void test_story_model(void **state)
{
    (void)state;
    if (access(SHARED_FOLDER "/story-model/config.json", F_OK) != 0) {
        print_message("SKIPPED: %s is not there\n", SHARED_FOLDER "/story-model");
        skip();
    }
    check_folder(SHARED_FOLDER "/story-model", GOLDEN_FOLDER "/story-model");
}

#define FAMILY(name)                                                                                                   \
    {                                                                                                                  \
        name, test_family, NULL, NULL, (void *)name                                                                    \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        FAMILY("llama2"), FAMILY("llama3"),       FAMILY("mistral"),
        FAMILY("qwen2"),  FAMILY("qwen2-window"), FAMILY("qwen3"),
        FAMILY("linear"), FAMILY("yarn"),         cmocka_unit_test(test_story_model),
    };

    weft_log_configure(WEFT_LOG_WARN, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
