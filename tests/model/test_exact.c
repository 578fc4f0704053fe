/*
 * The numerics contract at the level of the model: the same bits of logits at every position, and the same tokens, for
 * every rank count, split, thread count, chunk, instruction set and batch. A covering selection: every two values of
 * different settings meet in at least one run, which the test checks of itself. The full matrix is run on the binary.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "group.h"
#include "model/quantise.h"
#include "support.h"
#include "weft/log.h"

/*
 * 40 tokens of prompt and 50 of the answer are the prompt here, so that a chunk of 64 is less than the whole. Two
 * folders have prompts of 290 tokens: into the second piece of the cache that attention walks.
 */
enum { SHORT_COUNT = 90, LONG_COUNT = 290, TOKEN_COUNT = 6, RUN_COUNT = 24, FACTOR_COUNT = 8 };

enum factor { RANKS, CHUNK, LEVEL, SHARES, THREADS, MIXED, KV, SPARSE };

static const uint32_t rank_counts[] = {1, 2, 3, 4, 5, 8};
static const uint32_t chunks[] = {1, 7, 64, 0}; /* 0: the whole prompt */
static const char *const levels[] = {"ref", "avx2", "avx512", "avx512vnni"};
static const uint32_t value_counts[FACTOR_COUNT] = {6, 4, 4, 2, 2, 2, 2, 2};
static const uint32_t uneven[] = {3, 1, 1, 2, 1, 1, 1, 1};

/* Setting `factor` of run `run`: every rank count with every chunk, the rest spread over them. */
static uint32_t value_of(uint32_t run, enum factor factor)
{
    uint32_t ranks = run / 4, chunk = run % 4;

    switch (factor) {
    case RANKS: return ranks;
    case CHUNK: return chunk;
    case LEVEL: return (ranks + ranks / 2 + chunk) % 4;
    case SHARES: return (ranks + chunk / 2) % 2;
    case THREADS: return (ranks / 2 + chunk) % 2;
    case MIXED: return (ranks / 3 + chunk + chunk / 2) % 2;
    case SPARSE: return (ranks + chunk) % 2;
    case KV: return (ranks + ranks / 2 + chunk + chunk / 3) % 2;
    }
    return 0;
}

static bool is_covered(enum factor a, uint32_t a_value, enum factor b, uint32_t b_value)
{
    for (uint32_t run = 0; run < RUN_COUNT; run++) {
        if (value_of(run, a) == a_value && value_of(run, b) == b_value) {
            return true;
        }
    }
    return false;
}

static void test_every_pair_of_settings_is_covered(void **state)
{
    (void)state;
    for (int a = 0; a < FACTOR_COUNT; a++) {
        for (int b = a + 1; b < FACTOR_COUNT; b++) {
            for (uint32_t i = 0; i < value_counts[a] * value_counts[b]; i++) {
                uint32_t left = i % value_counts[a], right = i / value_counts[a];
                if (!is_covered((enum factor)a, left, (enum factor)b, right)) {
                    fail_msg("settings %d = %u and %d = %u never meet", a, left, b, right);
                }
            }
        }
    }
}

static bool has_level(const char *level)
{
    const struct weft_device_options options = {.kind = "cpu", .thread_count = 1, .cpu_level = level};
    struct weft_device *device = NULL;

    log_capture_begin();
    enum weft_status status = weft_device_open(&options, &device);
    log_capture_end();
    if (status == WEFT_OK) {
        weft_device_close(&device);
    }
    return status == WEFT_OK;
}

/* From `first` on: the positions whose logits were asked for. */
static void compare(const char *what, uint32_t first, const struct group_result *found,
                    const struct group_result *expected)
{
    for (uint32_t i = first; i < expected->position_count; i++) {
        size_t row = (size_t)i * expected->vocab_size;
        if (memcmp(found->logits + row, expected->logits + row, expected->vocab_size * sizeof(float)) != 0) {
            fail_msg("%s: logits of position %u differ", what, i);
        }
    }
    if (memcmp(found->tokens, expected->tokens, TOKEN_COUNT * sizeof(int32_t)) != 0) {
        fail_msg("%s: tokens differ", what);
    }
}

static void run_selection(const char *name, const char *folder, const struct golden *golden,
                          enum weft_quantise quantise)
{
    const struct group_options base = {.folder = folder,
                                       .rank_count = 1,
                                       .thread_count = 1,
                                       .chunk = golden->prompt_count,
                                       .cpu_level = "ref",
                                       .quantise = quantise};
    struct group_result expected[2], found;
    uint32_t skipped = 0;

