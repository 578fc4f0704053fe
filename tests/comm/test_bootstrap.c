/* Every kind of bootstrap: exchange, big frames, waiting, abort, and a rank that dies while the others are at work. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <time.h>

#include "group.h"

/* The deadline of calls that are to succeed: generous, the machine may be busy. */
enum { LONG_MS = 20000 };

static const uint32_t rank_counts[] = {1, 2, 3, 4, 5, 8};

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void pause_ms(long ms)
{
    struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

    nanosleep(&pause, NULL);
}

static int open_fd_count(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0;

    while (readdir(directory) != NULL) {
        count++;
    }
    closedir(directory);
    return count;
}

static int run(enum group_kind kind, uint32_t rank_count, group_function *function, void *context)
{
    return kind == GROUP_LOCAL ? group_run_local(rank_count, function, context)
                               : group_run_threads(rank_count, function, context);
}

/* ---- when all is well ---- */

static int gather_body(struct weft_bootstrap **bootstrap, void *context)
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
static int frames_body(struct weft_bootstrap **bootstrap, void *context)
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
static int leave_body(struct weft_bootstrap **bootstrap, void *context)
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

static int wait_body(struct weft_bootstrap **bootstrap, void *context)
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
static int recv_timeout_body(struct weft_bootstrap **bootstrap, void *context)
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

/* Whatever happened, the descriptors of before are those of after. */
static void check_all(enum group_kind kind, group_function *function, uint32_t rank_count_min)
{
    int before = open_fd_count();

    for (size_t i = 0; i < sizeof(rank_counts) / sizeof(rank_counts[0]); i++) {
        if (rank_counts[i] >= rank_count_min) {
            assert_int_equal(run(kind, rank_counts[i], function, NULL), 0);
        }
    }
    assert_int_equal(open_fd_count(), before);
}

static void test_well(enum group_kind kind)
{
    check_all(kind, gather_body, 1);
    check_all(kind, frames_body, 2);
    check_all(kind, leave_body, 3);
    check_all(kind, wait_body, 1);
    check_all(kind, recv_timeout_body, 2);
}

/* ---- when a rank dies ---- */

enum victim_place { IN_RECV, IN_GATHER, IN_WAIT, IN_CHECK, IN_SEND, PLACE_COUNT };

struct death {
    enum victim_place place; /* of the survivors */
    uint32_t victim;
};

static enum weft_status survive(struct weft_bootstrap *bootstrap, const struct death *death)
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

static int death_body(struct weft_bootstrap **bootstrap, void *context)
{
    const struct death *death = context;
    uint32_t rank = weft_bootstrap_rank(*bootstrap);
    int64_t begin;
    uint8_t parts[GROUP_RANK_MAX];

    GROUP_CHECK(weft_bootstrap_all_gather(*bootstrap, "x", 1, parts, LONG_MS) == WEFT_OK);
    if (rank == death->victim) {
        pause_ms(30);
        kill(getpid(), SIGKILL);
    }
    begin = now_ms();
    GROUP_CHECK(survive(*bootstrap, death) == WEFT_ERR_PEER);
    GROUP_CHECK(weft_bootstrap_failed_rank(*bootstrap) == (int)death->victim);
    GROUP_CHECK(now_ms() - begin < LONG_MS / 2);
    GROUP_CHECK(strstr(weft_bootstrap_failed_reason(*bootstrap), "killed by signal 9") != NULL);
    /* It stays that way. */
    GROUP_CHECK(weft_bootstrap_check(*bootstrap) == WEFT_ERR_PEER);
    GROUP_CHECK(weft_bootstrap_all_gather(*bootstrap, "x", 1, parts, LONG_MS) == WEFT_ERR_PEER);
    return 0;
}

static void test_local_death(void **state)
{
    int before = open_fd_count();

    (void)state;
    for (int place = 0; place < PLACE_COUNT; place++) {
        for (uint32_t rank_count = 3; rank_count <= 5; rank_count += 2) {
            struct death death = {.place = place, .victim = place % 2 == 0 ? 1 : 2};

            assert_int_equal(group_run_local(rank_count, death_body, &death), 0);
        }
    }
    assert_int_equal(open_fd_count(), before);
}

/* A child that neither hears nor leaves is killed by its leader, and reaped. */
static int stubborn_body(struct weft_bootstrap **bootstrap, void *context)
{
    (void)context;
    if (weft_bootstrap_rank(*bootstrap) == 1) {
        pause_ms(100000);
    }
    return 0;
}

static void test_local_stubborn(void **state)
{
    int64_t begin = now_ms();

    (void)state;
    assert_int_equal(group_run_local(3, stubborn_body, NULL), 0);
    assert_true(now_ms() - begin < 20000);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no child is left */
}

