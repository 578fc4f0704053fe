/*
 * NCCL, and sums through the peers' memory (--backend peer), on real GPUs: ranks as processes (or threads, not over
 * NCCL), each with its own GPU or, where there are fewer, sharing one (NCCL_HOSTID). Sums and gathers by bits, what a
 * call takes, then a process that is killed in the middle, and the others go on as a smaller group. By hand and from
 * tests/gpu/run.sh:
 *
 *   comm_nccl_check [--ranks 2] [--backend nccl] [--as processes] [--module FILE]
 *
 * With the emulator's module, and over NCCL its stub, it checks itself.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "model/seat.h"
#include "place.h"
#include "ranks.h"
#include "values.h"
#include "weft/gpu.h"

enum { LEAVES = 8, COUNT_MAX = 1 << 20, SKIPPED = 77 };

struct settings {
    const char *backend;
    enum ranks_mode mode;
    const char *module;
    uint32_t rank_count;
    uint32_t gpu_count;
    uint32_t repeats; /* of each timed sum */
    size_t count_max;
    size_t gather_count; /* rank r brings r + 1 times as many; together at most count_max */
    struct place place;  /* where the survivors of a death meet */
};

struct rank {
    struct weft_device *device;
    struct weft_comm *comm;
    struct weft_range ranges[LEAVES];
    struct weft_range nodes[WEFT_TREE_NODE_MAX];
    size_t node_count;
    float *host;   /* [node_count][count_max] */
    float *result; /* device memory [count_max] */
};

static double now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec * 1e-3;
}

/* Before CUDA and NCCL start in this process: ranks on one GPU must look like several hosts. */
static void set_environment(const struct settings *settings, uint32_t rank)
{
    char host[16];

    if (settings->gpu_count < settings->rank_count) {
        snprintf(host, sizeof(host), "rank%u", rank);
        setenv("NCCL_HOSTID", host, 1);
        setenv("NCCL_SOCKET_IFNAME", "lo", 0);
        setenv("NCCL_IB_DISABLE", "1", 0);
        setenv("NCCL_MAX_CTAS", "2", 0); /* kernels of both ranks must find room on the GPU */
    }
}

/* Communicator and memory, on the rank's device. */
static bool join(struct weft_bootstrap *bootstrap, const struct settings *settings, struct rank *rank)
{
    uint32_t own = weft_bootstrap_rank(bootstrap), rank_count = weft_bootstrap_rank_count(bootstrap);
    struct weft_comm_options options = {.backend = settings->backend,
                                        .timeout_ms = 30000,
                                        .leaf_count = LEAVES,
                                        .leaves = rank->ranges,
                                        .sum_count_max = settings->count_max,
                                        .gather_size_max = settings->count_max * sizeof(float),
                                        .wait = WEFT_WAIT_YIELD};
    struct weft_comm_device seat;

    CHECK(weft_tree_deal(LEAVES, rank_count, NULL, rank->ranges) == 0);
    rank->node_count = weft_tree_nodes(LEAVES, rank->ranges[own], rank->nodes);
    CHECK(weft_seat_init(rank->device, &seat));
    options.device = &seat;
    CHECK(weft_comm_open(bootstrap, &options, &rank->comm) == WEFT_OK);
    rank->host = malloc(rank->node_count * settings->count_max * sizeof(float));
    rank->result = weft_device_alloc(rank->device, settings->count_max * sizeof(float));
    CHECK(rank->host != NULL && rank->result != NULL);
    return true;
}

static bool open_rank(struct weft_bootstrap *bootstrap, const struct settings *settings, struct rank *rank)
{
    uint32_t own = weft_bootstrap_rank(bootstrap);
    const struct weft_device_options device = {.kind = "cuda",
                                               .thread_count = 1,
                                               .gpu_index = own % settings->gpu_count,
                                               .wait = WEFT_WAIT_YIELD,
                                               .module = settings->module};

    set_environment(settings, own);
    CHECK(weft_device_open(&device, &rank->device) == WEFT_OK);
    return join(bootstrap, settings, rank);
}

