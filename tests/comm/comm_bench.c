/*
 * Latency of tree_sum(), reported, never asserted: comm_bench BACKEND threads|processes|mpirun RANKS [spin|yield].
 * Under mpirun the same processes also time MPI_Allreduce in the same run, which is what the figures are to be compared
 * with: "mpirun -n 2 comm_bench shm mpirun 2". Each round the input is written anew before the clock starts, as a
 * matrix product would: into weft_comm_sum_buffer() for us, into a private buffer for MPI.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ranks.h"
#include "weft/comm.h"
#ifdef WEFT_HAVE_MPI
#include "comm_bench_mpi.h"
#endif

#define COUNT_MAX ((size_t)1 << 20)

struct bench {
    const char *backend;
    uint32_t rank_count;
    enum weft_wait_policy wait;
    bool has_mpi;
};

struct buffers {
    float *input;
    float *output;
    double *times_us;
};

static double now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec * 1e-3;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static void produce(float *input, size_t count, int round)
{
    for (size_t i = 0; i < count; i++) {
        input[i] = (float)(i + (size_t)round);
    }
}

static bool time_ours(struct weft_comm *comm, struct buffers *buffers, size_t count, int rounds)
{
    for (int round = 0; round < rounds; round++) {
        float *input = weft_comm_sum_buffer(comm, count);
        double begin;

        produce(input, count, round);
        begin = now_us();
        CHECK(weft_comm_tree_sum(comm, input, count, buffers->output) == WEFT_OK);
        buffers->times_us[round] = now_us() - begin;
    }
    return true;
}

static bool time_mpi(struct buffers *buffers, size_t count, int rounds)
{
#ifdef WEFT_HAVE_MPI
    for (int round = 0; round < rounds; round++) {
        double begin;

        produce(buffers->input, count, round);
        begin = now_us();
        CHECK(comm_bench_mpi_all_reduce(buffers->input, buffers->output, count));
        buffers->times_us[round] = now_us() - begin;
    }
#else
    (void)buffers;
    (void)count;
    (void)rounds;
#endif
    return true;
}

static void report(double *times_us, int rounds)
{
    qsort(times_us, (size_t)rounds, sizeof(times_us[0]), compare);
    printf(" %9.1f %9.1f %9.1f", times_us[0], times_us[rounds / 2], times_us[rounds * 99 / 100]);
}

static bool run_sizes(struct weft_comm *comm, const struct bench *bench, uint32_t rank, struct buffers *buffers)
{
    for (size_t size = 8192; size <= COUNT_MAX * sizeof(float); size *= size < 262144 ? 2 : 4) {
        int rounds = size <= 262144 ? 2000 : 100;

        CHECK(time_ours(comm, buffers, size / sizeof(float), rounds / 10)); /* warm up */
        CHECK(time_ours(comm, buffers, size / sizeof(float), rounds));
        if (rank == 0) {
            printf("%8zu KB", size / 1024);
            report(buffers->times_us, rounds);
        }
        if (bench->has_mpi) {
            CHECK(time_mpi(buffers, size / sizeof(float), rounds / 10));
            CHECK(time_mpi(buffers, size / sizeof(float), rounds));
            if (rank == 0) {
                report(buffers->times_us, rounds);
            }
        }
        if (rank == 0) {
            printf("\n");
            fflush(stdout);
        }
    }
    return true;
}

static bool bench_body(struct weft_bootstrap *bootstrap, const void *context)
{
    const struct bench *bench = context;
    struct weft_range leaves[WEFT_LEAF_COUNT_MAX];
    const struct weft_comm_options options = {
        .backend = bench->backend,
        .timeout_ms = 30000,
        .leaf_count = bench->rank_count, /* one node per rank */
        .leaves = leaves,
        .sum_count_max = COUNT_MAX,
        .gather_size_max = 1,
        .wait = bench->wait,
    };
    struct buffers buffers = {calloc(COUNT_MAX, sizeof(float)), calloc(COUNT_MAX, sizeof(float)),
                              calloc(2000, sizeof(double))};
    struct weft_comm *comm;
    uint32_t rank = weft_bootstrap_rank(bootstrap);
    bool is_good;

    CHECK(buffers.input != NULL && buffers.output != NULL && buffers.times_us != NULL);
    CHECK(weft_tree_deal(options.leaf_count, bench->rank_count, NULL, leaves) == 0);
    CHECK(weft_comm_open(bootstrap, &options, &comm) == WEFT_OK);
    if (rank == 0) {
        printf("%u ranks, us  weft min       p50       p99%s\n", bench->rank_count,
               bench->has_mpi ? "   MPI min       p50       p99" : "");
    }
    is_good = run_sizes(comm, bench, rank, &buffers);
    weft_comm_close(&comm);
    free(buffers.input);
    free(buffers.output);
    free(buffers.times_us);
    return is_good;
}

int main(int argument_count, char **arguments)
{
    struct bench bench = {.wait = WEFT_WAIT_SPIN};
    enum ranks_mode mode;
    bool is_good;

    if (argument_count < 4) {
        fprintf(stderr, "usage: comm_bench BACKEND threads|processes|mpirun RANKS [spin|yield]\n");
        return 2;
    }
    bench.backend = arguments[1];
    mode = strcmp(arguments[2], "threads") == 0  ? RANKS_THREADS
           : strcmp(arguments[2], "mpirun") == 0 ? RANKS_MPI
                                                 : RANKS_PROCESSES;
    bench.rank_count = (uint32_t)atoi(arguments[3]);
    if (argument_count > 4 && strcmp(arguments[4], "yield") == 0) {
        bench.wait = WEFT_WAIT_YIELD;
    }
    bench.has_mpi = mode == RANKS_MPI;
    is_good = ranks_run(mode, bench.rank_count, bench_body, &bench, -1);
    if (mode == RANKS_MPI) {
        (void)ranks_fini_mpi();
    }
    return is_good ? 0 : 1;
}
