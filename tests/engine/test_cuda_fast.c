/*
 * Whole engines with numerics fast, on emulated GPUs over a stub of cuBLASLt: prompts and large batches are multiplied
 * by it, on any number of ranks, issued or replayed as graphs, and tokens stay those of transformers. Products that
 * fail end in one line. Without the library, fast is exact.
 */
#include "gpu_answers.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "../emulator/cublaslt_stub.h"
#include "../model/support.h"
#include "weft/log.h"

/* Decode steps of all of them have tokens enough for cuBLASLt: TOKENS_MIN of kernels/cuda/matrix_fast.cu. */
enum { REQUESTS = 18, TOKENS = 5 };

static struct weft_emulated_handle gpu;
static void (*stub_configure)(const struct cublaslt_stub_config *config);
static void (*stub_count)(struct cublaslt_stub_counts *out);

static void configure(uint32_t fail_matmul)
{
    struct weft_emulated_config config;

    gpu.config_init(&config);
    config.device_count = 4;
    gpu.configure(&config);
    if (stub_configure != NULL) {
        stub_configure(&(struct cublaslt_stub_config){.fail_matmul = fail_matmul});
    }
    log_clear();
}

static uint32_t matmul_count(void)
{
    struct cublaslt_stub_counts counts = {0};

    stub_count(&counts);
    return counts.matmuls;
}

static void fast_options(struct weft_engine_options *options, const char *model, uint32_t rank_count)
{
    test_options(options, golden_model(model), rank_count);
    options->device = "cuda";
    options->numerics = "fast";
    options->cuda_module = gpu.path;
    options->sequence_count_max = REQUESTS;
    options->timeout_ms = 5000;
}

static struct weft_request golden_request(const struct golden *golden)
{
    struct weft_request request;

    weft_request_init(&request);
    request.token_ids = golden->prompt;
    request.token_count = golden->prompt_count;
    request.max_tokens = TOKENS;
    request.is_eos_ignored = true;
    request.has_logits_digest = true;
    return request;
}

/* The same prompt REQUESTS times at once. */
static void answer_golden(const struct weft_engine_options *options, const struct golden *golden)
{
    static struct weft_request requests[REQUESTS];
    static struct answer answers[REQUESTS];

    for (uint32_t i = 0; i < REQUESTS; i++) {
        requests[i] = golden_request(golden);
    }
    (void)answer_on_gpu(&gpu, options, requests, REQUESTS, answers);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        assert_int_equal(answers[i].status, WEFT_OK);
        assert_int_equal(answers[i].token_count, TOKENS);
        assert_memory_equal(answers[i].token_ids, golden->tokens, TOKENS * sizeof(int32_t));
    }
}

static void test_tokens_of_transformers(void **state)
{
    static const struct {
        const char *model;
        uint32_t rank_count;
        bool is_eager;
    } runs[] = {{"llama3", 1, false}, {"llama3", 1, true},  {"qwen2", 1, false},
                {"qwen2", 3, false},  {"mistral", 2, true}, {"mistral", 4, false}};

    (void)state;
    for (size_t i = 0; i < TEST_COUNT(runs); i++) {
        struct weft_engine_options options;
        struct cublaslt_stub_counts counts;
        struct golden golden;

        configure(0);
        golden_open(golden_model(runs[i].model), &golden);
        fast_options(&options, runs[i].model, runs[i].rank_count);
        options.is_eager = runs[i].is_eager;
        answer_golden(&options, &golden);
        golden_close(&golden);
        assert_true(matmul_count() > 0);
        assert_int_equal(gpu.count("cudaGraphLaunch") > 0, !runs[i].is_eager);
        stub_count(&counts);
        assert_int_equal(counts.live, 0);
        assert_int_equal(log_error_count(), 0);
    }
}

/* One request alone: its prompt is multiplied by the library, its other tokens are not; with exact neither. (Bits need
 * not differ: activations are rounded to 16 bits between products of so few columns.) */