static void leave(struct rank *rank)
{
    free(rank->host);
    if (rank->result != NULL) {
        weft_device_free(rank->device, rank->result);
    }
    weft_comm_close(&rank->comm);
    rank->host = NULL;
    rank->result = NULL;
}

static void close_rank(struct rank *rank)
{
    leave(rank);
    weft_device_close(&rank->device);
}

static bool check_sum(struct rank *rank, size_t count, uint32_t seed)
{
    float *nodes = weft_comm_sum_buffer(rank->comm, count);
    float *expected = malloc(2 * count * sizeof(float)), *found = expected + count;

    for (size_t n = 0; n < rank->node_count; n++) {
        values_fill(rank->nodes[n], seed, count, rank->host + n * count);
    }
    values_fill((struct weft_range){0, LEAVES}, seed, count, expected);
    CHECK(weft_device_write(rank->device, nodes, rank->host, rank->node_count * count * sizeof(float)) == WEFT_OK);
    CHECK(weft_comm_tree_sum(rank->comm, nodes, count, rank->result) == WEFT_OK);
    CHECK(weft_comm_sync(rank->comm) == WEFT_OK);
    CHECK(weft_device_read(rank->device, found, rank->result, count * sizeof(float)) == WEFT_OK);
    CHECK(memcmp(found, expected, count * sizeof(float)) == 0);
    free(expected);
    return true;
}

/* Rank r brings r + 1 times `count` elements, rank 0 none. */
static bool check_gather(struct weft_bootstrap *bootstrap, struct rank *rank, size_t count)
{
    uint32_t own = weft_bootstrap_rank(bootstrap), rank_count = weft_bootstrap_rank_count(bootstrap);
    size_t sizes[LEAVES], total = 0, at = 0;
    float *in = weft_comm_sum_buffer(rank->comm, count), *found;

    for (uint32_t r = 0; r < rank_count; r++) {
        sizes[r] = r == 0 ? 0 : (r + 1) * count * sizeof(float);
        total += sizes[r];
    }
    for (size_t i = 0; i < sizes[own] / sizeof(float); i++) {
        rank->host[i] = (float)(own * 1000000 + i);
    }
    found = malloc(total);
    CHECK(found != NULL);
    CHECK(weft_device_write(rank->device, in, rank->host, sizes[own]) == WEFT_OK);
    CHECK(weft_comm_all_gather(rank->comm, in, sizes, rank->result) == WEFT_OK);
    CHECK(weft_comm_sync(rank->comm) == WEFT_OK);
    CHECK(weft_device_read(rank->device, found, rank->result, total) == WEFT_OK);
    for (uint32_t r = 0; r < rank_count; r++) {
        for (size_t i = 0; i < sizes[r] / sizeof(float); i++) {
            CHECK(found[at++] == (float)(r * 1000000 + i));
        }
    }
    free(found);
    return true;
}

/* Waiting for each, as a benchmark would; and 64 in a row before one wait, as a step does. */
static bool time_sums(struct weft_bootstrap *bootstrap, struct rank *rank, size_t count, uint32_t repeats)
{
    float *nodes = weft_comm_sum_buffer(rank->comm, count);
    double begin, each, in_a_row;

    CHECK(weft_comm_barrier(rank->comm) == WEFT_OK);
    begin = now_us();
    for (uint32_t i = 0; i < repeats; i++) {
        CHECK(weft_comm_tree_sum(rank->comm, nodes, count, rank->result) == WEFT_OK);
        CHECK(weft_comm_sync(rank->comm) == WEFT_OK);
    }
    each = (now_us() - begin) / repeats;
    begin = now_us();
    for (uint32_t i = 0; i < repeats; i++) {
        CHECK(weft_comm_tree_sum(rank->comm, nodes, count, rank->result) == WEFT_OK);
        if (i % 64 == 63 || i + 1 == repeats) {
            CHECK(weft_comm_sync(rank->comm) == WEFT_OK);
        }
    }
    in_a_row = (now_us() - begin) / repeats;
    if (weft_bootstrap_rank(bootstrap) == 0) {
        printf("sum of %7zu elements: %8.1f us each, %8.1f us in a row\n", count, each, in_a_row);
    }
    return true;
}

