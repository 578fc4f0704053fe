/* Every kind of bootstrap: exchange, big frames, waiting, abort, and a rank that dies while the others are at work. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sys/wait.h>

#include "bodies.h"

static int run(enum group_kind kind, uint32_t rank_count, group_function *function, void *context)
{
    return kind == GROUP_LOCAL ? group_run_local(rank_count, function, context)
                               : group_run_threads(kind, NULL, rank_count, function, context);
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

static void test_local_death(void **state)
{
    int before = open_fd_count();

    (void)state;
    for (int place = 0; place < PLACE_COUNT; place++) {
        for (uint32_t rank_count = 3; rank_count <= 5; rank_count += 2) {
            struct death death = {.place = place, .victim = place % 2 == 0 ? 1 : 2, .reason = "killed by signal 9"};

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
    assert_true(now_ms() - begin < LONG_MS);          /* the child's pause is longer */
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
    for (int i = 0; i < 6000 && (kill(pids[1], 0) == 0 || kill(pids[2], 0) == 0); i++) {
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
        assert_true(i < 5900);
    }
    munmap(pids, 4096);
}

static void test_abort(enum group_kind kind)
{
    for (uint32_t by = 0; by < 4; by++) {
        struct abortion abortion = {.by = by, .of = by == 3 ? 2 : by};

        assert_int_equal(run(kind, 4, abort_body, &abortion), 0);
    }
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
