/*
 * Decode steps of several ranks as graphs, on emulated GPUs: batches around the sizes that are recorded, with sums
 * inside the graph (through the peers' memory, over the stub of NCCL) or between its parts (through host memory); how
 * often a step is launched; and ranks that fail or hang inside a graph.
 */
#include "gpu_answers.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "../comm/nccl_stub.h"
#include "weft/log.h"

/* Sizes recorded for ten sequences: 1, 2, 4, 8, 10. Requests end one by one, so all from nine to one are passed. */
enum { REQUESTS = 9, SEQUENCES = 10, RANKS = 4, PROMPT_MAX = 260, LAYERS = 2, TIMEOUT_MS = 3000 };

static struct weft_emulated_handle gpu;
static struct nccl_stub_faults *nccl; /* NULL: no stub in this build */
static nccl_stub_issued_count_function *nccl_issued_count;
static int32_t prompts[REQUESTS][PROMPT_MAX];
static struct weft_request requests[REQUESTS];

/* How sums go, and how many graphs a step of decode is made of. */
struct way {
    const char *comm;
    uint32_t has_nccl;
    uint32_t part_count;
};
static const struct way ways[] = {{"auto", 0, 1}, {"nccl", 1, 1}, {"auto", 1, 1}, {"shm", 0, 2 * LAYERS + 2}};

static bool can_go(const struct way *way)
{
    return way->has_nccl == 0 || nccl != NULL;
}

/* The third begins short of 256 positions and ends beyond. Prompts come in while others are answered already. */
static void make_requests(void)
{
    uint64_t seed = 47;

    for (uint32_t i = 0; i < REQUESTS; i++) {
        uint32_t length = i == 2 ? 252 : 3 + 7 * i;

        weft_request_init(&requests[i]);
        for (uint32_t j = 0; j < length; j++) {
            prompts[i][j] = (int32_t)(test_random(&seed) % 250);
        }
        requests[i].token_ids = prompts[i];
        requests[i].token_count = length;
        requests[i].max_tokens = 8 + 2 * i;
        requests[i].has_logits_digest = true;
        requests[i].is_eos_ignored = true;
        requests[i].seed = 7 + i;
        requests[i].temperature = i % 4 == 1 ? 1.2f : 0.0f;
    }
}

static void configure(const struct way *way, uint32_t order, uint32_t hang_operation)
{
    struct weft_emulated_config config;

    gpu.config_init(&config);
    config.device_count = RANKS;
    config.order = order;
    config.has_nccl = way->has_nccl;
    config.hang_operation = hang_operation;
    gpu.configure(&config);
}

static void options_for(struct weft_engine_options *options, const struct way *way, uint32_t rank_count)
{
    test_options(options, golden_model("linear"), rank_count);
    options->device = "cuda";
    options->cuda_module = gpu.path;
    options->comm = rank_count == 1 ? "auto" : way->comm;
    options->sequence_count_max = SEQUENCES;
    options->kv_token_count = 1024;
    options->prefill_chunk = 60;
}

/* ---- answers ---- */

static void answer_all(const struct weft_engine_options *options, const struct way *way, struct answer *answers)
{
    configure(way, options->rank_count, 0);
    assert_int_equal(answer_on_gpu(&gpu, options, requests, REQUESTS, answers) > 0, !options->is_eager);
}

static void test_same_answers(void **state)
{
    static struct answer expected[REQUESTS];
    static struct answer found[REQUESTS];
    struct weft_engine_options options;

    (void)state;
    options_for(&options, &ways[0], 1);
    options.is_eager = true;
    answer_all(&options, &ways[0], expected);
    for (size_t w = 0; w < TEST_COUNT(ways); w++) {
        for (uint32_t ranks = w == 0 ? 1 : 2; ranks <= RANKS && can_go(&ways[w]); ranks++) {
            for (int is_eager = ranks % 2; is_eager >= 0; is_eager--) {
                options_for(&options, &ways[w], ranks);
                options.is_eager = is_eager;
                answer_all(&options, &ways[w], found);
                for (uint32_t i = 0; i < REQUESTS; i++) {
                    assert_int_equal(found[i].finish, WEFT_FINISH_LENGTH);
                    assert_same_answer(&found[i], &expected[i]);
                }
            }
        }
    }
}

