/* What ranks do in the tests of bootstraps, the same for every kind. */
#ifndef WEFT_TESTS_COMM_BODIES_H
#define WEFT_TESTS_COMM_BODIES_H

#include <dirent.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <time.h>

#include "group.h"

/* The deadline of calls that are to succeed: generous, the machine may be busy. */
enum { LONG_MS = 60000 };

static const uint32_t rank_counts[] = {1, 2, 3, 4, 5, 8};

static inline int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static inline void pause_ms(long ms)
{
    struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

    nanosleep(&pause, NULL);
}

static inline int open_fd_count(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0;

    while (readdir(directory) != NULL) {
        count++;
    }
    closedir(directory);
    return count;
}

/* ---- when all is well ---- */

static inline int gather_body(struct weft_bootstrap **bootstrap, void *context)
{
    uint32_t rank = weft_bootstrap_rank(*bootstrap);
    uint32_t rank_count = weft_bootstrap_rank_count(*bootstrap);
    static const size_t sizes[] = {0, 1, 8, 1000, 1 << 20};
    uint64_t hosts[GROUP_RANK_MAX];
    uint64_t host = weft_bootstrap_host_id(*bootstrap);

    (void)context;
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        size_t size = sizes[s];
        uint8_t *in = malloc(size + 1);
        uint8_t *out = malloc(size * rank_count + 1);

        memset(in, (int)(rank + 1), size);
        out[size * rank_count] = 0xa5;
        GROUP_CHECK(weft_bootstrap_all_gather(*bootstrap, in, size, out, LONG_MS) == WEFT_OK);
        for (size_t i = 0; i < size * rank_count; i++) {
            GROUP_CHECK(out[i] == i / size + 1);
        }
        GROUP_CHECK(out[size * rank_count] == 0xa5);
        free(in);
        free(out);
    }
    GROUP_CHECK(weft_bootstrap_all_gather(*bootstrap, &host, sizeof(host), hosts, LONG_MS) == WEFT_OK);
    for (uint32_t i = 0; i < rank_count; i++) {
        GROUP_CHECK(hosts[i] == host);
    }
    GROUP_CHECK(weft_bootstrap_check(*bootstrap) == WEFT_OK);
    GROUP_CHECK(weft_bootstrap_failed_rank(*bootstrap) == -1);
    return 0;
}

/* Leader and worker both send a frame larger than any socket buffer before either receives, then many small ones. */
static inline int frames_body(struct weft_bootstrap **bootstrap, void *context)
{
    uint32_t rank = weft_bootstrap_rank(*bootstrap);
    uint32_t rank_count = weft_bootstrap_rank_count(*bootstrap);
    size_t big = 9 << 20;
    uint8_t *frame = malloc(big);
    const void *data;
    size_t size;

    (void)context;
    memset(frame, (int)(rank + 1), big);
    for (uint32_t peer = rank == 0 ? 1 : 0; peer < (rank == 0 ? rank_count : 1); peer++) {
        GROUP_CHECK(weft_bootstrap_send(*bootstrap, peer, frame, big, LONG_MS) == WEFT_OK);
        GROUP_CHECK(weft_bootstrap_recv(*bootstrap, peer, &data, &size, LONG_MS) == WEFT_OK);
        GROUP_CHECK(size == big);
        for (size_t i = 0; i < big; i++) {
            GROUP_CHECK(((const uint8_t *)data)[i] == peer + 1);
        }
    }
    for (uint32_t i = 0; i < 500; i++) {
        for (uint32_t peer = rank == 0 ? 1 : 0; peer < (rank == 0 ? rank_count : 1); peer++) {
            GROUP_CHECK(weft_bootstrap_send(*bootstrap, peer, &i, i % 5, LONG_MS) == WEFT_OK);
        }
        for (uint32_t peer = rank == 0 ? 1 : 0; peer < (rank == 0 ? rank_count : 1); peer++) {
            GROUP_CHECK(weft_bootstrap_check(*bootstrap) == WEFT_OK);
            GROUP_CHECK(weft_bootstrap_recv(*bootstrap, peer, &data, &size, UINT32_MAX) == WEFT_OK);
            GROUP_CHECK(size == i % 5 && memcmp(data, &i, size) == 0);
        }
    }
    free(frame);
    return 0;
}

