/* How threads and ranks wait for each other; one choice per process, made from the machine by whoever opens things. */
#ifndef WEFT_WAIT_H
#define WEFT_WAIT_H

/* Spinning is fastest when every thread has a core; otherwise give the core away soon. */
enum weft_wait_policy {
    WEFT_WAIT_SPIN = 0,  /* pause-spin about 50 us, then sleep on a futex or in poll() */
    WEFT_WAIT_YIELD = 1, /* more threads than cores: sched_yield after about 2 us, then sleep */
};

#endif
