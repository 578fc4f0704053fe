/* How fast this machine reads memory: the yardstick of every decode figure. */
#ifndef WEFT_TESTS_BENCH_BANDWIDTH_H
#define WEFT_TESTS_BENCH_BANDWIDTH_H

#include <stdint.h>

/* Seconds on a monotonic clock. */
double bench_now(void);

/*
 * Bytes per second of thread_count (at most 64) threads, each summing its own part of `size` bytes in huge pages, best
 * of pass_count passes. Far larger than the last-level cache, or it measures that. 0 when memory or threads are
 * missing.
 */
double bench_read_bandwidth(uint32_t thread_count, uint64_t size, uint32_t pass_count);

#endif