/* Ranks leave one after the other: nobody takes that for a death while the rest go on. */
static inline int leave_body(struct weft_bootstrap **bootstrap, void *context)
{
    uint32_t rank = weft_bootstrap_rank(*bootstrap);
    const void *data;
    size_t size;

    (void)context;
    if (rank == 1) {
        GROUP_CHECK(weft_bootstrap_send(*bootstrap, 0, "bye", 3, LONG_MS) == WEFT_OK);
        return 0;
    }
    if (rank != 0) {
        pause_ms(100);
        GROUP_CHECK(weft_bootstrap_check(*bootstrap) == WEFT_OK);
        GROUP_CHECK(weft_bootstrap_send(*bootstrap, 0, "late", 4, LONG_MS) == WEFT_OK);
        return 0;
    }
    pause_ms(50);
    GROUP_CHECK(weft_bootstrap_check(*bootstrap) == WEFT_OK);
    for (uint32_t peer = 1; peer < weft_bootstrap_rank_count(*bootstrap); peer++) {
        GROUP_CHECK(weft_bootstrap_recv(*bootstrap, peer, &data, &size, LONG_MS) == WEFT_OK);
        GROUP_CHECK(size == (peer == 1 ? 3 : 4));
    }
    GROUP_CHECK(weft_bootstrap_check(*bootstrap) == WEFT_OK);
    GROUP_CHECK(weft_bootstrap_recv(*bootstrap, 1, &data, &size, LONG_MS) == WEFT_ERR_PEER);
    GROUP_CHECK(weft_bootstrap_failed_rank(*bootstrap) == 1);
    GROUP_CHECK(strcmp(weft_bootstrap_failed_reason(*bootstrap), "left the group") == 0);
    return 0;
}

static inline int wait_body(struct weft_bootstrap **bootstrap, void *context)
{
    int wake_fd = eventfd(0, EFD_CLOEXEC);
    uint64_t one = 1;

    (void)context;
    GROUP_CHECK(weft_bootstrap_wait(*bootstrap, wake_fd, 0) == WEFT_ERR_TIMEOUT);
    GROUP_CHECK(weft_bootstrap_wait(*bootstrap, -1, 20) == WEFT_ERR_TIMEOUT);
    GROUP_CHECK(write(wake_fd, &one, sizeof(one)) == sizeof(one));
    GROUP_CHECK(weft_bootstrap_wait(*bootstrap, wake_fd, UINT32_MAX) == WEFT_OK);
    close(wake_fd);
    return 0;
}

/* recv gives up in time and nothing is lost by it, also when half a frame has come. */
static inline int recv_timeout_body(struct weft_bootstrap **bootstrap, void *context)
{
    static uint8_t frame[6 << 20];
    const void *data;
    size_t size;
    enum weft_status status;

    (void)context;
    if (weft_bootstrap_rank(*bootstrap) != 0) {
        GROUP_CHECK(weft_bootstrap_recv(*bootstrap, 0, &data, &size, 30) == WEFT_ERR_TIMEOUT);
        GROUP_CHECK(weft_bootstrap_send(*bootstrap, 0, frame, sizeof(frame), LONG_MS) == WEFT_OK);
        return 0;
    }
    for (uint32_t peer = 1; peer < weft_bootstrap_rank_count(*bootstrap); peer++) {
        while ((status = weft_bootstrap_recv(*bootstrap, peer, &data, &size, 1)) == WEFT_ERR_TIMEOUT) {
            GROUP_CHECK(weft_bootstrap_check(*bootstrap) == WEFT_OK);
        }
        GROUP_CHECK(status == WEFT_OK && size == sizeof(frame));
    }
    return 0;
}

/* ---- when a rank dies ---- */

enum victim_place { IN_RECV, IN_GATHER, IN_WAIT, IN_CHECK, IN_SEND, PLACE_COUNT };

struct death {
    enum victim_place place; /* of the survivors */
    uint32_t victim;
    const char *reason; /* that survivors give, or a part of it */
};