/* ---- what a step is made of ---- */

struct counts {
    uint32_t launches; /* of graphs */
    uint32_t captures;
    uint32_t allocations;
    uint32_t groups; /* of NCCL, issued or captured */
};

/* What happens while `sequences` requests are answered with `steps` tokens each, for the second time. */
static struct counts count_calls(const struct way *way, uint32_t rank_count, uint32_t sequences, uint32_t steps)
{
    struct weft_engine_options options;
    struct answer answers[REQUESTS];
    struct weft_request batch[REQUESTS];
    uint64_t groups = 0;

    options_for(&options, way, rank_count);
    configure(way, 0, 0);
    struct weft_engine *engine = open_engine(&options);
    for (uint32_t run = 0; run < 2; run++) {
        for (uint32_t i = 0; i < sequences; i++) {
            batch[i] = requests[i];
            batch[i].token_count = 3;
            batch[i].max_tokens = steps;
        }
        configure(way, 0, 0);
        groups = nccl != NULL ? nccl_issued_count() : 0;
        run_requests(engine, batch, sequences, answers);
    }
    const struct counts counts = {.launches = gpu.count("cudaGraphLaunch"),
                                  .captures = gpu.count("cudaStreamBeginCapture"),
                                  .allocations = gpu.count("cudaMalloc"),
                                  .groups = nccl != NULL ? (uint32_t)(nccl_issued_count() - groups) : 0};
    weft_engine_close(&engine);
    return counts;
}

/* Prompts come in with the first steps, one by one at worst; those are issued, all others are launched as graphs. */
static void test_launches_of_a_step(void **state)
{
    enum { STEPS = 24, SIZES = 3, SUMS = 2 * LAYERS + 1 };
    static const uint32_t sizes[SIZES] = {1, 5, 9}; /* 5 and 9 are none that is recorded */

    (void)state;
    for (size_t w = 0; w < TEST_COUNT(ways); w++) {
        for (uint32_t i = 0; i < SIZES && can_go(&ways[w]); i++) {
            uint32_t ranks = 2 + i % 2;
            struct counts counts = count_calls(&ways[w], ranks, sizes[i], STEPS);
            uint32_t step = ranks * ways[w].part_count;
            if (counts.launches % step != 0 || counts.launches < step * (STEPS - sizes[i]) ||
                counts.launches >= step * (STEPS + sizes[i]) || counts.captures != 0 || counts.allocations != 0 ||
                counts.groups > sizes[i] * ranks * SUMS) {
                fail_msg("%s, %d ranks, %d sequences, %d steps: %d launches, %d captures, %d allocations, %d groups",
                         ways[w].comm, (int)ranks, (int)sizes[i], STEPS, (int)counts.launches, (int)counts.captures,
                         (int)counts.allocations, (int)counts.groups);
            }
        }
    }
}

/* ---- failures inside a graph ---- */

/* Decodes on three ranks until the group fails; returns its status, with what was logged since. */
static enum weft_status decode_until_failure(struct weft_engine *engine)
{
    struct weft_event events[4];
    struct weft_request request = requests[0];
    struct timespec begin;
    struct timespec now;
    enum weft_status status;
    bool has_ended = false;
    uint64_t id;

