/*
 * Decode steps as graphs on emulated GPUs: the answers of steps that are issued operation by operation, at any number
 * of ranks and of sequences, while these come and go and grow from one piece of attention into the next; how little is
 * left to issue; and what happens when it cannot be launched or recorded.
 */
#include "gpu_answers.h"

#include <string.h>

#include "weft/device.h"
#include "weft/log.h"

enum { REQUESTS = 4, PROMPT_MAX = 260 };

static struct weft_emulated_handle gpu;
static int32_t prompts[REQUESTS][PROMPT_MAX];
static struct weft_request requests[REQUESTS];

/* Two begin short of 256 positions and end beyond; they run for different times. */
static void make_requests(void)
{
    static const uint32_t lengths[REQUESTS] = {250, 3, 254, 31};
    static const uint32_t answers[REQUESTS] = {12, 22, 5, 2};
    uint64_t seed = 31;

    for (uint32_t i = 0; i < REQUESTS; i++) {
        weft_request_init(&requests[i]);
        for (uint32_t j = 0; j < lengths[i]; j++) {
            prompts[i][j] = (int32_t)(test_random(&seed) % 250);
        }
        requests[i].token_ids = prompts[i];
        requests[i].token_count = lengths[i];
        requests[i].max_tokens = answers[i];
        requests[i].has_logits_digest = true;
        requests[i].is_eos_ignored = true;
        requests[i].seed = 7 + i;
        requests[i].temperature = i == 1 ? 1.2f : 0.0f;
    }
}

static void configure(struct weft_emulated_config *config, uint32_t order)
{
    gpu.config_init(config);
    config->device_count = 4;
    config->order = order;
    gpu.configure(config);
}

static void options_for(struct weft_engine_options *options, const char *model, uint32_t rank_count)
{
    test_options(options, golden_model(model), rank_count);
    options->device = "cuda";
    options->cuda_module = gpu.path;
    options->kv_token_count = 1024;
}

static void answer_all(const struct weft_engine_options *options, struct answer answers[REQUESTS])
{
    struct weft_emulated_config config;

    configure(&config, options->rank_count);
    assert_int_equal(answer_on_gpu(&gpu, options, requests, REQUESTS, answers) > 0, !options->is_eager);
}

static void test_same_answers(void **state)
{
    static const char *const models[] = {"linear", "qwen2-window"};
    static struct answer expected[REQUESTS];
    static struct answer found[REQUESTS];
    struct weft_engine_options options;

    (void)state;
    for (size_t m = 0; m < TEST_COUNT(models); m++) {
        options_for(&options, models[m], 1);
        options.is_eager = true;
        answer_all(&options, expected);
        for (uint32_t ranks = 1; ranks <= 4; ranks++) {
            options_for(&options, models[m], ranks);
            options.sequence_count_max = ranks == 1 ? 6 : 1 + ranks; /* up to 4 sequences in steps of 1, 2, 4, 6 rows */
            options.prefill_chunk = 100;
            answer_all(&options, found);
            for (uint32_t i = 0; i < REQUESTS; i++) {
                assert_int_equal(found[i].finish, WEFT_FINISH_LENGTH);
                assert_same_answer(&found[i], &expected[i]);
            }
        }
    }
}

enum { STEPS = 10 };

/* Calls of the runtime's functions in STEPS steps of decode, on all ranks and with one sequence. */
static void count_calls(uint32_t rank_count, bool is_eager, const char *const *names, uint32_t name_count,
                        uint32_t *counts)
{
    struct weft_engine_options options;
    struct weft_emulated_config config;
    struct answer answer;

    options_for(&options, "linear", rank_count);
    options.is_eager = is_eager;
    configure(&config, 0);
    struct weft_engine *engine = open_engine(&options);
    for (uint32_t run = 0; run < 3; run++) { /* what the first one uploads the others need not */
        struct weft_request request = requests[1];
        request.has_logits_digest = false;
        request.max_tokens = 4 + (run == 2 ? STEPS : 0);
        configure(&config, 0);
        run_requests(engine, &request, 1, &answer);
        for (uint32_t i = 0; i < name_count; i++) {
            counts[i] = gpu.count(names[i]) - (run == 2 ? counts[i] : 0);
        }
    }
    weft_engine_close(&engine);
}

