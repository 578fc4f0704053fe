/* The clock that durations and deadlines are measured with: never set back, runs on in every process of a host. */
#ifndef WEFT_BASE_CLOCK_H
#define WEFT_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Nanoseconds of CLOCK_MONOTONIC. */
static inline int64_t weft_clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* timeout_ms from now, for waits on that clock. */
static inline struct timespec weft_clock_after(uint32_t timeout_ms)
{
    int64_t end = weft_clock_ns() + (int64_t)timeout_ms * 1000000;

    return (struct timespec){.tv_sec = end / 1000000000, .tv_nsec = end % 1000000000};
}

#endif
