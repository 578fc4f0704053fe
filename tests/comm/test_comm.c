/* The conformance suite of all backends: test_comm BACKEND threads|processes|mpirun [real|block|cyclic
 * [host|device|gpu]], see member.h.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "member.h"
#include "netif.h"
#include "ranks.h"

static enum ranks_mode mode;

static unsigned char pattern(uint32_t rank, size_t i, uint32_t seed)
{
    return (unsigned char)(rank * 31 + i * 7 + (i >> 8) * 13 + seed);
}

/* Sizes differ by rank, some are 0. */
static bool check_gather(struct member *member, size_t unit, uint32_t seed)
{
    size_t sizes[WEFT_LEAF_COUNT_MAX], total = 0, at = 0;
    unsigned char *in, *out;

    for (uint32_t r = 0; r < member->rank_count; r++) {
        sizes[r] = (r + seed) % 3 == 2 ? 0 : unit + r;
        total += sizes[r];
    }
    in = malloc(sizes[member->rank] + 1);
    out = malloc(total + 1);
    CHECK(in != NULL && out != NULL);
    for (size_t i = 0; i < sizes[member->rank]; i++) {
        in[i] = pattern(member->rank, i, seed);
    }
    out[total] = 0x5a;
    for (int is_host = 0; is_host < 2; is_host++) {
        memset(out, 0, total);
        CHECK((is_host ? weft_comm_all_gather_host(member->comm, in, sizes, out)
                       : member_gather(member, in, sizes, out)) == WEFT_OK);
        at = 0;
        for (uint32_t r = 0; r < member->rank_count; r++) {
            for (size_t i = 0; i < sizes[r]; i++) {
                CHECK(out[at++] == pattern(r, i, seed));
            }
        }
    }
    CHECK(out[total] == 0x5a);
    free(in);
    free(out);
    return true;
}

static bool check_broadcast(struct member *member, uint32_t root, size_t size, uint32_t seed)
{
    unsigned char *data = malloc(size + 1);

    CHECK(data != NULL);
    for (size_t i = 0; i < size; i++) {
        data[i] = member->rank == root ? pattern(root, i, seed) : 0;
    }
    data[size] = 0x5a;
    CHECK(weft_comm_broadcast(member->comm, root, data, size) == WEFT_OK);
    for (size_t i = 0; i < size; i++) {
        CHECK(data[i] == pattern(root, i, seed));
    }
    CHECK(data[size] == 0x5a);
    free(data);
    return true;
}

/* Two messages from each rank to the next; even ranks send first, so that blocking sends cannot lock up. */
static bool check_ring(struct member *member, size_t size)
{
    uint32_t next = (member->rank + 1) % member->rank_count;
    uint32_t previous = (member->rank + member->rank_count - 1) % member->rank_count;
    unsigned char *sent = malloc(size), *received = malloc(size);

    CHECK(sent != NULL && received != NULL);
    for (uint32_t turn = 0; member->rank_count > 1 && turn < 4; turn++) {
        uint32_t seed = turn / 2;
        /* The last rank of an odd group must not send at the same time as rank 0: it receives first as well. */
        bool is_sending = (member->rank % 2 == 0 && (member->rank != member->rank_count - 1)) == (turn % 2 == 0);

        if (is_sending) {
            for (size_t i = 0; i < size; i++) {
                sent[i] = pattern(member->rank, i, seed);
            }
            CHECK(weft_comm_send(member->comm, next, sent, size) == WEFT_OK);
        }
        if ((previous % 2 == 0 && previous != member->rank_count - 1) == (turn % 2 == 0)) {
            CHECK(weft_comm_recv(member->comm, previous, received, size) == WEFT_OK);
            for (size_t i = 0; i < size; i++) {
                CHECK(received[i] == pattern(previous, i, seed));
            }
        }
    }
    free(sent);
    free(received);
    return true;
}

static bool check_stats(struct member *member)
{
    struct weft_comm_stats stats;

    weft_comm_stats(member->comm, &stats);
    for (int op = 0; op < WEFT_COMM_OP_COUNT; op++) {
        CHECK(stats.ops[op].call_count > 0);
        CHECK(stats.ops[op].time_max_ns <= stats.ops[op].time_ns);
    }
    CHECK(member->rank_count == 1 || stats.ops[WEFT_COMM_TREE_SUM].byte_count > 0);
    return true;
}

static bool conformance_body(struct weft_bootstrap *bootstrap, const void *context)
{
    static const size_t counts[] = {0, 1, 2, 3, 7, 1023, 1024, 1025, 20000};
    const struct group *group = context;
    struct member member;

    CHECK(member_open(bootstrap, group, &member));
    for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++) {
        CHECK(member_check_sum(&member, counts[c], (uint32_t)c, false));
        CHECK(member_check_sum(&member, counts[c], (uint32_t)c + 100, true));
    }
    for (uint32_t root = 0; root < group->rank_count; root++) {
        CHECK(check_broadcast(&member, root, 0, root));
        CHECK(check_broadcast(&member, root, 5, root));
        CHECK(check_broadcast(&member, root, 70001, root));
    }
    for (uint32_t seed = 0; seed < 3; seed++) {
        CHECK(check_gather(&member, 0, seed));
        CHECK(check_gather(&member, 1000, seed));
        CHECK(check_gather(&member, 150000, seed));
        CHECK(check_ring(&member, seed == 0 ? 1 : 20000 * seed));
        CHECK(weft_comm_barrier(member.comm) == WEFT_OK);
    }
    CHECK(check_gather(&member, 240000, 1));
    CHECK(check_broadcast(&member, group->rank_count - 1, 900000, 9));
    CHECK(check_stats(&member));
    CHECK(weft_comm_failed_rank(member.comm) == -1);
    return member_close(&member);
}