/* ---- sums that go on as residual and norm ---- */

enum { WIDTH = 4096 };
enum way { SUM_THEN_NORM, SUM_AND_NORM, WAY_COUNT }; /* the second as in a forward pass, in one kernel where it pays */

/* Device memory: [rows][WIDTH] each, but for the weights of one row. */
struct norm {
    uint32_t row_count;
    float *nodes;
    float *x;
    float *weight;
    float *out;
};

static bool issue_norm(struct rank *rank, const struct norm *norm, enum way way)
{
    const size_t count = (size_t)norm->row_count * WIDTH;
    const float *input = rank->result;
    struct weft_tree_add_args y = {.inputs = &input, .input_count = 1, .count = count, .out = rank->result};
    const struct weft_add_norm_args args = {.x = norm->x,
                                            .y = &y,
                                            .weight = norm->weight,
                                            .out = norm->out,
                                            .eps = 1e-5f,
                                            .token_count = norm->row_count,
                                            .width = WIDTH};

    CHECK((way == SUM_THEN_NORM ? weft_comm_tree_sum(rank->comm, norm->nodes, count, rank->result)
                                : weft_comm_tree_gather(rank->comm, norm->nodes, count, rank->result, &y)) == WEFT_OK);
    weft_device_add_norm(rank->device, &args);
    return true;
}

/* found[rows][WIDTH] twice <- x and its norm, from known nodes and x = the first of them. */
static bool run_norm(struct rank *rank, const struct norm *norm, enum way way, float *found)
{
    const size_t size = (size_t)norm->row_count * WIDTH * sizeof(float);

    for (size_t n = 0; n < rank->node_count; n++) {
        values_fill(rank->nodes[n], 9, size / sizeof(float), rank->host + n * size / sizeof(float));
    }
    CHECK(weft_device_write(rank->device, norm->nodes, rank->host, rank->node_count * size) == WEFT_OK);
    values_fill((struct weft_range){0, 1}, 10, size / sizeof(float), rank->host);
    CHECK(weft_device_write(rank->device, norm->x, rank->host, size) == WEFT_OK);
    CHECK(weft_device_write(rank->device, norm->weight, rank->host, WIDTH * sizeof(float)) == WEFT_OK);
    CHECK(issue_norm(rank, norm, way));
    CHECK(weft_comm_sync(rank->comm) == WEFT_OK);
    CHECK(weft_device_read(rank->device, found, norm->x, size) == WEFT_OK);
    CHECK(weft_device_read(rank->device, found + size / sizeof(float), norm->out, size) == WEFT_OK);
    return true;
}

/* Per sum, 64 in a row before one wait. */
static bool time_norm(struct rank *rank, const struct norm *norm, enum way way, uint32_t repeats, double *us_out)
{
    double begin;

    CHECK(weft_comm_barrier(rank->comm) == WEFT_OK);
    begin = now_us();
    for (uint32_t i = 0; i < repeats; i++) {
        CHECK(issue_norm(rank, norm, way));
        if (i % 64 == 63 || i + 1 == repeats) {
            CHECK(weft_comm_sync(rank->comm) == WEFT_OK);
        }
    }
    *us_out = (now_us() - begin) / repeats;
    return true;
}