static void test_only_prompts_are_multiplied_so(void **state)
{
    static struct answer answers[2];
    struct weft_engine_options options;
    struct golden golden;

    (void)state;
    golden_open(golden_model("qwen2"), &golden);
    assert_true(golden.prompt_count >= 16);
    for (uint32_t i = 0; i < 2; i++) {
        struct weft_request request = golden_request(&golden);

        configure(0);
        fast_options(&options, "qwen2", 1);
        options.numerics = i == 0 ? "exact" : "fast";
        options.sequence_count_max = 2;
        struct weft_engine *engine = open_engine(&options);
        uint32_t before = matmul_count();
        request.max_tokens = 1;
        run_requests(engine, &request, 1, &answers[i]);
        uint32_t prompt = matmul_count() - before;
        assert_int_equal(prompt > 0, i == 1);
        request.max_tokens = TOKENS;
        run_requests(engine, &request, 1, &answers[i]);
        assert_true(matmul_count() - before <= 2 * prompt);
        weft_engine_close(&engine);
    }
    assert_memory_equal(answers[0].token_ids, answers[1].token_ids, TOKENS * sizeof(int32_t));
    golden_close(&golden);
}

static void test_a_product_that_fails(void **state)
{
    static struct answer answer;
    struct weft_engine_options options;
    struct golden golden;

    (void)state;
    golden_open(golden_model("qwen2"), &golden);
    for (uint32_t ranks = 1; ranks <= 2; ranks++) {
        struct weft_request request = golden_request(&golden);

        configure(3);
        fast_options(&options, "qwen2", ranks);
        options.sequence_count_max = 2;
        struct weft_engine *engine = open_engine(&options);
        run_requests(engine, &request, 1, &answer);
        assert_int_equal(answer.finish, WEFT_FINISH_ERROR);
        assert_true(log_has("a product by cuBLASLt: CUBLAS_STATUS_EXECUTION_FAILED"));
        weft_engine_close(&engine);
        assert_int_equal(gpu.live_count(), 0);
    }
    golden_close(&golden);
}

/* The bits of exact, and one line per rank that says so. */
static void test_without_the_library(void **state)
{
    static struct answer answers[2];
    struct golden golden;

    (void)state;
    golden_open(golden_model("qwen2"), &golden);
    for (uint32_t i = 0; i < 2; i++) {
        struct weft_request request = golden_request(&golden);
        struct weft_engine_options options;

        configure(0);
        fast_options(&options, "qwen2", 1 + i);
        options.numerics = i == 0 ? "exact" : "fast";
        struct weft_engine *engine = open_engine(&options);
        assert_int_equal(log_has("numerics fast without cuBLASLt is as exact"), i == 1);
        run_requests(engine, &request, 1, &answers[i]);
        weft_engine_close(&engine);
        assert_int_equal(log_error_count(), 0);
    }
    assert_same_answer(&answers[0], &answers[1]);
    golden_close(&golden);
}

int main(int count, char **arguments)
{
    const struct CMUnitTest with[] = {
        cmocka_unit_test(test_tokens_of_transformers),
        cmocka_unit_test(test_only_prompts_are_multiplied_so),
        cmocka_unit_test(test_a_product_that_fails),
    };
    const struct CMUnitTest without[] = {
        cmocka_unit_test(test_without_the_library),
    };
    void *library = dlopen("libcublasLt.so.13", RTLD_NOW);
    bool is_without = count > 1 && strcmp(arguments[1], "without") == 0;

    if (!weft_emulated_open(&gpu)) {
        print_message("SKIPPED: no weft_cuda_emulated.so beside this program\n");
        return 77;
    }
    log_capture();
    if (is_without) {
        return cmocka_run_group_tests(without, NULL, NULL);
    }
    if (library != NULL) {
        *(void **)&stub_configure = dlsym(library, "cublaslt_stub_configure");
        *(void **)&stub_count = dlsym(library, "cublaslt_stub_count");
    }
    if (stub_configure == NULL || stub_count == NULL) {
        print_message("SKIPPED: the loader does not find the stub of cuBLASLt\n");
        return 77;
    }
    return cmocka_run_group_tests(with, NULL, NULL);
}
