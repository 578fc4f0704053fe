/*
 * Engines on emulated GPUs that are missing, too small, or fail: one clear line, a status, nothing left behind, and no
 * wait that outlives its deadline.
 */
#include "harness.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "../emulator/handle.h"
#include "weft/log.h"

enum { TIMEOUT_MS = 3000 };

static struct weft_emulated_handle gpu;

static void options_for(struct weft_engine_options *options, uint32_t rank_count)
{
    test_options(options, golden_model("qwen2"), rank_count);
    options->device = "cuda";
    options->cuda_module = gpu.path;
    options->timeout_ms = TIMEOUT_MS;
}

static void config_for(struct weft_emulated_config *config, uint32_t device_count)
{
    gpu.config_init(config);
    config->device_count = device_count;
}

/* Opening fails with `expected` and one line of error that has all of `words`, and leaves nothing. */
static void expect_refusal(const struct weft_emulated_config *config, enum weft_status expected,
                           const char *const *words)
{
    struct weft_engine_options options;
    struct weft_engine *engine = NULL;

    gpu.configure(config);
    options_for(&options, 1);
    log_clear();
    enum weft_status status = weft_engine_open(&options, &engine);
    assert_int_equal(status, expected);
    assert_null(engine);
    for (; *words != NULL; words++) {
        if (!log_has(*words)) {
            fail_msg("no \"%s\" in: %s", *words, weft_engine_error());
        }
    }
    assert_int_equal(log_error_count(), 1);
    assert_int_equal(gpu.live_count(), 0);
}

static void test_no_gpu(void **state)
{
    struct weft_emulated_config config;

    (void)state;
    config_for(&config, 1);
    config.driver_version = 0;
    expect_refusal(&config, WEFT_ERR_UNSUPPORTED, (const char *const[]){"no NVIDIA driver on this host", NULL});
    config.driver_version = 12040;
    expect_refusal(&config, WEFT_ERR_UNSUPPORTED, (const char *const[]){"too old", "12.4", "13.0", NULL});
    config_for(&config, 0);
    expect_refusal(&config, WEFT_ERR_UNSUPPORTED, (const char *const[]){"no GPU that this process may use", NULL});
}

/* Without being asked for a GPU nobody misses one. */
static void test_auto_without_gpu(void **state)
{
    struct weft_emulated_config config;
    struct weft_engine_options options;

    (void)state;
    config_for(&config, 0);
    gpu.configure(&config);
    options_for(&options, 1);
    options.device = "auto";
    log_clear();
    struct weft_engine *engine = open_engine(&options);
    assert_int_equal(log_error_count(), 0);
    weft_engine_close(&engine);
}

static void test_too_little_memory(void **state)
{
    struct weft_emulated_config config;

    (void)state;
    config_for(&config, 1);
    config.memory_size = 1 << 20;
    expect_refusal(&config, WEFT_ERR_LIMIT,
                   (const char *const[]){"the model does not fit", "needs 3.6 MiB", "922 KiB available", NULL});
    config.memory_size = (4 << 20) + (100 << 10); /* nine tenths of it are what was said */
    gpu.configure(&config);
    struct weft_engine_options options;
    options_for(&options, 1);
    struct weft_engine *engine = open_engine(&options);
    weft_engine_close(&engine);
}

/* Every call of the runtime that opening makes fails once: an error and at least one line, or the call did not matter.
 */
static void test_any_call_fails_while_opening(void **state)
{
    struct weft_emulated_config config;
    struct weft_engine_options options;
    uint32_t call_count;
    uint32_t refused = 0;

    (void)state;
    config_for(&config, 1);
    gpu.configure(&config);
    options_for(&options, 1);
    struct weft_engine *engine = open_engine(&options);
    call_count = gpu.call_count();
    weft_engine_close(&engine);
    assert_true(call_count > 50);
    for (uint32_t call = 1; call <= call_count; call += call < 40 ? 1 : 1 + call_count / 40) {
        config.fail_call = call;
        config.fail_error = call % 2 == 0 ? 2 : 999; /* out of memory, unknown error */
        gpu.configure(&config);
        log_clear();
        if (weft_engine_open(&options, &engine) == WEFT_OK) {
            weft_engine_close(&engine);
        } else {
            refused++;
            assert_null(engine);
            if (log_error_count() != 1) {
                fail_msg("call %d: %d lines of error, last %s", (int)call, log_error_count(), weft_engine_error());
            }
        }
        if (gpu.live_count() != 0) {
            fail_msg("call %d: %d objects left", (int)call, (int)gpu.live_count());
        }
    }
    assert_true(refused > 20);
}

