/*
 * What is particular to nccl: when it is chosen, and what becomes of NCCL's own failures. test_comm_nccl nccl
 * threads|processes real gpu, over the stub of the library (nccl_stub.c).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "member.h"
#include "nccl_stub.h"
#include "weft/log.h"

#define LONG_MS 60000u
#define SOON_MS 40000u
#define HANG_MS 700u

static enum ranks_mode mode;
static struct nccl_stub_faults *faults;

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- choice ---- */

struct choice_case {
    const char *backend;
    bool is_shared; /* all ranks name the same GPU */
    bool has_stream;
    int version; /* of the library */
    enum weft_status status;
    const char *name;   /* when well */
    const char *reason; /* a part of it, or of the error */
};

static bool choice_body(struct weft_bootstrap *bootstrap, const void *context)
{
    const struct choice_case *choice = context;
    uint32_t rank_count = weft_bootstrap_rank_count(bootstrap);
    struct fake_device *device =
        fake_device_open(choice->is_shared ? 1 : weft_bootstrap_rank(bootstrap) + 1, choice->has_stream);
    const bool is_peer = strcmp(choice->backend, "peer") == 0;
    struct weft_range ranges[8];
    const struct weft_comm_options options = {.backend = choice->backend,
                                              .timeout_ms = LONG_MS,
                                              .leaf_count = 8,
                                              .leaves = ranges,
                                              .sum_count_max = 99,
                                              .device = fake_device_seat(device)};
    struct weft_comm *comm = NULL;

    if (is_peer) {
        fake_device_share(device);
    }
    CHECK(weft_tree_deal(8, rank_count, NULL, ranges) == 0);
    CHECK(weft_comm_open(bootstrap, &options, &comm) == choice->status);
    if (choice->status == WEFT_OK) {
        CHECK(strcmp(weft_comm_backend(comm), choice->name) == 0);
        CHECK(strstr(weft_comm_reason(comm), choice->reason) != NULL);
    } else {
        CHECK(strstr(weft_log_last_error(), choice->reason) != NULL);
    }
    weft_comm_close(&comm);
    return fake_device_close(&device);
}