    request.max_tokens = 900;
    log_clear();
    clock_gettime(CLOCK_MONOTONIC, &begin);
    assert_int_equal(weft_engine_submit(engine, &request, &id), WEFT_OK);
    do {
        uint32_t count = 0;
        status = weft_engine_poll(engine, 1000, events, TEST_COUNT(events), &count);
        for (uint32_t i = 0; i < count; i++) {
            has_ended = has_ended || events[i].finish == WEFT_FINISH_ERROR;
            assert_int_not_equal(events[i].finish, WEFT_FINISH_LENGTH);
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
        assert_true(now.tv_sec - begin.tv_sec < 60); /* else it hangs */
    } while (status == WEFT_OK);
    assert_true(has_ended);
    return status;
}

/* `kind` strikes rank 1 after more groups than loading and the prompt have: in the middle of graphs. */
static void expect_nccl_failure(enum nccl_stub_fault kind, const char *line)
{
    struct weft_engine_options options;

    configure(&ways[1], 0, 0);
    options_for(&options, &ways[1], 3);
    options.timeout_ms = TIMEOUT_MS;
    *nccl = (struct nccl_stub_faults){.kind = kind, .victim = 1, .group_index = 40};
    struct weft_engine *engine = open_engine(&options);
    *nccl = (struct nccl_stub_faults){.victim = -1};
    uint32_t launched = gpu.count("cudaGraphLaunch");
    assert_int_not_equal(decode_until_failure(engine), WEFT_OK);
    assert_true(gpu.count("cudaGraphLaunch") > launched);
    if (!log_has(line) || log_has("left behind")) {
        fail_msg("no \"%s\", or something left behind, before: %s", line, weft_engine_error());
    }
    weft_engine_close(&engine);
    assert_false(log_has("left behind")); /* the communicator has ended: its graphs had before */
    assert_int_equal(gpu.live_count(), 0);
}

static void test_nccl_fails_in_a_graph(void **state)
{
    (void)state;
    if (nccl == NULL) {
        skip();
    }
    expect_nccl_failure(NCCL_STUB_ASYNC_ERROR, "comm/nccl: exchanging");
    expect_nccl_failure(NCCL_STUB_STUCK, "the GPUs have exchanged nothing for 3000 ms");
}

/* One GPU stops in a graph: the sums of the others, in theirs, wait for it, and are told to stop. */
static void test_gpu_hangs_in_a_graph(void **state)
{
    struct weft_engine_options options;

    (void)state;
    for (size_t w = 0; w < 2 && can_go(&ways[w]); w++) {
        configure(&ways[w], 0, 0);
        options_for(&options, &ways[w], 3);
        options.timeout_ms = TIMEOUT_MS;
        struct weft_engine *engine = open_engine(&options);
        configure(&ways[w], 0, 900);
        assert_int_not_equal(decode_until_failure(engine), WEFT_OK);
        assert_true(gpu.count("cudaGraphLaunch") > 3);
        weft_engine_close(&engine);
        configure(&ways[w], 0, 0); /* lets it go: what a real process would leave to the driver */
    }
}

/* What goes wrong while recording is one rank's error, said once, and the others do not wait for it. */
static void test_recording_fails_on_one_rank(void **state)
{
    struct weft_engine_options options;
    struct weft_engine *engine = NULL;
    struct weft_emulated_config config;

    (void)state;
    for (size_t w = 0; w < TEST_COUNT(ways) && can_go(&ways[w]); w++) {
        gpu.config_init(&config);
        config.device_count = RANKS;
        config.has_nccl = ways[w].has_nccl;
        config.fail_name = "cudaStreamEndCapture";
        config.fail_call = 5;
        gpu.configure(&config);
        options_for(&options, &ways[w], 3);
        options.timeout_ms = TIMEOUT_MS;
        log_clear();
        assert_int_not_equal(weft_engine_open(&options, &engine), WEFT_OK);
        assert_null(engine);
        assert_true(log_has("recording a step"));
        assert_false(log_has("left behind"));
        assert_int_equal(gpu.live_count(), 0);
    }
}

static void find_stub(void)
{
    void *library = dlopen("libnccl.so.2", RTLD_NOW);
    nccl_stub_faults_function *find_faults = NULL;

    if (library != NULL) {
        *(void **)&find_faults = dlsym(library, "nccl_stub_faults");
        *(void **)&nccl_issued_count = dlsym(library, "nccl_stub_issued_count");
    }
    if (find_faults != NULL && nccl_issued_count != NULL) {
        nccl = find_faults();
        nccl->victim = -1;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_answers),          cmocka_unit_test(test_launches_of_a_step),
        cmocka_unit_test(test_nccl_fails_in_a_graph), cmocka_unit_test(test_recording_fails_on_one_rank),
        cmocka_unit_test(test_gpu_hangs_in_a_graph), /* leaves what the GPU may still use */
    };

    if (!weft_emulated_open(&gpu)) {
        print_message("SKIPPED: no weft_cuda_emulated.so beside this program\n");
        return 77;
    }
    find_stub();
    make_requests();
    log_capture();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
