/* The thread pool: every item exactly once, for both ways of dealing and waiting, woken from sleep or not. */
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "check.h"
#include "cpu/pool.h"

enum { ITEMS_MAX = 1000, RUNS = 40 };

struct tally {
    uint32_t thread_count;
    _Atomic uint32_t bad_worker_count;
    uint32_t done[ITEMS_MAX]; /* plain: two workers on one item would be a race */
};

static void count_items(void *context, uint32_t worker, uint32_t begin, uint32_t end)
{
    struct tally *tally = context;

    if (worker >= tally->thread_count) {
        atomic_fetch_add(&tally->bad_worker_count, 1);
    }
    for (uint32_t i = begin; i < end; i++) {
        tally->done[i]++;
    }
}

/* Longer than any worker spins or yields, so that the next run finds it asleep. */
static void let_workers_sleep(void)
{
    const struct timespec pause = {.tv_nsec = 3 * 1000 * 1000};

    (void)nanosleep(&pause, NULL);
}

static void pool_case(struct check *check, uint32_t thread_count, enum weft_wait_policy wait)
{
    static const uint32_t counts[] = {0, 1, 2, 3, 7, 64, ITEMS_MAX};
    const uint32_t cores[] = {0, 0, 0, 0, 0};
    struct weft_pool *pool;
    struct tally *tally = calloc(1, sizeof(*tally));

    if (tally == NULL || weft_pool_open(thread_count, thread_count == 3 ? cores : NULL, wait, &pool) != WEFT_OK) {
        abort();
    }
    tally->thread_count = thread_count;
    for (uint32_t run = 0; run < RUNS; run++) {
        uint32_t count = counts[run % 7];
        enum weft_pool_deal deal = check_below(check, 2) == 0 ? WEFT_POOL_STATIC : WEFT_POOL_DYNAMIC;

        for (uint32_t i = 0; i < ITEMS_MAX; i++) {
            tally->done[i] = 0;
        }
        weft_pool_run(pool, deal, count, count_items, tally);
        for (uint32_t i = 0; i < ITEMS_MAX; i++) {
            check->compared_count++;
            if (tally->done[i] != (i < count ? 1 : 0)) {
                check_fail(check, "pool of %u, wait %d: item %u of %u done %u times", thread_count, wait, i, count,
                           tally->done[i]);
                break;
            }
        }
        if (run % 10 == 9) {
            let_workers_sleep();
        }
    }
    if (atomic_load(&tally->bad_worker_count) != 0) {
        check_fail(check, "pool of %u: a worker has a number of %u or more", thread_count, thread_count);
    }
    weft_pool_close(&pool);
    if (pool != NULL) {
        check_fail(check, "pool close leaves its pointer");
    }
    free(tally);
}

void check_pool(struct check *check)
{
    cpu_set_t affinity;

    /* Pinning includes this thread: what the process may use comes back afterwards. */
    if (sched_getaffinity(0, sizeof(affinity), &affinity) != 0) {
        abort();
    }
    for (uint32_t threads = 1; threads <= 5; threads++) {
        if (threads == 3 && !CPU_ISSET(0, &affinity)) {
            continue; /* nothing to pin to that is surely there */
        }
        pool_case(check, threads, WEFT_WAIT_SPIN);
        pool_case(check, threads, WEFT_WAIT_YIELD);
        if (sched_setaffinity(0, sizeof(affinity), &affinity) != 0) {
            abort();
        }
    }
}