static void test_choice(void **state)
{
    static const struct choice_case cases[] = {
        {"auto", false, true, 0, WEFT_OK, "nccl", "a GPU each; shm for host memory"},
        {"nccl", false, true, 0, WEFT_OK, "nccl", "asked for; shm for host memory"},
        {"tcp", false, true, 0, WEFT_OK, "tcp",
         "asked for; activations through host memory, no nccl: tcp was asked for"},
        {"auto", true, true, 0, WEFT_OK, "shm", "no nccl: ranks 0 and 1 share a GPU"},
        {"nccl", true, true, 0, WEFT_OK, "nccl", "asked for"},
        {"auto", false, false, 0, WEFT_OK, "shm", "no nccl: no CUDA stream on rank 0"},
        {"nccl", false, false, 0, WEFT_ERR_UNSUPPORTED, NULL, "nccl was asked for, but no CUDA stream on rank 0"},
        {"auto", false, true, 21403, WEFT_OK, "shm", "libnccl.so.2 is version 21403, older than 21801 on rank 0"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        *faults = (struct nccl_stub_faults){.victim = -1, .version = cases[i].version};
        assert_true(ranks_run(mode, 3, choice_body, &cases[i], -1));
    }
    *faults = (struct nccl_stub_faults){.victim = -1};
    if (mode == RANKS_THREADS) { /* memory of the fake device is the process's own */
        assert_true(
            ranks_run(mode, 3, choice_body,
                      &(struct choice_case){"peer", false, true, 0, WEFT_OK, "peer+nccl", "a GPU each; shm for"}, -1));
    }
    assert_true(
        ranks_run(mode, 1, choice_body, &(struct choice_case){"auto", false, true, 0, WEFT_OK, "self", "alone"}, -1));
}

static bool host_memory_body(struct weft_bootstrap *bootstrap, const void *context)
{
    struct weft_range ranges[2] = {{0, 4}, {4, 8}};
    const struct weft_comm_options options = {
        .backend = "nccl", .timeout_ms = LONG_MS, .leaf_count = 8, .leaves = ranges, .sum_count_max = 99};
    struct weft_comm *comm = NULL;

    (void)context;
    CHECK(weft_comm_open(bootstrap, &options, &comm) == WEFT_ERR_UNSUPPORTED);
    CHECK(strstr(weft_log_last_error(), "nccl was asked for, but no GPU on rank 0") != NULL);
    return true;
}

static void test_not_without_gpu(void **state)
{
    (void)state;
    assert_true(ranks_run(mode, 2, host_memory_body, NULL, -1));
}

/* ---- failures of NCCL itself ---- */

struct failure_case {
    struct nccl_stub_faults faults;
    uint32_t rank_count;
    uint32_t timeout_ms;
    size_t count;
    bool is_opening;  /* already open() fails */
    bool is_nameless; /* NCCL hangs although all ranks are well: each may give itself up */
    uint32_t soon_ms;
};

static bool check_name(const struct failure_case *failure, int failed_rank)
{
    return failure->is_nameless ? failed_rank >= 0 : failed_rank == failure->faults.victim;
}

static bool failure_body(struct weft_bootstrap *bootstrap, const void *context)
{
    const struct failure_case *failure = context;
    const struct group group = {failure->rank_count, 8, NULL, failure->count, failure->timeout_ms, NULL};
    struct member member;
    uint64_t begin = now_ms();
    enum weft_status status;

    if (failure->is_opening) {
        CHECK(!member_try_open(bootstrap, &group, &member));
        CHECK(now_ms() - begin < failure->soon_ms);
        CHECK(check_name(failure, weft_bootstrap_failed_rank(bootstrap)));
        return member_close(&member);
    }
    CHECK(member_open(bootstrap, &group, &member));
    begin = now_ms();
    do {
        status = member_sum(&member, failure->count);
    } while (status == WEFT_OK);
    CHECK(now_ms() - begin < failure->soon_ms);
    CHECK(check_name(failure, weft_comm_failed_rank(member.comm)));
    CHECK(weft_comm_barrier(member.comm) == status);
    CHECK(member_sum(&member, 1) == status);
    begin = now_ms();
    CHECK(member_close(&member));
    CHECK(now_ms() - begin < failure->soon_ms);
    return true;
}

static void run_failure(const struct failure_case *failure)
{
    *faults = failure->faults;
    assert_true(ranks_run(mode, failure->rank_count, failure_body, failure, -1));
    *faults = (struct nccl_stub_faults){.victim = -1};
}

static void test_asynchronous_error(void **state)
{
    (void)state;
    for (uint64_t index = 1; index < 4; index++) {
        run_failure(
            &(struct failure_case){{NCCL_STUB_ASYNC_ERROR, 1, index, 0, 0}, 3, LONG_MS, 500, false, false, SOON_MS});
    }
    run_failure(&(struct failure_case){{NCCL_STUB_ASYNC_ERROR, 0, 2, 0, 0}, 4, LONG_MS, 300000, false, false, SOON_MS});
}

static void test_error_while_opening(void **state)
{
    (void)state;
    run_failure(&(struct failure_case){{NCCL_STUB_INIT_ERROR, 2, 0, 0, 0}, 3, LONG_MS, 500, true, false, SOON_MS});
    run_failure(&(struct failure_case){{NCCL_STUB_INIT_ERROR, 0, 0, 0, 0}, 2, LONG_MS, 500, true, false, SOON_MS});
}

static void test_group_that_is_never_issued(void **state)
{
    (void)state;
    run_failure(&(struct failure_case){{NCCL_STUB_NEVER_ISSUED, 1, 2, 0, 0}, 3, HANG_MS, 500, false, true, SOON_MS});
    run_failure(&(struct failure_case){{NCCL_STUB_NEVER_ISSUED, 1, 0, 0, 0}, 3, HANG_MS, 500, true, true, SOON_MS});
}

static void test_group_that_never_ends(void **state)
{
    (void)state;
    run_failure(&(struct failure_case){{NCCL_STUB_STUCK, 2, 2, 0, 0}, 4, HANG_MS, 500, false, true, SOON_MS});
}

/* Slow: waited for. Slower than our patience: left behind with one line, and nobody else waits for it. */
static void test_abort_that_takes_long(void **state)
{
    (void)state;
    if (mode == RANKS_PROCESSES) {
        skip(); /* the leader does not let a process live that long after a failure */
    }
    run_failure(&(struct failure_case){{NCCL_STUB_ASYNC_ERROR, 1, 2, 600, 0}, 3, LONG_MS, 500, false, false, SOON_MS});
    run_failure(&(struct failure_case){{NCCL_STUB_ASYNC_ERROR, 1, 2, 4000, 0}, 3, LONG_MS, 500, false, false, SOON_MS});
}

/* A process that dies while NCCL reports errors of its own about it: the dead one is named, not the messenger. */
static bool killed_body(struct weft_bootstrap *bootstrap, const void *context)
{
    const struct failure_case *failure = context;
    const struct group group = {failure->rank_count, 8, NULL, failure->count, failure->timeout_ms, NULL};
    struct member member;
    uint64_t begin;
    enum weft_status status;

    CHECK(member_open(bootstrap, &group, &member));
    CHECK(member_sum(&member, failure->count) == WEFT_OK);
    if ((int)member.rank == failure->faults.victim) {
        kill(getpid(), SIGKILL);
    }
    begin = now_ms();
    do {
        status = member_sum(&member, failure->count);
    } while (status == WEFT_OK);
    CHECK(status == WEFT_ERR_PEER);
    CHECK(now_ms() - begin < SOON_MS);
    CHECK(weft_comm_failed_rank(member.comm) == failure->faults.victim);
    return member_close(&member);
}

static void test_remote_error_names_the_dead(void **state)
{
    static const struct failure_case failure = {
        {NCCL_STUB_REMOTE_ERRORS, 2, 0, 0, 0}, 4, LONG_MS, 500, false, false, 0};

    (void)state;
    if (mode != RANKS_PROCESSES) {
        skip();
    }
    *faults = failure.faults;
    assert_true(ranks_run(mode, failure.rank_count, killed_body, &failure, failure.faults.victim));
    *faults = (struct nccl_stub_faults){.victim = -1};
}

int main(int argument_count, char **arguments)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice),
        cmocka_unit_test(test_not_without_gpu),
        cmocka_unit_test(test_asynchronous_error),
        cmocka_unit_test(test_error_while_opening),
        cmocka_unit_test(test_group_that_is_never_issued),
        cmocka_unit_test(test_group_that_never_ends),
        cmocka_unit_test(test_abort_that_takes_long),
        cmocka_unit_test(test_remote_error_names_the_dead),
    };
    void *stub = dlopen("libnccl.so.2", RTLD_NOW);
    nccl_stub_faults_function *find = NULL;

    if (stub != NULL) {
        *(void **)&find = dlsym(stub, "nccl_stub_faults");
    }
    if (find == NULL) {
        fprintf(stderr, "the stub of NCCL is not the libnccl.so.2 that the loader finds: set LD_LIBRARY_PATH\n");
        return 2;
    }
    faults = find();
    faults->victim = -1;
    mode = member_configure(argument_count, arguments);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
