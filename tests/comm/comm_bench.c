/*
 * Latency of tree_sum(), reported, never asserted:
 *
 *     comm_bench BACKEND threads|processes|mpirun RANKS [spin|yield [INTERFACE]]
 *
 * Under mpirun the same processes also time MPI_Allreduce, in turns, which is what the figures are to be compared with:
 * "mpirun -n 2 comm_bench shm mpirun 2". Each round the input is written anew before the clock starts, as a matrix
 * product would: into weft_comm_sum_buffer() for us, into a private buffer for MPI. With an INTERFACE (name or CIDR),
 * the sizes and the number of rounds are those of a network. Times are rank 0's.
 * Ranks run at most one call apart, so the mean of many calls in a row is what a call costs; a single one may be quick
 * only because the others came earlier.
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
/* Ours and MPI's rounds alternate in so many blocks. */
#define TURN_COUNT 9
#define ROUND_MAX  2000

struct size_rounds {
    size_t size; /* bytes; 0 ends */
    int rounds;
};
static const struct size_rounds MEMORY_SIZES[] = {{8192, 2000},   {16384, 2000},  {32768, 2000},
                                                  {65536, 2000},  {131072, 2000}, {262144, 2000},
                                                  {1048576, 100}, {4194304, 100}, {0, 0}};
static const struct size_rounds NETWORK_SIZES[] = {{8, 500},     {4096, 500},   {16384, 500},
                                                   {65536, 250}, {1048576, 50}, {0, 0}};

struct bench {
    const char *backend;
    uint32_t rank_count;
    enum weft_wait_policy wait;
    const char *interface; /* or NULL */
    bool has_mpi;
};

struct buffers {
    float *input;
    float *output;
    double *times_us;     /* [ROUND_MAX] */
    double *mpi_times_us; /* [ROUND_MAX] */
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

/* Times of rounds [from, to). */
static bool time_ours(struct weft_comm *comm, struct buffers *buffers, size_t count, int from, int to)
{
    for (int round = from; round < to; round++) {
        float *input = weft_comm_sum_buffer(comm, count);
        double begin;

        produce(input, count, round);
        begin = now_us();
        CHECK(weft_comm_tree_sum(comm, input, count, buffers->output) == WEFT_OK);
        buffers->times_us[round] = now_us() - begin;
    }
    return true;
}

static bool time_mpi(struct buffers *buffers, size_t count, int from, int to)
{
#ifdef WEFT_HAVE_MPI
    for (int round = from; round < to; round++) {
        double begin;

        produce(buffers->input, count, round);
        begin = now_us();
        CHECK(comm_bench_mpi_all_reduce(buffers->input, buffers->output, count));
        buffers->mpi_times_us[round] = now_us() - begin;
    }
#else
    (void)buffers;
    (void)count;
    (void)from;
    (void)to;
#endif
    return true;
}

/* Median over the turns of their mean, then median and 99th percentile of the single calls. */
static void report(double *times_us, int rounds)
{
    double means[TURN_COUNT] = {0};

    for (int turn = 0; turn < TURN_COUNT; turn++) {
        int from = rounds * turn / TURN_COUNT, to = rounds * (turn + 1) / TURN_COUNT;

        for (int round = from; round < to; round++) {
            means[turn] += times_us[round] / (to - from);
        }
    }
    qsort(means, TURN_COUNT, sizeof(means[0]), compare);
    qsort(times_us, (size_t)rounds, sizeof(times_us[0]), compare);
    printf(" %9.1f %9.1f %9.1f", means[TURN_COUNT / 2], times_us[rounds / 2], times_us[rounds * 99 / 100]);
}

static bool run_size(struct weft_comm *comm, const struct bench *bench, struct buffers *buffers,
                     const struct size_rounds *size)
{
    size_t count = size->size / sizeof(float);

    CHECK(time_ours(comm, buffers, count, 0, size->rounds / 10)); /* warm up */
    CHECK(!bench->has_mpi || time_mpi(buffers, count, 0, size->rounds / 10));
    for (int turn = 0; turn < TURN_COUNT; turn++) {
        int from = size->rounds * turn / TURN_COUNT, to = size->rounds * (turn + 1) / TURN_COUNT;

        CHECK(time_ours(comm, buffers, count, from, to));
        CHECK(!bench->has_mpi || time_mpi(buffers, count, from, to));
    }
    return true;
}

static bool run_sizes(struct weft_comm *comm, const struct bench *bench, uint32_t rank, struct buffers *buffers)
{
    const struct size_rounds *size = bench->interface != NULL ? NETWORK_SIZES : MEMORY_SIZES;

    for (; size->size > 0; size++) {
        CHECK(run_size(comm, bench, buffers, size));
        if (rank == 0) {
            printf("%8zu B", size->size);
            report(buffers->times_us, size->rounds);
            if (bench->has_mpi) {
                report(buffers->mpi_times_us, size->rounds);
            }
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
        .interface = bench->interface,
        .timeout_ms = 30000,
        .leaf_count = bench->rank_count, /* one node per rank */
        .leaves = leaves,
        .sum_count_max = COUNT_MAX,
        .gather_size_max = 1,
        .wait = bench->wait,
    };
    struct buffers buffers = {calloc(COUNT_MAX, sizeof(float)), calloc(COUNT_MAX, sizeof(float)),
                              calloc(ROUND_MAX, sizeof(double)), calloc(ROUND_MAX, sizeof(double))};
    struct weft_comm *comm;
    uint32_t rank = weft_bootstrap_rank(bootstrap);
    bool is_good;

    CHECK(buffers.input != NULL && buffers.output != NULL && buffers.times_us != NULL && buffers.mpi_times_us != NULL);
    CHECK(weft_tree_deal(options.leaf_count, bench->rank_count, NULL, leaves) == 0);
    CHECK(weft_comm_open(bootstrap, &options, &comm) == WEFT_OK);
    if (rank == 0) {
        printf("%u ranks, us weft mean       p50       p99%s\n", bench->rank_count,
               bench->has_mpi ? "  MPI mean       p50       p99" : "");
    }
    is_good = run_sizes(comm, bench, rank, &buffers);
    weft_comm_close(&comm);
    free(buffers.input);
    free(buffers.output);
    free(buffers.times_us);
    free(buffers.mpi_times_us);
    return is_good;
}

int main(int argument_count, char **arguments)
{
    struct bench bench = {.wait = WEFT_WAIT_SPIN};
    enum ranks_mode mode;
    bool is_good;

    if (argument_count < 4) {
        fprintf(stderr, "usage: comm_bench BACKEND threads|processes|mpirun RANKS [spin|yield [INTERFACE]]\n");
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
    bench.interface = argument_count > 5 ? arguments[5] : NULL;
    bench.has_mpi = mode == RANKS_MPI;
    is_good = ranks_run(mode, bench.rank_count, bench_body, &bench, -1);
    if (mode == RANKS_MPI) {
        (void)ranks_fini_mpi();
    }
    return is_good ? 0 : 1;
}
