/*
 * The read probe: sequential 16-byte loads, eight independent sums, nothing written. Prefetching a page ahead is worth
 * 5 to 10 % on Zen 5: hardware prefetchers stop at page borders.
 */
#include "bandwidth.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { THREAD_MAX = 64, LINE_WORDS = 8, UNROLL = 8, PREFETCH_LINES = 64 };

typedef uint64_t line __attribute__((vector_size(64)));

static double read_clock(clockid_t clock)
{
    struct timespec now;

    (void)clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double bench_now(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

double bench_cpu_now(void)
{
    return read_clock(CLOCK_THREAD_CPUTIME_ID);
}

struct reader {
    pthread_t thread;
    pthread_barrier_t *barrier;
    const line *lines;
    uint64_t line_count; /* a multiple of UNROLL */
    uint32_t pass_count;
    double begin; /* of the last pass: taken here, since the caller's thread may be scheduled late */
    double end;
    double cpu_time;
    uint64_t sum; /* keeps the loads alive */
};

static uint64_t read_once(const line *lines, uint64_t count)
{
    line sums[UNROLL];
    line sum;

    memset(sums, 0, sizeof(sums));
    for (uint64_t i = 0; i < count; i += UNROLL) {
        for (uint64_t j = 0; j < UNROLL; j++) {
            __builtin_prefetch(&lines[i + j] + PREFETCH_LINES, 0, 3);
            sums[j] ^= lines[i + j];
        }
    }
    sum = sums[0];
    for (uint64_t j = 1; j < UNROLL; j++) {
        sum ^= sums[j];
    }
    return sum[0] ^ sum[LINE_WORDS - 1];
}

static void *read_passes(void *argument)
{
    struct reader *reader = argument;

    for (uint32_t pass = 0; pass < reader->pass_count; pass++) {
        (void)pthread_barrier_wait(reader->barrier);
        reader->begin = bench_now();
        reader->cpu_time = bench_cpu_now();
        reader->sum ^= read_once(reader->lines, reader->line_count);
        reader->cpu_time = bench_cpu_now() - reader->cpu_time;
        reader->end = bench_now();
        (void)pthread_barrier_wait(reader->barrier);
        (void)pthread_barrier_wait(reader->barrier); /* the caller has read the times */
    }
    return NULL;
}

/* Seconds from the first reader's begin to the last one's end. */
static double pass_time(const struct reader *readers, uint32_t thread_count)
{
    double begin = readers[0].begin;
    double end = readers[0].end;

    for (uint32_t i = 1; i < thread_count; i++) {
        begin = readers[i].begin < begin ? readers[i].begin : begin;
        end = readers[i].end > end ? readers[i].end : end;
    }
    return end - begin;
}

/* Sum of the readers' own rates. */
static double pass_cpu_rate(const struct reader *readers, uint32_t thread_count)
{
    double rate = 0;

    for (uint32_t i = 0; i < thread_count; i++) {
        rate += (double)(readers[i].line_count * sizeof(line)) / readers[i].cpu_time;
    }
    return rate;
}

/* Best pass of all readers together. */
static struct bench_bandwidth time_passes(struct reader *readers, uint32_t thread_count, uint64_t size,
                                          uint32_t pass_count, pthread_barrier_t *barrier)
{
    struct bench_bandwidth best = {0, 0};

    for (uint32_t i = 0; i < thread_count; i++) {
        if (pthread_create(&readers[i].thread, NULL, read_passes, &readers[i]) != 0) {
            return best; /* the process ends; a probe that cannot start has nothing to clean up */
        }
    }
    for (uint32_t pass = 0; pass < pass_count; pass++) {
        double wall;
        double cpu;

        (void)pthread_barrier_wait(barrier);
        (void)pthread_barrier_wait(barrier);
        wall = (double)size / pass_time(readers, thread_count);
        cpu = pass_cpu_rate(readers, thread_count);
        best.wall = wall > best.wall ? wall : best.wall;
        best.cpu = cpu > best.cpu ? cpu : best.cpu;
        (void)pthread_barrier_wait(barrier);
    }
    for (uint32_t i = 0; i < thread_count; i++) {
        (void)pthread_join(readers[i].thread, NULL);
    }
    return best;
}

struct bench_bandwidth bench_read_bandwidth(uint32_t thread_count, uint64_t size, uint32_t pass_count)
{
    struct reader readers[THREAD_MAX];
    pthread_barrier_t barrier;
    uint64_t lines_each;
    struct bench_bandwidth rate = {0, 0};
    void *memory;

    if (thread_count < 1 || thread_count > THREAD_MAX) {
        return rate;
    }
    lines_each = size / sizeof(line) / thread_count / UNROLL * UNROLL;
    size = lines_each * thread_count * sizeof(line);
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return rate;
    }
    (void)madvise(memory, size, MADV_HUGEPAGE);
    memset(memory, 1, size); /* real pages: untouched ones are all the same zero page */
    (void)pthread_barrier_init(&barrier, NULL, thread_count + 1);
    for (uint32_t i = 0; i < thread_count; i++) {
        readers[i] = (struct reader){.barrier = &barrier,
                                     .lines = (const line *)memory + i * lines_each,
                                     .line_count = lines_each,
                                     .pass_count = pass_count};
    }
    rate = time_passes(readers, thread_count, size, pass_count, &barrier);
    (void)pthread_barrier_destroy(&barrier);
    (void)munmap(memory, size);
    return rate;
}
