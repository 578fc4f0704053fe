/*
 * A group is a value: after a rank has died the survivors close their communicator and open one of fewer ranks, in the
 * same processes and on the same devices, and its sums are right. test_comm_regroup BACKEND threads|processes
 * [real|block|cyclic [host|device|gpu]], see member.h.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <unistd.h>

#include "member.h"
#include "place.h"

#define LONG_MS   60000u
#define COUNT_MAX 200000u
#define RANK_MAX  5u

static enum ranks_mode mode;

struct loss {
    uint32_t rank_count;
    uint32_t victim;
    struct weft_bootstrap *second[RANK_MAX]; /* threads: the survivors' bootstraps */
    struct place place;                      /* processes: where they meet */
};

/* The survivors' star, with their new ranks. */
static enum weft_status meet_again(const struct loss *loss, uint32_t rank, struct weft_bootstrap **out)
{
    const struct weft_bootstrap_tcp_options options = {
        .leader = loss->place.text, .rank = rank, .rank_count = loss->rank_count - 1, .timeout_ms = LONG_MS};

    if (mode == RANKS_THREADS) {
        *out = loss->second[rank];
        return WEFT_OK;
    }
    return loss->rank_count == 2 ? weft_bootstrap_open_self(out) : weft_bootstrap_open_tcp(&options, out);
}

static bool check_sums(struct member *member)
{
    static const size_t counts[] = {1, 777, 4096, COUNT_MAX};

    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        CHECK(member_check_sum(member, counts[i], (uint32_t)i, i % 2 == 0));
    }
    return true;
}

/* Over a new bootstrap twice: what one communicator leaves must not trouble the next one either. */
static bool go_on(const struct loss *loss, struct member *member)
{
    const struct group fewer = {loss->rank_count - 1, 8, NULL, COUNT_MAX, LONG_MS, NULL};
    struct weft_bootstrap *second = NULL;
    bool is_good;

    CHECK(meet_again(loss, member->rank - (member->rank > loss->victim), &second) == WEFT_OK);
    is_good = member_regroup(second, &fewer, member) && check_sums(member) && member_regroup(second, &fewer, member) &&
              check_sums(member);
    weft_comm_close(&member->comm);
    weft_bootstrap_close(&second);
    return is_good;
}

static bool loss_body(struct weft_bootstrap *bootstrap, const void *context)
{
    const struct loss *loss = context;
    const struct group group = {loss->rank_count, 8, NULL, COUNT_MAX, LONG_MS, NULL};
    struct member member;
    enum weft_status status;
    bool is_good = true;

    CHECK(member_open(bootstrap, &group, &member));
    CHECK(check_sums(&member));
    status = weft_comm_barrier(member.comm); /* all are done with the sums; the victim may die before all have left */
    if (member.rank == loss->victim && mode == RANKS_PROCESSES) {
        kill(getpid(), SIGKILL);
    }
    if (member.rank == loss->victim) {
        weft_bootstrap_abort(bootstrap, member.rank, "gives up");
    }
    while (status == WEFT_OK) {
        status = member_sum(&member, 4096);
    }
    CHECK(status == WEFT_ERR_PEER);
    CHECK(weft_comm_failed_rank(member.comm) == (int)loss->victim);
    if (member.rank != loss->victim) {
        is_good = go_on(loss, &member);
    }
    return member_close(&member) && is_good;
}

static void lose(uint32_t rank_count, uint32_t victim)
{
    static int mark = -1;
    struct loss loss = {.rank_count = rank_count, .victim = victim, .place = place_take(&mark)};

    if (mode == RANKS_THREADS) {
        assert_int_equal(weft_bootstrap_open_threads(rank_count - 1, loss.second), WEFT_OK);
    }
    assert_true(ranks_run(mode, rank_count, loss_body, &loss, mode == RANKS_PROCESSES ? (int)victim : -1));
}

static void test_survivors_go_on(void **state)
{
    (void)state;
    lose(2, 1);
    lose(3, 1);
    lose(4, 3);
    lose(5, 2);
}

/* The leader of a group of processes is whose children they are. */
static void test_leader_is_lost(void **state)
{
    (void)state;
    if (mode == RANKS_PROCESSES) {
        skip();
    }
    lose(2, 0);
    lose(4, 0);
}

int main(int argument_count, char **arguments)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_survivors_go_on),
        cmocka_unit_test(test_leader_is_lost),
    };

    mode = member_configure(argument_count, arguments);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
