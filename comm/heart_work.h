/*
 * Whether this process works, as its heartbeats tell: a number that grows while it does. Looked at once per interval by
 * the thread of heartbeats, whose own CPU time never counts. Private to comm/.
 *
 *   CPU milliseconds and blocks read                                  unless the process waits for another rank
 *   a tenth of the time in which a thread wanted a core throughout    likewise: with a core it would have worked
 *   the same, when no thread of the process got any core              always: it cannot have seen that its wait is over
 *
 * "Wanted a core throughout": runnable at two looks in a row without having slept between (state R and the same
 * voluntary_ctxt_switches in /proc/self/task). A thread that only wakes up now and then has slept, however late it gets
 * its core. Rejected: schedstat's waiting time, which is booked only once the thread has its core, and counts the late
 * wake-ups, too.
 *
 * The threads are looked at only while the process gets less than half a core and is not idle: 10 us each, the first
 * HEART_WORK_THREADS.
 */
#ifndef WEFT_COMM_HEART_WORK_H
#define WEFT_COMM_HEART_WORK_H

#include <stdbool.h>
#include <stdint.h>

enum { HEART_WORK_THREADS = 256 };

struct heart_work {
    uint64_t done; /* the number */
    int64_t looked_ns;
    int64_t cpu_ns;
    int64_t spare_ns;  /* CPU time not yet a millisecond */
    int64_t wanted_ns; /* time without a core not yet counted */
    uint64_t blocks;
    uint32_t thread_count;
    struct {
        uint32_t tid;
        bool is_runnable;
        uint64_t sleeps;
    } threads[HEART_WORK_THREADS]; /* at the last look, in the kernel's order */
};

/* *work zeroed before the first call. is_waiting: for another rank; is_idle: nothing is to be done. */
void weft_heart_work_look(struct heart_work *work, int64_t now, uint32_t own_tid, bool is_waiting, bool is_idle);

/*
 * Whether a process with this number worked in the window that ends now; looks, and is true, once a second at most.
 */
bool weft_heart_did_work(uint64_t done, int64_t now, int64_t *window_ns, uint64_t *window_done);

#endif
