/*
 * Ranks that are late: test_comm_busy BACKEND processes. With heartbeats one that computes, or would if it got a core,
 * is waited for; one that is there but does nothing is named. Processes only: whether a thread works its process cannot
 * tell.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "member.h"

/* Deadline of each wait. */
#define HANG_MS 700u
/* Longer than a rank that is there but does no work is given. */
#define STARVED_MS 5000u

struct lateness {
    struct group group;
    uint32_t victim;
    size_t count; /* of the sums before and after */
};

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Between two sums the victim computes for four times the deadline: with heartbeats that is no failure. */
static bool busy_body(struct weft_bootstrap *bootstrap, const void *context)
{
    const struct weft_heartbeat_options options = {.exit_ms = 0};
    const struct lateness *late = context;
    uint64_t end;
    struct member member;

    CHECK(weft_bootstrap_heartbeat(bootstrap, &options) == WEFT_OK);
    CHECK(member_open(bootstrap, &late->group, &member));
    CHECK(member_sum(&member, late->count) == WEFT_OK);
    end = now_ms() + 4 * HANG_MS;
    while (member.rank == late->victim && now_ms() < end) {
    }
    CHECK(member_sum(&member, late->count) == WEFT_OK);
    CHECK(weft_comm_barrier(member.comm) == WEFT_OK);
    member_close(&member);
    return true;
}

static void test_busy_rank_is_waited_for(void **state)
{
    (void)state;
    for (uint32_t victim = 0; victim < 3; victim += 2) {
        const struct lateness late = {{3, 8, NULL, 1000, HANG_MS, NULL}, victim, 1000};

        assert_true(ranks_run(RANKS_PROCESSES, 3, busy_body, &late, -1));
    }
}

/* The work of victims that get no core: somebody else has the only one they may use. Returns that one's pid. */
static pid_t starve(void)
{
    const struct sched_param none = {0};
    pid_t hog;
    cpu_set_t one;

    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    if (sched_setaffinity(0, sizeof(one), &one) != 0) { /* of this thread; the heart's keeps all */
        return -1;
    }
    hog = fork();
    if (hog == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) {
        }
    }
    return hog > 0 && sched_setscheduler(0, SCHED_IDLE, &none) == 0 ? hog : -1;
}

/*
 * The victim would compute if it got a core: some milliseconds per second is what a process has on a machine loaded
 * thirtyfold. That is no failure, for longer than a stuck rank would be given.
 */
static bool coreless_body(struct weft_bootstrap *bootstrap, const void *context)
{
    const struct weft_heartbeat_options options = {.exit_ms = 0};
    const struct sched_param none = {0};
    const struct lateness *late = context;
    struct member member;
    pid_t hog = 0;

    CHECK(weft_bootstrap_heartbeat(bootstrap, &options) == WEFT_OK);
    CHECK(member_open(bootstrap, &late->group, &member));
    CHECK(member_sum(&member, late->count) == WEFT_OK);
    if (member.rank == late->victim) {
        uint64_t end = now_ms() + STARVED_MS;

        hog = starve();
        CHECK(hog > 0);
        while (now_ms() < end) {
        }
        CHECK(kill(hog, SIGKILL) == 0 && waitpid(hog, NULL, 0) == hog);
        CHECK(sched_setscheduler(0, SCHED_OTHER, &none) == 0);
    }
    CHECK(member_sum(&member, late->count) == WEFT_OK);
    CHECK(weft_comm_barrier(member.comm) == WEFT_OK);
    member_close(&member);
    return true;
}

static void test_starved_rank_is_waited_for(void **state)
{
    (void)state;
    for (uint32_t victim = 0; victim < 3; victim += 2) {
        const struct lateness late = {{3, 8, NULL, 1000, HANG_MS, NULL}, victim, 1000};

        assert_true(ranks_run(RANKS_PROCESSES, 3, coreless_body, &late, -1));
    }
}

/* Alive but doing nothing: not excused for ever. */
static bool stuck_body(struct weft_bootstrap *bootstrap, const void *context)
{
    const struct weft_heartbeat_options options = {.exit_ms = 0};
    const struct lateness *late = context;
    struct member member;
    enum weft_status status;

    CHECK(weft_bootstrap_heartbeat(bootstrap, &options) == WEFT_OK);
    CHECK(member_open(bootstrap, &late->group, &member));
    CHECK(member_sum(&member, late->count) == WEFT_OK);
    if (member.rank == late->victim) {
        while (weft_bootstrap_check(bootstrap) == WEFT_OK) {
            nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
        }
    } else {
        do {
            status = member_sum(&member, late->count);
        } while (status == WEFT_OK);
        CHECK(weft_comm_failed_rank(member.comm) == (int)late->victim);
    }
    member_close(&member);
    return true;
}

static void test_stuck_rank_is_not_waited_for(void **state)
{
    const struct lateness late = {{3, 8, NULL, 1000, HANG_MS, NULL}, 1, 1000};

    (void)state;
    assert_true(ranks_run(RANKS_PROCESSES, 3, stuck_body, &late, -1));
}

int main(int argument_count, char **arguments)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_busy_rank_is_waited_for),
        cmocka_unit_test(test_starved_rank_is_waited_for),
        cmocka_unit_test(test_stuck_rank_is_not_waited_for),
    };

    if (member_configure(argument_count, arguments) != RANKS_PROCESSES) {
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
