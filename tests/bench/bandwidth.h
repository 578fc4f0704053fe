/* How fast this machine reads memory: the yardstick of every decode figure. */
#ifndef WEFT_TESTS_BENCH_BANDWIDTH_H
#define WEFT_TESTS_BENCH_BANDWIDTH_H

#include <stdint.h>

/* Seconds on a monotonic clock, and of CPU time of this thread. */
double bench_now(void);
double bench_cpu_now(void);

/* Bytes per second. */
struct bench_bandwidth {
    double wall; /* of all threads together, as a clock on the wall sees it */
    double cpu;  /* sum of the threads' rates by their CPU time: without what other programs took from the cores */
};

/*
 * Reading memory with thread_count (at most 64) threads, each summing its own part of `size` bytes in huge pages; best
 * of pass_count passes. `size` must be far larger than the last-level cache, or that is measured. All 0 when memory or
 * threads are missing.
 */
struct bench_bandwidth bench_read_bandwidth(uint32_t thread_count, uint64_t size, uint32_t pass_count);

#endif
