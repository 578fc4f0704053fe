/*
 * The pool: one generation word that workers watch, one count of busy workers that the caller watches. Both are futex
 * words; whoever changes one looks whether somebody sleeps on it. All orders are sequentially consistent: a sleeper
 * announces itself before it looks at the word for the last time, a waker changes the word before it looks for
 * sleepers, so one of the two sees the other.
 */
#include "cpu/pool.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "weft/log.h"

enum {
    SPIN_TIME_NS = 50 * 1000, /* wait.h: what a futex wake-up costs, roughly */
    SPIN_BATCH = 32,          /* pauses between two looks at the clock */
    YIELD_SPIN_COUNT = 200,   /* wait.h */
    YIELD_COUNT = 100,
    CACHE_LINE_SIZE = 64,
};

struct worker {
    struct weft_pool *pool;
    pthread_t thread;
    uint32_t index;
    int log_rank;
};

struct weft_pool {
    uint32_t thread_count;
    uint32_t started_count;
    enum weft_wait_policy wait;
    struct worker *workers; /* [thread_count], owned; 0 unused */

    /* The operation, written by the caller before the generation changes. */
    weft_pool_task *task;
    void *context;
    uint32_t item_count;
    enum weft_pool_deal deal;
    bool is_closing;

    _Alignas(CACHE_LINE_SIZE) _Atomic uint32_t generation;
    _Atomic uint32_t sleeper_count;
    _Alignas(CACHE_LINE_SIZE) _Atomic uint32_t busy_count;
    _Atomic uint32_t is_caller_asleep;
    _Alignas(CACHE_LINE_SIZE) _Atomic uint32_t next_item;
};

static void cpu_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    (void)syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word)
{
    (void)syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static int64_t now_ns(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Watches *word without sleeping for as long as the policy says; true once it differs from `value`. */
static bool watch(const _Atomic uint32_t *word, uint32_t value, enum weft_wait_policy wait)
{
    int64_t deadline;

    if (wait == WEFT_WAIT_YIELD) {
        for (int i = 0; i < YIELD_SPIN_COUNT + YIELD_COUNT; i++) {
            if (atomic_load(word) != value) {
                return true;
            }
            if (i < YIELD_SPIN_COUNT) {
                cpu_pause();
            } else {
                (void)sched_yield();
            }
        }
        return false;
    }
    deadline = now_ns() + SPIN_TIME_NS;
    do {
        for (int i = 0; i < SPIN_BATCH; i++) {
            if (atomic_load(word) != value) {
                return true;
            }
            cpu_pause();
        }
    } while (now_ns() < deadline);
    return false;
}

static void wait_for_work(struct weft_pool *pool, uint32_t seen)
{
    if (watch(&pool->generation, seen, pool->wait)) {
        return;
    }
    atomic_fetch_add(&pool->sleeper_count, 1);
    while (atomic_load(&pool->generation) == seen) {
        futex_wait(&pool->generation, seen);
    }
    atomic_fetch_sub(&pool->sleeper_count, 1);
}

static void wait_for_workers(struct weft_pool *pool)
{
    uint32_t busy;

    while ((busy = atomic_load(&pool->busy_count)) != 0) {
        if (watch(&pool->busy_count, busy, pool->wait)) {
            continue;
        }
        atomic_store(&pool->is_caller_asleep, 1);
        busy = atomic_load(&pool->busy_count);
        if (busy != 0) {
            futex_wait(&pool->busy_count, busy);
        }
        atomic_store(&pool->is_caller_asleep, 0);
    }
}

static void do_share(struct weft_pool *pool, uint32_t worker)
{
    uint64_t count = pool->item_count;

    if (pool->deal == WEFT_POOL_STATIC) {
        uint32_t begin = (uint32_t)(count * worker / pool->thread_count);
        uint32_t end = (uint32_t)(count * (worker + 1) / pool->thread_count);

        if (begin < end) {
            pool->task(pool->context, worker, begin, end);
        }
        return;
    }
    for (;;) {
        uint32_t item = atomic_fetch_add(&pool->next_item, 1);

        if (item >= count) {
            return;
        }
        pool->task(pool->context, worker, item, item + 1);
    }
}

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    struct weft_pool *pool = worker->pool;
    uint32_t seen = 0;

    weft_log_set_rank(worker->log_rank);
    for (;;) {
        wait_for_work(pool, seen);
        seen = atomic_load(&pool->generation);
        if (pool->is_closing) {
            return NULL;
        }
        do_share(pool, worker->index);
        if (atomic_fetch_sub(&pool->busy_count, 1) == 1 && atomic_load(&pool->is_caller_asleep) != 0) {
            futex_wake(&pool->busy_count);
        }
    }
}

static void publish(struct weft_pool *pool)
{
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->sleeper_count) != 0) {
        futex_wake(&pool->generation);
    }
}