static inline enum weft_status survive(struct weft_bootstrap *bootstrap, const struct death *death)
{
    static uint8_t frame[4 << 20];
    uint32_t rank_count = weft_bootstrap_rank_count(bootstrap);
    bool is_leader = weft_bootstrap_rank(bootstrap) == 0;
    uint32_t other = is_leader ? rank_count - death->victim : 0;
    enum weft_status status = WEFT_OK;
    uint8_t parts[GROUP_RANK_MAX];
    const void *data;
    size_t size;

    switch (death->place) {
    case IN_RECV: return weft_bootstrap_recv(bootstrap, other, &data, &size, UINT32_MAX);
    case IN_GATHER: return weft_bootstrap_all_gather(bootstrap, "x", 1, parts, LONG_MS);
    case IN_WAIT: return weft_bootstrap_wait(bootstrap, -1, UINT32_MAX);
    case IN_CHECK:
        while (status == WEFT_OK) {
            pause_ms(1);
            status = weft_bootstrap_check(bootstrap);
        }
        return status;
    default:
        while (status == WEFT_OK) {
            status = weft_bootstrap_send(bootstrap, other, frame, sizeof(frame), LONG_MS);
        }
        return status;
    }
}

static inline int death_body(struct weft_bootstrap **bootstrap, void *context)
{
    const struct death *death = context;
    uint32_t rank = weft_bootstrap_rank(*bootstrap);
    int64_t begin;
    uint8_t parts[GROUP_RANK_MAX];
    enum weft_status status = weft_bootstrap_all_gather(*bootstrap, "x", 1, parts, LONG_MS);

    /* Where cores are scarce the victim can be dead before this rank is through. */
    GROUP_CHECK(status == WEFT_OK || (rank != death->victim && status == WEFT_ERR_PEER));
    if (rank == death->victim) {
        pause_ms(30);
        kill(getpid(), SIGKILL);
    }
    begin = now_ms();
    GROUP_CHECK(survive(*bootstrap, death) == WEFT_ERR_PEER);
    GROUP_CHECK(weft_bootstrap_failed_rank(*bootstrap) == (int)death->victim);
    GROUP_CHECK(now_ms() - begin < LONG_MS / 2);
    GROUP_CHECK(strstr(weft_bootstrap_failed_reason(*bootstrap), death->reason) != NULL);
    /* It stays that way. */
    GROUP_CHECK(weft_bootstrap_check(*bootstrap) == WEFT_ERR_PEER);
    GROUP_CHECK(weft_bootstrap_all_gather(*bootstrap, "x", 1, parts, LONG_MS) == WEFT_ERR_PEER);
    return 0;
}

/* ---- abort ---- */

struct abortion {
    uint32_t by;
    uint32_t of;
};

static inline int abort_body(struct weft_bootstrap **bootstrap, void *context)
{
    const struct abortion *abortion = context;
    uint8_t parts[GROUP_RANK_MAX];
    enum weft_status status = weft_bootstrap_all_gather(*bootstrap, "x", 1, parts, LONG_MS);

    /* The news may overtake the end of the all_gather on ranks that are not through yet. */
    if (weft_bootstrap_rank(*bootstrap) == abortion->by) {
        GROUP_CHECK(status == WEFT_OK);
        weft_bootstrap_abort(*bootstrap, abortion->of, "step digest differs");
    } else {
        GROUP_CHECK(status == WEFT_OK || status == WEFT_ERR_PEER);
        GROUP_CHECK(weft_bootstrap_wait(*bootstrap, -1, LONG_MS) == WEFT_ERR_PEER);
    }
    GROUP_CHECK(weft_bootstrap_failed_rank(*bootstrap) == (int)abortion->of);
    GROUP_CHECK(strcmp(weft_bootstrap_failed_reason(*bootstrap), "step digest differs") == 0);
    return 0;
}

/* One rank gathers another size: named, not mixed up. */
static inline int mismatch_body(struct weft_bootstrap **bootstrap, void *context)
{
    uint8_t parts[GROUP_RANK_MAX * 2];
    size_t size = weft_bootstrap_rank(*bootstrap) == 2 ? 2 : 1;

    (void)context;
    GROUP_CHECK(weft_bootstrap_all_gather(*bootstrap, "xy", size, parts, LONG_MS) == WEFT_ERR_PEER);
    GROUP_CHECK(weft_bootstrap_failed_rank(*bootstrap) == 2);
    return 0;
}

#endif