static bool check_norm(struct weft_bootstrap *bootstrap, struct rank *rank, uint32_t row_count, uint32_t repeats)
{
    const size_t count = (size_t)row_count * WIDTH;
    struct weft_device *device = rank->device;
    const struct norm norm = {.row_count = row_count,
                              .nodes = weft_comm_sum_buffer(rank->comm, count),
                              .x = weft_device_alloc(device, count * sizeof(float)),
                              .weight = weft_device_alloc(device, WIDTH * sizeof(float)),
                              .out = weft_device_alloc(device, count * sizeof(float))};
    float *found = malloc(4 * count * sizeof(float));
    double us[WAY_COUNT];

    CHECK(norm.x != NULL && norm.weight != NULL && norm.out != NULL && found != NULL);
    CHECK(run_norm(rank, &norm, SUM_THEN_NORM, found));
    CHECK(run_norm(rank, &norm, SUM_AND_NORM, found + 2 * count));
    CHECK(memcmp(found, found + 2 * count, 2 * count * sizeof(float)) == 0);
    CHECK(time_norm(rank, &norm, SUM_THEN_NORM, repeats, &us[SUM_THEN_NORM]));
    CHECK(time_norm(rank, &norm, SUM_AND_NORM, repeats, &us[SUM_AND_NORM]));
    if (weft_bootstrap_rank(bootstrap) == 0) {
        printf("sum and norm of %2u rows of %d: %8.1f us one after the other, %8.1f us together\n", row_count, WIDTH,
               us[SUM_THEN_NORM], us[SUM_AND_NORM]);
    }
    weft_device_free(device, norm.x);
    weft_device_free(device, norm.weight);
    weft_device_free(device, norm.out);
    free(found);
    return true;
}

static bool check_body(struct weft_bootstrap *bootstrap, const void *context)
{
    static const uint32_t rows[] = {1, 8, 16, 32};
    static const size_t counts[] = {1, 3, 127, 4096, 4099, 131072, 400003, COUNT_MAX};
    static const size_t timed[] = {4096, 8192, 32768, 131072, COUNT_MAX};
    const struct settings *settings = context;
    struct rank rank = {0};

    CHECK(open_rank(bootstrap, settings, &rank));
    for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++) {
        if (counts[c] <= settings->count_max) {
            CHECK(check_sum(&rank, counts[c], (uint32_t)c));
        }
    }
    CHECK(check_gather(bootstrap, &rank, 1));
    CHECK(check_gather(bootstrap, &rank, settings->gather_count));
    if (weft_bootstrap_rank(bootstrap) == 0) {
        printf("%u ranks on %u GPUs over %s (%s): the bits are right\n", settings->rank_count,
               settings->gpu_count < settings->rank_count ? 1 : settings->rank_count, weft_comm_backend(rank.comm),
               weft_comm_reason(rank.comm));
    }
    for (size_t c = 0; c < sizeof(timed) / sizeof(timed[0]); c++) {
        if (timed[c] <= settings->count_max) {
            CHECK(time_sums(bootstrap, &rank, timed[c], settings->repeats));
        }
    }
    for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]) && rows[r] * WIDTH <= settings->count_max; r++) {
        CHECK(check_norm(bootstrap, &rank, rows[r], settings->repeats));
    }
    close_rank(&rank);
    return true;
}

/* Without the last rank: a new communicator in the same process, on the same GPU. */
static bool go_on(const struct settings *settings, uint32_t own, struct rank *rank)
{
    const struct weft_bootstrap_tcp_options options = {
        .leader = settings->place.text, .rank = own, .rank_count = settings->rank_count - 1, .timeout_ms = 30000};
    struct weft_bootstrap *bootstrap;
    double begin = now_us();

    CHECK((options.rank_count == 1 ? weft_bootstrap_open_self(&bootstrap)
                                   : weft_bootstrap_open_tcp(&options, &bootstrap)) == WEFT_OK);
    CHECK(join(bootstrap, settings, rank));
    printf("rank %u: one of %u over %s after %.1f ms\n", own, options.rank_count, weft_comm_backend(rank->comm),
           (now_us() - begin) * 1e-3);
    CHECK(check_sum(rank, 1, 2) && check_sum(rank, 4096, 3) && check_sum(rank, settings->count_max, 4));
    leave(rank);
    weft_bootstrap_close(&bootstrap);
    return true;
}