static void nap(uint32_t microseconds)
{
    const struct timespec time = {microseconds / 1000000, microseconds % 1000000 * 1000};

    nanosleep(&time, NULL);
}

/* Many calls of all kinds in one random order, ranks late at random. */
static bool mixture_body(struct weft_bootstrap *bootstrap, const void *context)
{
    struct member member;
    uint64_t random = 88172645463325252u, delay = weft_bootstrap_rank(bootstrap) * 7919 + 1;

    CHECK(member_open(bootstrap, context, &member));
    for (uint32_t i = 0; i < 250; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        delay = delay * 6364136223846793005u + 1442695040888963407u;
        if (delay >> 60 == 0) {
            nap((uint32_t)(delay >> 40) % 3000);
        }
        switch ((random >> 33) % 6) {
        case 0:
        case 1: CHECK(member_check_sum(&member, (random >> 40) % 3000, i, false)); break;
        case 2:
        case 3: CHECK(member_check_sum(&member, (random >> 40) % 3000, i, true)); break;
        case 4: CHECK(check_gather(&member, (random >> 40) % 4000, i)); break;
        case 5: CHECK(check_broadcast(&member, (uint32_t)(random >> 40) % member.rank_count, 100, i)); break;
        }
    }
    return member_close(&member);
}

static bool large_body(struct weft_bootstrap *bootstrap, const void *context)
{
    const struct group *group = context;
    struct member member;

    CHECK(member_open(bootstrap, group, &member));
    CHECK(member_check_sum(&member, group->count_max, 1, false));
    CHECK(member_check_sum(&member, group->count_max - 7, 2, true));
    return member_close(&member);
}

/* A produced but not yet summed buffer survives other collectives. */
static bool survival_body(struct weft_bootstrap *bootstrap, const void *context)
{
    struct member member;
    const size_t count = 500;
    const float *input;

    CHECK(member_open(bootstrap, context, &member));
    for (uint32_t round = 0; round < 5; round++) {
        input = member_produce(&member, count, round, true);
        for (uint32_t i = 0; i <= round; i++) {
            CHECK(check_gather(&member, 700, i));
        }
        CHECK(weft_comm_tree_sum(member.comm, input, count, member_result(&member)) == WEFT_OK);
        CHECK(weft_comm_sync(member.comm) == WEFT_OK);
        member_fetch(&member, count);
        values_fill((struct weft_range){0, member.leaf_count}, round, count, member.expected);
        CHECK(memcmp(member.output, member.expected, count * sizeof(float)) == 0);
    }
    return member_close(&member);
}

static const uint32_t UNEVEN[] = {3, 1, 2, 5, 1, 1, 4, 2};

static void run_for_all_sizes(ranks_body *body, uint32_t leaf_count, const uint32_t *shares)
{
    static const uint32_t rank_counts[] = {1, 2, 3, 4, 5, 8};

    for (size_t i = 0; i < sizeof(rank_counts) / sizeof(rank_counts[0]); i++) {
        const struct group group = {rank_counts[i], leaf_count, shares, 20000, 60000, NULL};

        assert_true(ranks_run(mode, group.rank_count, body, &group, -1));
    }
}

static void test_even(void **state)
{
    (void)state;
    run_for_all_sizes(conformance_body, 8, NULL);
}

static void test_uneven(void **state)
{
    (void)state;
    run_for_all_sizes(conformance_body, 13, UNEVEN);
}

static void test_mixture(void **state)
{
    (void)state;
    run_for_all_sizes(mixture_body, 8, UNEVEN);
}

static void test_large(void **state)
{
    const struct group two = {2, 8, NULL, 1 << 20, 60000, NULL}, five = {5, 8, UNEVEN, 1 << 20, 60000, NULL};

    (void)state;
    assert_true(ranks_run(mode, 2, large_body, &two, -1));
    assert_true(ranks_run(mode, 5, large_body, &five, -1));
}

static void test_buffer_survives_other_calls(void **state)
{
    const struct group group = {4, 8, UNEVEN, 1000, 60000, NULL};

    (void)state;
    assert_true(ranks_run(mode, 4, survival_body, &group, -1));
}

/* tcp over one named interface, an IPv4 and an IPv6 address, a list. */
static void test_interfaces(void **state)
{
    static const char *const interfaces[] = {"lo", "127.0.0.0/8", "::1", "nothing,::1,127.0.0.1"};
    struct weft_netif_address address;

    (void)state;
    if (strcmp(member_backend(), "tcp") != 0) {
        skip();
    }
    for (size_t i = 0; i < sizeof(interfaces) / sizeof(interfaces[0]); i++) {
        const struct group group = {3, 8, NULL, 20000, 60000, interfaces[i]};

        if (weft_netif_list(interfaces[i], &address, 1) == 1) {
            assert_true(ranks_run(mode, 3, large_body, &group, -1));
        } else {
            print_message("no %s here\n", interfaces[i]);
        }
    }
}

int main(int argument_count, char **arguments)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_even),
        cmocka_unit_test(test_uneven),
        cmocka_unit_test(test_mixture),
        cmocka_unit_test(test_large),
        cmocka_unit_test(test_buffer_survives_other_calls),
        cmocka_unit_test(test_interfaces),
    };

    int failed;

    mode = member_configure(argument_count, arguments);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (mode == RANKS_MPI) {
        printf("rank %u: %s\n", ranks_fini_mpi(), failed == 0 ? "fine" : "failed");
    }
    return failed;
}