/* One rank issues one graph, one copy of what varies, and for the sampler two kernels and the copies of their results.
 */
static void test_calls_of_a_step(void **state)
{
    static const char *const names[] = {"cudaGraphLaunch", "launch", "cudaMemcpyAsync", "cudaMalloc",
                                        "cudaStreamBeginCapture"};
    static const uint32_t replayed[] = {1, 2, 3, 0, 0};
    uint32_t counts[TEST_COUNT(names)];

    (void)state;
    count_calls(1, false, names, TEST_COUNT(names), counts);
    for (uint32_t i = 0; i < TEST_COUNT(names); i++) {
        if (counts[i] != STEPS * replayed[i]) {
            fail_msg("%s: %d calls in %d steps, expected %d per step", names[i], (int)counts[i], STEPS,
                     (int)replayed[i]);
        }
    }
    count_calls(1, true, names, TEST_COUNT(names), counts);
    assert_int_equal(counts[0], 0);
    assert_true(counts[1] > 15 * STEPS);
}

/* Small sums through the peers' memory are part of the kernels that there are anyway: each of two ranks has those of
 * one alone, and one more for the sum of embeddings. */
static void test_kernels_of_a_step(void **state)
{
    static const char *const name = "launch";
    uint32_t alone;
    uint32_t both;

    (void)state;
    count_calls(1, true, &name, 1, &alone);
    count_calls(2, true, &name, 1, &both);
    if (both != 2 * (alone + STEPS)) {
        fail_msg("%d kernels of two ranks in %d steps, %d of one alone", (int)both, STEPS, (int)alone);
    }
}

/* A call of the runtime that fails once: how the engine ends, with one line that has `line`. */
static void expect_failure(const char *name, uint32_t call, bool is_opening, const char *line)
{
    struct weft_engine_options options;
    struct weft_emulated_config config;
    struct weft_engine *engine = NULL;
    struct weft_event events[4];
    enum weft_status status;
    uint64_t id;

    configure(&config, 0);
    config.fail_name = name;
    config.fail_call = is_opening ? call : 0;
    gpu.configure(&config);
    options_for(&options, "linear", 1);
    log_clear();
    status = weft_engine_open(&options, &engine);
    if (!is_opening) {
        assert_int_equal(status, WEFT_OK);
        config.fail_call = call;
        gpu.configure(&config);
        assert_int_equal(weft_engine_submit(engine, &requests[1], &id), WEFT_OK);
        do {
            uint32_t count = 0;
            status = weft_engine_poll(engine, 1000, events, TEST_COUNT(events), &count);
        } while (status == WEFT_OK);
        weft_engine_close(&engine);
    }
    assert_int_not_equal(status, WEFT_OK);
    assert_null(engine);
    if (!log_has(line)) {
        fail_msg("no \"%s\" in: %s", line, weft_engine_error());
    }
    assert_int_equal(log_error_count(), 1);
    if (gpu.live_count() != 0) {
        fail_msg("%s, call %d: %d objects left", name, (int)call, (int)gpu.live_count());
    }
}

static void test_failing_calls(void **state)
{
    (void)state;
    log_capture();
    expect_failure("cudaStreamBeginCapture", 2, true, "recording a step");
    expect_failure("cudaStreamEndCapture", 1, true, "recording a step");
    expect_failure("cudaGraphInstantiate", 3, true, "making a graph");
    expect_failure("cudaGraphUpload", 3, true, "uploading a graph");
    expect_failure("cudaGraphLaunch", 5, false, "launching a graph");
}

/*
 * A step of attention over two pieces, whose sums meet in scratch memory, recorded and replayed; in between more
 * scratch is wanted. A GPU would write to what was freed, the emulator reports it.
 */