    for (int kv = 0; kv < 2; kv++) {
        struct group_options options = base;
        options.kv_dtype = kv == 0 ? WEFT_F32 : WEFT_BF16;
        group_run(&options, golden, &expected[kv]);
    }
    for (uint32_t run = 0; run < RUN_COUNT; run++) {
        uint32_t kv = value_of(run, KV), chunk = chunks[value_of(run, CHUNK)];
        const struct group_options options = {.folder = folder,
                                              .rank_count = rank_counts[value_of(run, RANKS)],
                                              .shares = value_of(run, SHARES) == 1 ? uneven : NULL,
                                              .thread_count = value_of(run, THREADS) + 1,
                                              .chunk = chunk != 0 ? chunk : golden->prompt_count,
                                              .cpu_level = levels[value_of(run, LEVEL)],
                                              .kv_dtype = kv == 0 ? WEFT_F32 : WEFT_BF16,
                                              .quantise = quantise,
                                              .is_mixed = value_of(run, MIXED) == 1,
                                              .is_sparse = value_of(run, SPARSE) == 1};
        char what[256];
        if (chunk == 1 && golden->prompt_count > SHORT_COUNT) {
            continue; /* token by token is what the short prompts are for: it takes most of the time here */
        }
        if (!has_level(options.cpu_level)) {
            skipped++;
            continue;
        }
        snprintf(what, sizeof(what), "%s, %s: %u ranks%s, %u threads, chunk %u, %s, KV %s%s%s", name,
                 weft_quantise_name(quantise), options.rank_count, options.shares != NULL ? " uneven" : "",
                 options.thread_count, options.chunk, options.cpu_level, weft_dtype_name(options.kv_dtype),
                 options.is_mixed ? ", two sequences" : "", options.is_sparse ? ", last rows" : "");
        group_run(&options, golden, &found);
        compare(what, options.is_sparse ? golden->prompt_count - 1 : 0, &found, &expected[kv]);
        group_result_fini(&found);
    }
    if (skipped > 0) {
        print_message("SKIPPED: %u of %d runs need a CPU level that this machine lacks\n", skipped, RUN_COUNT);
    }
    group_result_fini(&expected[0]);
    group_result_fini(&expected[1]);
}

static void run_family(const char *name, enum weft_quantise quantise)
{
    struct golden golden;
    char folder[4096];
    int32_t prompt[LONG_COUNT];

    snprintf(folder, sizeof(folder), "%s/%s", GOLDEN_FOLDER, name);
    golden_open(folder, &golden);
    uint32_t count = golden.prompt_count < SHORT_COUNT ? SHORT_COUNT : golden.prompt_count;
    assert_true(count <= LONG_COUNT && golden.prompt_count + golden.token_count >= count);
    memcpy(prompt, golden.prompt, golden.prompt_count * sizeof(prompt[0]));
    memcpy(prompt + golden.prompt_count, golden.tokens, (count - golden.prompt_count) * sizeof(prompt[0]));
    struct golden longer = {
        .prompt = prompt, .prompt_count = count, .vocab_size = golden.vocab_size, .token_count = TOKEN_COUNT};
    run_selection(name, folder, &longer, quantise);
    golden_close(&golden);
}

static void test_family(void **state)
{
    run_family(*state, WEFT_QUANTISE_NONE);
}

/* Blocks that heads and leaves cut (head widths 8, 24), widths that are no multiple of a block, tied ends. */
static void test_family_q8_0(void **state)
{
    run_family(*state, WEFT_QUANTISE_Q8_0);
}

static void test_family_q4_0(void **state)
{
    run_family(*state, WEFT_QUANTISE_Q4_0);
}

/* ThreadSanitizer makes a run many times slower and looks at threads, not at numbers: three families there. */
#ifdef __SANITIZE_THREAD__
enum { IS_SHORT = 1 };
#else
enum { IS_SHORT = 0 };
#endif

#define FAMILY_AS(name, test, family)                                                                                  \
    {                                                                                                                  \
        name, test, NULL, NULL, (void *)family                                                                         \
    }
#define FAMILY(name) FAMILY_AS(name, test_family, name)
#define Q8_0(name)   FAMILY_AS(name " q8_0", test_family_q8_0, name)
#define Q4_0(name)   FAMILY_AS(name " q4_0", test_family_q4_0, name)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_pair_of_settings_is_covered),
        FAMILY("llama2"),
        FAMILY("llama3"),
        FAMILY("mistral"),
        FAMILY("qwen2"),
        FAMILY("qwen2-window"),
        FAMILY("qwen3"),
        FAMILY("linear"),
        FAMILY("yarn"),
        Q8_0("llama2"),
        Q8_0("mistral"),
        Q8_0("qwen2"),
        Q8_0("qwen3"),
        Q4_0("llama2"),
        Q4_0("mistral"),
        Q4_0("qwen2"),
        Q4_0("qwen3"),
    };

    const struct CMUnitTest shorter[] = {FAMILY("llama2"), FAMILY("llama3"), FAMILY("mistral"), Q8_0("mistral")};

    weft_log_configure(WEFT_LOG_WARN, NULL, NULL);
    if (IS_SHORT) {
        print_message("SKIPPED: under ThreadSanitizer only llama2, llama3 and mistral are run\n");
        return cmocka_run_group_tests_name("exact", shorter, NULL, NULL);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