/* Runs a request on `rank_count` ranks until the GPU of one fails; how long that took, in seconds. */
static double run_until_failure(const struct weft_emulated_config *config, uint32_t rank_count,
                                enum weft_status *status)
{
    struct weft_engine_options options;
    struct weft_request request;
    struct weft_event events[4];
    static const int32_t prompt[] = {5, 6, 7, 8};
    struct timespec begin;
    struct timespec end;
    struct weft_emulated_config healthy;
    bool has_ended = false;
    uint64_t id;

    config_for(&healthy, config->device_count);
    gpu.configure(&healthy);
    options_for(&options, rank_count);
    struct weft_engine *engine = open_engine(&options);
    gpu.configure(config);
    weft_request_init(&request);
    request.token_ids = prompt;
    request.token_count = TEST_COUNT(prompt);
    request.max_tokens = 100;
    request.is_eos_ignored = true;
    log_clear();
    assert_int_equal(weft_engine_submit(engine, &request, &id), WEFT_OK);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do {
        uint32_t count = 0;

        *status = weft_engine_poll(engine, 1000, events, TEST_COUNT(events), &count);
        for (uint32_t i = 0; i < count; i++) {
            has_ended = has_ended || events[i].finish != WEFT_FINISH_NONE;
            assert_true(events[i].finish == WEFT_FINISH_NONE || events[i].finish == WEFT_FINISH_ERROR);
        }
        clock_gettime(CLOCK_MONOTONIC, &end);
        assert_true(end.tv_sec - begin.tv_sec < 60);
    } while (*status == WEFT_OK);
    assert_true(has_ended);
    weft_engine_close(&engine);
    return (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) * 1e-9;
}

static void test_kernel_dies_in_a_request(void **state)
{
    struct weft_emulated_config config;
    enum weft_status status;

    (void)state;
    for (uint32_t ranks = 1; ranks <= 2; ranks++) {
        config_for(&config, 2);
        config.fault_launch = 150;
        (void)run_until_failure(&config, ranks, &status);
        assert_int_not_equal(status, WEFT_OK);
        assert_true(log_has("unspecified launch failure"));
        assert_true(log_error_count() >= 1);
        config_for(&config, 2);
        gpu.configure(&config);
        assert_int_equal(gpu.live_count(), 0);
    }
}

static void test_gpu_hangs_in_a_request(void **state)
{
    struct weft_emulated_config config;
    enum weft_status status;

    (void)state;
    for (uint32_t ranks = 1; ranks <= 2; ranks++) {
        config_for(&config, 2);
        config.hang_operation = 150;
        double seconds = run_until_failure(&config, ranks, &status);
        assert_int_not_equal(status, WEFT_OK);
        if (!log_has("not done after")) {
            fail_msg("no line about the GPU: %s", weft_engine_error());
        }
        assert_true(seconds < 4 * TIMEOUT_MS / 1000.0);
        config_for(&config, 2);
        gpu.configure(&config); /* lets it go: what a real process would leave to the driver */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_gpu),
        cmocka_unit_test(test_auto_without_gpu),
        cmocka_unit_test(test_too_little_memory),
        cmocka_unit_test(test_any_call_fails_while_opening),
        cmocka_unit_test(test_kernel_dies_in_a_request),
        cmocka_unit_test(test_gpu_hangs_in_a_request),
    };

    if (!weft_emulated_open(&gpu)) {
        print_message("SKIPPED: no weft_cuda_emulated.so beside this program\n");
        return 77;
    }
    log_capture();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