static void test_scratch_grows_after_recording(void **state)
{
    enum { POSITIONS = 301, WIDTH = 8, PAGES = POSITIONS / WEFT_PAGE_POSITIONS + 1 };
    const struct weft_heads heads = {.head_count = 1, .kv_head_count = 1, .head_size = WIDTH, .group_size = 1};
    const struct weft_device_options device_options = {.kind = "cuda", .module = gpu.path, .thread_count = 1};
    const struct weft_kv_desc kv_desc = {
        .dtype = WEFT_F32, .layer_count = 1, .kv_head_count = 1, .head_size = WIDTH, .page_count = PAGES};
    uint32_t pages[PAGES];
    struct weft_batch_sequence sequence = {.token_count = POSITIONS, .page_count = PAGES, .pages = pages};
    struct weft_batch batch = {.token_count = POSITIONS, .sequence_count = 1, .sequences = &sequence};
    static float values[POSITIONS * 3 * WIDTH];
    float expected[WIDTH];
    float found[WIDTH];
    struct weft_emulated_config config;
    struct weft_device *device;
    struct weft_kv_cache *kv;
    struct weft_graphs *graphs;
    uint64_t seed = 3;

    (void)state;
    configure(&config, 0);
    assert_int_equal(weft_device_open(&device_options, &device), WEFT_OK);
    assert_int_equal(weft_kv_cache_open(device, &kv_desc, &kv), WEFT_OK);
    const struct weft_graphs_desc graphs_desc = {
        .kv = kv, .row_max = 1, .embed_max = 1, .page_max = PAGES, .part_max = 1};
    assert_int_equal(weft_graphs_open(device, &graphs_desc, &graphs), WEFT_OK);
    float *qkv = weft_device_alloc(device, sizeof(values));
    float *angles = weft_device_alloc(device, POSITIONS * WIDTH * sizeof(float));
    float *out = weft_device_alloc(device, sizeof(found));
    const struct weft_rope_args rope = {.heads = heads, .qkv = qkv, .angles = angles};
    const struct weft_attention_args attend = {.heads = heads, .scale = 1, .qkv = qkv, .out = out};
    for (uint32_t i = 0; i < PAGES; i++) {
        pages[i] = i;
    }
    for (size_t i = 0; i < TEST_COUNT(values); i++) {
        values[i] = (float)(test_random(&seed) % 1000) * 1e-3f;
    }
    assert_int_equal(weft_device_write(device, qkv, values, sizeof(values)), WEFT_OK);
    weft_device_rope_append(device, kv, &batch, &rope);
    sequence.position = POSITIONS - 1;
    sequence.token_count = 1;
    batch.token_count = 1;
    weft_device_attention(device, kv, &batch, &attend);
    assert_int_equal(weft_device_read(device, expected, out, sizeof(expected)), WEFT_OK);
    assert_true(expected[0] > 0);
    for (uint32_t run = 0; run < 2; run++) {
        for (uint32_t i = run; i < 2; i++) { /* twice at first: to record it, and to replay it */
            weft_graphs_begin(device, graphs, &batch);
            weft_device_attention(device, kv, &batch, &attend);
            weft_graphs_end(device, graphs, true);
        }
        assert_int_equal(weft_device_read(device, found, out, sizeof(found)), WEFT_OK);
        assert_memory_equal(found, expected, sizeof(found));
        memset(found, 0, sizeof(found));
        assert_int_equal(weft_device_write(device, out, found, sizeof(found)), WEFT_OK);
        if (run == 0) {
            assert_int_equal(weft_device_reserve(device, 8 << 20), WEFT_OK);
            assert_int_equal(gpu.count("cudaStreamBeginCapture"), 1);
        }
    }
    assert_int_equal(gpu.count("cudaStreamBeginCapture"), 1);
    assert_int_equal(gpu.count("cudaGraphLaunch"), 2);
    assert_string_equal(gpu.report(), "");
    weft_graphs_close(device, &graphs);
    weft_kv_cache_close(device, &kv);
    weft_device_free(device, qkv);
    weft_device_free(device, angles);
    weft_device_free(device, out);
    weft_device_close(&device);
    assert_int_equal(gpu.live_count(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_answers),
        cmocka_unit_test(test_calls_of_a_step),
        cmocka_unit_test(test_kernels_of_a_step),
        cmocka_unit_test(test_failing_calls),
        cmocka_unit_test(test_scratch_grows_after_recording),
    };

    if (!weft_emulated_open(&gpu)) {
        print_message("SKIPPED: no weft_cuda_emulated.so beside this program\n");
        return 77;
    }
    make_requests();
    weft_log_configure(WEFT_LOG_ERROR, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