/* The survivors get the victim's name, and out of everything, in time; then they go on without it. */
static bool killed_body(struct weft_bootstrap *bootstrap, const void *context)
{
    const struct settings *settings = context;
    uint32_t victim = settings->rank_count - 1;
    struct rank rank = {0};
    double begin;
    enum weft_status status;

    CHECK(open_rank(bootstrap, settings, &rank));
    CHECK(check_sum(&rank, 4096, 1));
    status = weft_comm_barrier(rank.comm); /* from here on nobody needs the victim for that sum; it may die in here */
    if (weft_bootstrap_rank(bootstrap) == victim) {
        kill(getpid(), SIGKILL);
    }
    begin = now_us();
    while (status == WEFT_OK) {
        status = weft_comm_tree_sum(rank.comm, weft_comm_sum_buffer(rank.comm, 4096), 4096, rank.result);
        status = status == WEFT_OK ? weft_comm_sync(rank.comm) : status;
    }
    CHECK(status == WEFT_ERR_PEER);
    CHECK(weft_comm_failed_rank(rank.comm) == (int)victim);
    printf("rank %u: the death of rank %u was noticed after %.1f ms\n", weft_bootstrap_rank(bootstrap), victim,
           (now_us() - begin) * 1e-3);
    begin = now_us();
    leave(&rank);
    printf("rank %u: closed after %.1f ms\n", weft_bootstrap_rank(bootstrap), (now_us() - begin) * 1e-3);
    CHECK(now_us() - begin < 10e6);
    CHECK(go_on(settings, weft_bootstrap_rank(bootstrap), &rank));
    weft_device_close(&rank.device);
    return true;
}

/* In a process of its own: a driver that was started does not survive a fork. */
static uint32_t count_gpus(const char *module)
{
    int wait_status = 0;
    pid_t child;

    fflush(NULL);
    child = fork();
    if (child == 0) {
        struct weft_gpu gpus[WEFT_GPU_COUNT_MAX];
        char reason[256];
        uint32_t count = weft_gpu_list(module, gpus, reason, sizeof(reason));

        if (count == 0) {
            printf("SKIPPED: %s\n", reason);
        }
        fflush(NULL);
        _exit((int)count);
    }
    return child > 0 && waitpid(child, &wait_status, 0) == child && WIFEXITED(wait_status)
               ? (uint32_t)WEXITSTATUS(wait_status)
               : 0;
}

int main(int argument_count, char **arguments)
{
    struct settings settings = {.backend = "nccl",
                                .mode = RANKS_PROCESSES,
                                .rank_count = 2,
                                .repeats = 256,
                                .count_max = COUNT_MAX,
                                .gather_count = 1000};
    int mark = -1;

    setvbuf(stdout, NULL, _IOLBF, 0); /* ranks leave by _exit() */
    for (int i = 1; i + 1 < argument_count; i += 2) {
        if (strcmp(arguments[i], "--ranks") == 0) {
            settings.rank_count = (uint32_t)atoi(arguments[i + 1]);
        } else if (strcmp(arguments[i], "--backend") == 0) {
            settings.backend = arguments[i + 1];
        } else if (strcmp(arguments[i], "--as") == 0 && strcmp(arguments[i + 1], "threads") == 0) {
            settings.mode = RANKS_THREADS;
        } else if (strcmp(arguments[i], "--as") == 0 && strcmp(arguments[i + 1], "processes") == 0) {
            settings.mode = RANKS_PROCESSES;
        } else if (strcmp(arguments[i], "--module") == 0) {
            settings.module = arguments[i + 1];
            settings.count_max = 5000; /* in software */
            settings.gather_count = 100;
            settings.repeats = 8;
        } else {
            settings.rank_count = 0;
        }
    }
    if (argument_count % 2 == 0 || settings.rank_count < 2 || settings.rank_count > LEAVES) {
        fprintf(stderr, "usage: %s [--ranks 2..%d] [--backend NAME] [--as processes|threads] [--module FILE]\n",
                arguments[0], LEAVES);
        return 2;
    }
    settings.place = place_take(&mark);
    settings.gpu_count = count_gpus(settings.module);
    if (settings.gpu_count == 0) {
        return SKIPPED;
    }
    if (!ranks_run(settings.mode, settings.rank_count, check_body, &settings, -1)) {
        return 1;
    }
    if (settings.mode == RANKS_THREADS) {
        return 0; /* nobody to kill */
    }
    return ranks_run(RANKS_PROCESSES, settings.rank_count, killed_body, &settings, (int)settings.rank_count - 1) ? 0
                                                                                                                 : 1;
}