/* The leader is killed: its children end with it. */
static void test_local_leader_death(void **state)
{
    pid_t *pids = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t leader = fork();
    int status;

    (void)state;
    if (leader == 0) {
        struct weft_bootstrap *bootstrap;
        uint8_t parts[3];
        uint32_t rank;

        if (weft_bootstrap_open_local(3, &bootstrap) != WEFT_OK) {
            _exit(1);
        }
        rank = weft_bootstrap_rank(bootstrap);
        pids[rank] = getpid();
        if (weft_bootstrap_all_gather(bootstrap, "x", 1, parts, LONG_MS) != WEFT_OK || rank == 0) {
            kill(getpid(), SIGKILL);
        }
        pause_ms(100000);
        _exit(0);
    }
    assert_int_equal(waitpid(leader, &status, 0), leader);
    for (int i = 0; i < 1000 && (kill(pids[1], 0) == 0 || kill(pids[2], 0) == 0); i++) {
        char path[64];
        char stat[256] = "";
        FILE *file;

        /* Nobody may reap orphans in a container: a zombie counts as gone. */
        (void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pids[kill(pids[1], 0) == 0 ? 1 : 2]);
        file = fopen(path, "r");
        if (file != NULL) {
            if (fgets(stat, sizeof(stat), file) != NULL && strstr(stat, ") Z ") != NULL) {
                fclose(file);
                break;
            }
            fclose(file);
        }
        pause_ms(10);
        assert_true(i < 900);
    }
    munmap(pids, 4096);
}

/* ---- abort ---- */

struct abortion {
    uint32_t by;
    uint32_t of;
};

static int abort_body(struct weft_bootstrap **bootstrap, void *context)
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

static void test_abort(enum group_kind kind)
{
    for (uint32_t by = 0; by < 4; by++) {
        struct abortion abortion = {.by = by, .of = by == 3 ? 2 : by};

        assert_int_equal(run(kind, 4, abort_body, &abortion), 0);
    }
}

/* One rank gathers another size: named, not mixed up. */
static int mismatch_body(struct weft_bootstrap **bootstrap, void *context)
{
    uint8_t parts[GROUP_RANK_MAX * 2];
    size_t size = weft_bootstrap_rank(*bootstrap) == 2 ? 2 : 1;

    (void)context;
    GROUP_CHECK(weft_bootstrap_all_gather(*bootstrap, "xy", size, parts, LONG_MS) == WEFT_ERR_PEER);
    GROUP_CHECK(weft_bootstrap_failed_rank(*bootstrap) == 2);
    return 0;
}

static void test_threads_well(void **state)
{
    (void)state;
    test_well(GROUP_THREADS);
}

static void test_threads_abort(void **state)
{
    (void)state;
    test_abort(GROUP_THREADS);
    assert_int_equal(run(GROUP_THREADS, 3, mismatch_body, NULL), 0);
}

static void test_local_well(void **state)
{
    (void)state;
    test_well(GROUP_LOCAL);
}

static void test_local_abort(void **state)
{
    (void)state;
    test_abort(GROUP_LOCAL);
}

static void test_self(void **state)
{
    struct weft_bootstrap *bootstrap;
    int before = open_fd_count();
    const void *data;
    size_t size;

    (void)state;
    assert_int_equal(weft_bootstrap_open_self(&bootstrap), WEFT_OK);
    assert_string_equal(weft_bootstrap_kind(bootstrap), "self");
    assert_int_equal(gather_body(&bootstrap, NULL), 0);
    assert_int_equal(wait_body(&bootstrap, NULL), 0);
    assert_int_equal(weft_bootstrap_send(bootstrap, 0, "x", 1, 0), WEFT_OK);
    assert_int_equal(weft_bootstrap_recv(bootstrap, 0, &data, &size, 0), WEFT_OK);
    weft_bootstrap_close(&bootstrap);
    assert_null(bootstrap);
    weft_bootstrap_close(&bootstrap);
    assert_int_equal(open_fd_count(), before);
}

static void test_arguments(void **state)
{
    struct weft_bootstrap *bootstrap = NULL;

    (void)state;
    assert_int_equal(weft_bootstrap_open_local(0, &bootstrap), WEFT_ERR_ARGUMENT);
    assert_int_equal(weft_bootstrap_open_local(1025, &bootstrap), WEFT_ERR_ARGUMENT);
    assert_int_equal(weft_bootstrap_open_threads(0, &bootstrap), WEFT_ERR_ARGUMENT);
    assert_null(bootstrap);
}

int main(int argument_count, char **arguments)
{
    const struct CMUnitTest threads_tests[] = {
        cmocka_unit_test(test_self),
        cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_threads_well),
        cmocka_unit_test(test_threads_abort),
    };
    const struct CMUnitTest local_tests[] = {
        cmocka_unit_test(test_local_well),         cmocka_unit_test(test_local_abort),
        cmocka_unit_test(test_local_death),        cmocka_unit_test(test_local_stubborn),
        cmocka_unit_test(test_local_leader_death),
    };

    if (argument_count == 2 && strcmp(arguments[1], "threads") == 0) {
        return cmocka_run_group_tests(threads_tests, NULL, NULL);
    }
    if (argument_count == 2 && strcmp(arguments[1], "local") == 0) {
        return cmocka_run_group_tests(local_tests, NULL, NULL);
    }
    fprintf(stderr, "usage: test_bootstrap threads|local\n");
    return 2;
}
