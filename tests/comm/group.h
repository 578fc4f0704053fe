/*
 * Runs one function on every rank of a group, whatever kind of bootstrap it is. Shared by the tests of tests/comm.
 *
 * Threads cannot use cmocka's assertions (they longjmp), so a rank's function returns 0 or the line that went wrong,
 * which GROUP_CHECK does; results live in memory shared with forked ranks.
 */
#ifndef WEFT_TESTS_COMM_GROUP_H
#define WEFT_TESTS_COMM_GROUP_H

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "weft/bootstrap.h"
#include "weft/log.h"

#define GROUP_RANK_MAX 128
#define GROUP_PENDING  (-1)

#define GROUP_CHECK(condition)                                                                                         \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: rank %d: %s\n", __FILE__, __LINE__, weft_log_rank(), #condition);                  \
            return __LINE__;                                                                                           \
        }                                                                                                              \
    } while (0)

/* Closes *bootstrap itself if it wants to be the last to speak; otherwise the runner does. */
typedef int group_function(struct weft_bootstrap **bootstrap, void *context);

enum group_kind { GROUP_THREADS, GROUP_LOCAL, GROUP_TCP, GROUP_KIND_COUNT };

struct group_rank {
    struct weft_bootstrap *bootstrap;
    struct weft_bootstrap_tcp_options tcp; /* used when bootstrap is NULL */
    uint32_t rank;
    group_function *function;
    void *context;
    int result;
};

static inline void *group_thread(void *argument)
{
    struct group_rank *rank = argument;

    if (rank->bootstrap == NULL && weft_bootstrap_open_tcp(&rank->tcp, &rank->bootstrap) != WEFT_OK) {
        rank->result = __LINE__;
        return NULL;
    }
    weft_log_set_rank((int)rank->rank);
    rank->result = rank->function(&rank->bootstrap, rank->context);
    weft_bootstrap_close(&rank->bootstrap);
    return NULL;
}

/* 0 when every rank's function returned 0. `leader` "127.0.0.1:PORT" for GROUP_TCP. */
static inline int group_run_threads(enum group_kind kind, const char *leader, uint32_t rank_count,
                                    group_function *function, void *context)
{
    struct weft_bootstrap *bootstraps[GROUP_RANK_MAX] = {NULL};
    struct group_rank ranks[GROUP_RANK_MAX];
    pthread_t threads[GROUP_RANK_MAX];
    int result = 0;

    if (kind == GROUP_THREADS && weft_bootstrap_open_threads(rank_count, bootstraps) != WEFT_OK) {
        return __LINE__;
    }
    for (uint32_t i = 0; i < rank_count; i++) {
        ranks[i] = (struct group_rank){.bootstrap = bootstraps[i],
                                       .tcp = {.leader = leader,
                                               .rank = i,
                                               .rank_count = rank_count,
                                               .timeout_ms = 20000,
                                               .secret = "thread and shuttle"},
                                       .rank = i,
                                       .function = function,
                                       .context = context,
                                       .result = GROUP_PENDING};
        if (pthread_create(&threads[i], NULL, group_thread, &ranks[i]) != 0) {
            abort();
        }
    }
    for (uint32_t i = 0; i < rank_count; i++) {
        pthread_join(threads[i], NULL);
        if (ranks[i].result != 0) {
            result = ranks[i].result;
        }
    }
    return result;
}

/* As above with processes. A rank that died with its result pending (killed on purpose) is not counted as wrong. */
static inline int group_run_local(uint32_t rank_count, group_function *function, void *context)
{
    int *results = mmap(NULL, GROUP_RANK_MAX * sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct weft_bootstrap *bootstrap;
    int result = 0;
    uint32_t rank;

    for (uint32_t i = 0; i < rank_count; i++) {
        results[i] = GROUP_PENDING;
    }
    if (weft_bootstrap_open_local(rank_count, &bootstrap) != WEFT_OK) {
        return __LINE__;
    }
    rank = weft_bootstrap_rank(bootstrap);
    results[rank] = function(&bootstrap, context);
    weft_bootstrap_close(&bootstrap);
    if (rank != 0) {
        _exit(0);
    }
    weft_log_set_rank(-1);
    for (uint32_t i = 0; i < rank_count; i++) {
        if (results[i] != 0 && results[i] != GROUP_PENDING) {
            result = results[i];
        }
    }
    munmap(results, GROUP_RANK_MAX * sizeof(int));
    return result;
}

#endif