void weft_pool_run(struct weft_pool *pool, enum weft_pool_deal deal, uint32_t item_count, weft_pool_task *task,
                   void *context)
{
    assert(item_count < UINT32_MAX - 4096); /* next_item overshoots by one per worker */
    if (item_count == 0) {
        return;
    }
    if (item_count == 1 || pool->thread_count == 1) {
        task(context, 0, 0, item_count);
        return;
    }
    pool->task = task;
    pool->context = context;
    pool->item_count = item_count;
    pool->deal = deal;
    atomic_store(&pool->next_item, 0);
    atomic_store(&pool->busy_count, pool->thread_count - 1);
    publish(pool);
    do_share(pool, 0);
    wait_for_workers(pool);
}

static enum weft_status pin(pthread_t thread, uint32_t core)
{
    cpu_set_t set;
    int error;

    if (core >= CPU_SETSIZE) {
        weft_log(WEFT_LOG_ERROR, "kernels/cpu", "cannot pin to core %u: cores are numbered below %d", core,
                 CPU_SETSIZE);
        return WEFT_ERR_ARGUMENT;
    }
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    error = pthread_setaffinity_np(thread, sizeof(set), &set);
    if (error != 0) {
        weft_log(WEFT_LOG_ERROR, "kernels/cpu", "pin a thread to core %u: %s", core, strerror(error));
        return WEFT_ERR_ARGUMENT;
    }
    return WEFT_OK;
}

static enum weft_status start_workers(struct weft_pool *pool, const uint32_t *cores)
{
    for (uint32_t i = 1; i < pool->thread_count; i++) {
        struct worker *worker = &pool->workers[i];
        int error;

        *worker = (struct worker){.pool = pool, .index = i, .log_rank = weft_log_rank()};
        error = pthread_create(&worker->thread, NULL, worker_main, worker);
        if (error != 0) {
            weft_log(WEFT_LOG_ERROR, "kernels/cpu", "start thread %u of %u: %s", i, pool->thread_count,
                     strerror(error));
            return WEFT_ERR_MEMORY;
        }
        pool->started_count = i;
        if (cores != NULL) {
            WEFT_TRY(pin(worker->thread, cores[i]));
        }
    }
    return cores != NULL ? pin(pthread_self(), cores[0]) : WEFT_OK;
}

enum weft_status weft_pool_open(uint32_t thread_count, const uint32_t *cores, enum weft_wait_policy wait,
                                struct weft_pool **out)
{
    struct weft_pool *pool = NULL;
    enum weft_status status;

    assert(thread_count >= 1);
    if (posix_memalign((void **)&pool, CACHE_LINE_SIZE, sizeof(*pool)) != 0) {
        weft_log(WEFT_LOG_ERROR, "kernels/cpu", "out of memory for a pool of %u threads", thread_count);
        return WEFT_ERR_MEMORY;
    }
    memset(pool, 0, sizeof(*pool));
    pool->thread_count = thread_count;
    pool->wait = wait;
    pool->workers = calloc(thread_count, sizeof(*pool->workers));
    if (pool->workers == NULL) {
        weft_log(WEFT_LOG_ERROR, "kernels/cpu", "out of memory for a pool of %u threads", thread_count);
        free(pool);
        return WEFT_ERR_MEMORY;
    }
    status = start_workers(pool, cores);
    if (status != WEFT_OK) {
        weft_pool_close(&pool);
        return status;
    }
    *out = pool;
    return WEFT_OK;
}

void weft_pool_close(struct weft_pool **pool_ref)
{
    struct weft_pool *pool = *pool_ref;

    if (pool == NULL) {
        return;
    }
    pool->is_closing = true;
    publish(pool);
    for (uint32_t i = 1; i <= pool->started_count; i++) {
        (void)pthread_join(pool->workers[i].thread, NULL);
    }
    free(pool->workers);
    free(pool);
    *pool_ref = NULL;
}
