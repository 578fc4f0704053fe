/*
 * What is particular to sums through the peers' memory, on emulated GPUs: test_peer_sum peer threads|processes real
 * gpu. Every layout of nodes, values that a sentinel could confuse, thousands of sums on end, when it is chosen, and
 * graphs.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "collective_device.h"
#include "comm_internal.h"
#include "member.h"
#include "peer_sum.h"
#include "weft/log.h"

enum { LONG_MS = 60000, COUNT_MAX = 1200 };

static enum ranks_mode mode;

/* ---- layouts ---- */

/* All ways to deal 8 leaves to three ranks, and some of 13 to five: each its own numbers of nodes. */
static bool layout_body(struct weft_bootstrap *bootstrap, const void *context)
{
    struct member member;

    CHECK(member_open(bootstrap, context, &member));
    for (uint32_t i = 0; i < 4; i++) {
        CHECK(member_check_sum(&member, 1 + 37 * i, i, i % 2 == 0));
    }
    return member_close(&member);
}

static void test_every_layout(void **state)
{
    (void)state;
    for (uint32_t first = 1; first < 7; first++) {
        for (uint32_t second = 1; first + second < 8; second++) {
            const uint32_t shares[] = {first, second, 8 - first - second};
            const struct group group = {3, 8, shares, COUNT_MAX, LONG_MS, NULL};

            assert_true(ranks_run(mode, 3, layout_body, &group, -1));
        }
    }
    for (uint32_t turn = 0; turn < 3; turn++) {
        static const uint32_t shares[][5] = {{9, 1, 1, 1, 1}, {1, 2, 7, 2, 1}, {5, 1, 1, 1, 5}};
        const struct group group = {5, 13, shares[turn], COUNT_MAX, LONG_MS, NULL};

        assert_true(ranks_run(mode, 5, layout_body, &group, -1));
    }
}

/* ---- values ---- */

static float from_bits(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

static const uint32_t SPECIAL[] = {0x00000000,           0x80000000 /* -0 */,
                                   0x7f800000 /* inf */, 0xff800000,
                                   0x7fc00000 /* NaN */, WEFT_PEER_EMPTY,
                                   0x7fc5157e,           0x7fa5157f /* sNaN */,
                                   0xffc5157f,           0x00000001 /* denormal */,
                                   0x807fffff,           0x7f7fffff /* max */,
                                   0x3f800000,           0xbf800000};
enum { SPECIAL_COUNT = sizeof(SPECIAL) / sizeof(SPECIAL[0]) };

/* Two ranks, a node each: all pairs of special values. NaN for NaN, else the bits of the addition. */
static bool values_body(struct weft_bootstrap *bootstrap, const void *context)
{
    const struct group group = {2, 2, NULL, COUNT_MAX, LONG_MS, NULL};
    const size_t shift = *(const size_t *)context; /* of the elements; not aligned: one word at a time */
    const size_t count = SPECIAL_COUNT * SPECIAL_COUNT;
    struct member member;

    CHECK(member_open(bootstrap, &group, &member));
    for (uint32_t round = 0; round < 3; round++) { /* both halves of the inboxes, and the first again */
        for (size_t i = 0; i < count; i++) {
            member.input[i + shift] = from_bits(SPECIAL[member.rank == 0 ? i / SPECIAL_COUNT : i % SPECIAL_COUNT]);
        }
        fake_device_put(member.device, member.device_input, member.input, (count + shift) * sizeof(float));
        CHECK(weft_comm_tree_sum(member.comm, member.device_input + shift, count, member.device_output) == WEFT_OK);
        CHECK(weft_comm_sync(member.comm) == WEFT_OK);
        member_fetch(&member, count);
        for (size_t i = 0; i < count; i++) {
            float expected = from_bits(SPECIAL[i / SPECIAL_COUNT]) + from_bits(SPECIAL[i % SPECIAL_COUNT]);

            CHECK(expected != expected ? member.output[i] != member.output[i]
                                       : memcmp(&member.output[i], &expected, sizeof(expected)) == 0);
        }
    }
    return member_close(&member);
}

static void test_special_values(void **state)
{
    (void)state;
    for (size_t shift = 0; shift < 2; shift++) {
        assert_true(ranks_run(mode, 2, values_body, &shift, -1));
    }
}

/* ---- endurance ---- */

static void nap(uint32_t microseconds)
{
    const struct timespec time = {.tv_nsec = microseconds * 1000L};

    nanosleep(&time, NULL);
}

/* Sums on end, of changing size, the host now ahead and now late: areas are used again while peers are elsewhere. Each
 * result goes through the next sum as well, so that an error anywhere shows at the end. */
static bool endurance_body(struct weft_bootstrap *bootstrap, const void *context)
{
    const struct group *group = context;
    const uint32_t sum_count = mode == RANKS_THREADS ? 10000 : 4000;
    uint64_t random = 88172645463325252u, delay = weft_bootstrap_rank(bootstrap) * 7919 + 1;
    struct member member;

    CHECK(member_open(bootstrap, group, &member));
    for (uint32_t i = 0; i < sum_count; i++) {
        size_t count;

        random = random * 6364136223846793005u + 1442695040888963407u;
        delay = delay * 6364136223846793005u + 1442695040888963407u;
        count = 1 + (random >> 40) % 9;
        if (delay >> 58 == 0) {
            nap((uint32_t)(delay >> 40) % 2000);
        }
        if (i % 100 == 99) {
            CHECK(member_check_sum(&member, count * 100, i, true));
        } else {
            const float *nodes = i % 7 == 0 ? member_produce(&member, count, i, false) : member.device_input;

            CHECK(weft_comm_tree_sum(member.comm, nodes, count, member_result(&member)) == WEFT_OK);
        }
        if (delay >> 56 == 1) {
            CHECK(weft_comm_sync(member.comm) == WEFT_OK);
        }
    }
    CHECK(weft_comm_sync(member.comm) == WEFT_OK);
    CHECK(member_check_sum(&member, group->count_max, 3, false));
    return member_close(&member);
}

static void test_endurance(void **state)
{
    static const uint32_t uneven[] = {3, 1, 4};
    const struct group two = {2, 8, NULL, COUNT_MAX, LONG_MS, NULL}, three = {3, 8, uneven, COUNT_MAX, LONG_MS, NULL};

    (void)state;
    assert_true(ranks_run(mode, 2, endurance_body, &two, -1));
    assert_true(ranks_run(mode, 3, endurance_body, &three, -1));
}

/* ---- choice ---- */

struct choice_case {
    const char *backend;
    bool is_shared; /* all ranks on one GPU */
    bool is_peer;
    const char *name;
    const char *reason; /* part of it */
};

static bool choice_body(struct weft_bootstrap *bootstrap, const void *context)
{
    const struct choice_case *choice = context;
    struct fake_device *device = fake_device_open(choice->is_shared ? 1 : weft_bootstrap_rank(bootstrap) + 1, true);
    struct weft_range ranges[8];
    const struct weft_comm_options options = {.backend = choice->backend,
                                              .timeout_ms = LONG_MS,
                                              .leaf_count = 8,
                                              .leaves = ranges,
                                              .sum_count_max = 1 << 20,
                                              .device = fake_device_seat(device)};
    struct weft_comm *comm = NULL;

    CHECK(weft_tree_deal(8, weft_bootstrap_rank_count(bootstrap), NULL, ranges) == 0);
    CHECK(weft_comm_open(bootstrap, &options, &comm) == WEFT_OK);
    CHECK(strcmp(weft_comm_backend(comm), choice->name) == 0);
    CHECK(strstr(weft_comm_reason(comm), choice->reason) != NULL);
    CHECK(weft_peer_takes(comm, 1000) == choice->is_peer);
    CHECK(!weft_peer_takes(comm, 1 << 20));
    weft_comm_close(&comm);
    return fake_device_close(&device);
}

static void test_choice(void **state)
{
    static const struct choice_case cases[] = {
        {"auto", false, true, "peer+shm", "; sums up to 512 KiB through the peers' memory"},
        {NULL, false, true, "peer+shm", "; sums up to 512 KiB through the peers' memory"},
        {"peer", true, true, "peer+shm", "; sums up to 512 KiB through the peers' memory"},
        {"auto", true, false, "shm", "one host"},
        {"shm", false, false, "shm", "asked for"},
        {"tcp", false, false, "tcp", "asked for"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_true(ranks_run(mode, 3, choice_body, &cases[i], -1));
    }
}

/* One rank's device shares nothing: all do without, or say so. */
static bool without_body(struct weft_bootstrap *bootstrap, const void *context)
{
    bool is_forced = *(const bool *)context;
    struct fake_device *device = fake_device_open(weft_bootstrap_rank(bootstrap) + 1, true);
    struct weft_comm_device seat = *fake_device_seat(device);
    struct weft_range ranges[8];
    const struct weft_comm_options options = {.backend = is_forced ? "peer" : "auto",
                                              .timeout_ms = LONG_MS,
                                              .leaf_count = 8,
                                              .leaves = ranges,
                                              .sum_count_max = 1000,
                                              .device = &seat};
    struct weft_comm *comm = NULL;
    enum weft_status status;

    seat.alloc_shared = weft_bootstrap_rank(bootstrap) == 1 ? NULL : seat.alloc_shared;
    CHECK(weft_tree_deal(8, weft_bootstrap_rank_count(bootstrap), NULL, ranges) == 0);
    status = weft_comm_open(bootstrap, &options, &comm);
    CHECK(status == (is_forced ? WEFT_ERR_UNSUPPORTED : WEFT_OK));
    CHECK(strstr(is_forced ? weft_log_last_error() : weft_comm_reason(comm),
                 "no shared memory of the device on rank 1") != NULL);
    CHECK(is_forced || !weft_peer_takes(comm, 1));
    weft_comm_close(&comm);
    return fake_device_close(&device);
}

static void test_rank_that_shares_nothing(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        bool is_forced = i == 1;

        assert_true(ranks_run(mode, 3, without_body, &is_forced, -1));
    }
}

/* ---- what it takes ---- */

/* A seat that counts what is taken from it: contexts belong to the device, so by thread. */
static _Thread_local const struct weft_comm_device *counted;
static _Thread_local size_t taken_size;

static void *count_alloc(void *context, size_t size)
{
    taken_size += size;
    return counted->alloc(context, size);
}

static void *count_alloc_shared(void *context, size_t size, struct weft_peer_handle *handle_out, char *reason_out,
                                size_t reason_size)
{
    taken_size += size;
    return counted->alloc_shared(context, size, handle_out, reason_out, reason_size);
}

/* NCCL's rooms are in the plan, because nobody knows before opening; here there is none. */
static bool size_body(struct weft_bootstrap *bootstrap, const void *context)
{
    const size_t *count_max = context;
    const uint32_t rank = weft_bootstrap_rank(bootstrap), rank_count = weft_bootstrap_rank_count(bootstrap);
    struct fake_device *device = fake_device_open(rank + 1, true);
    struct weft_comm_device seat = *fake_device_seat(device);
    struct weft_range ranges[13];
    struct weft_comm_options options = {
        .timeout_ms = LONG_MS, .leaf_count = 13, .leaves = ranges, .sum_count_max = *count_max, .device = &seat};
    struct weft_comm *comm = NULL;
    size_t planned, rooms;

    counted = fake_device_seat(device);
    seat.alloc = count_alloc;
    seat.alloc_shared = count_alloc_shared;
    CHECK(weft_tree_deal(13, rank_count, NULL, ranges) == 0);
    for (int is_plain = 0; is_plain < 2; is_plain++) {
        options.backend = is_plain ? "shm" : "auto";
        planned = weft_comm_device_size(&options, rank, rank_count);
        taken_size = 0;
        CHECK(weft_comm_open(bootstrap, &options, &comm) == WEFT_OK);
        CHECK(comm->peer.is_open == !is_plain);
        rooms = (comm->nodes.count - comm->node_counts[rank]) * weft_comm_exchange_room(rank_count, *count_max) *
                sizeof(float);
        planned -= is_plain ? 0 : rooms;
        CHECK(taken_size >= planned && taken_size <= planned + 1024);
        weft_comm_close(&comm);
    }
    return fake_device_close(&device);
}

static void test_memory_is_what_was_planned(void **state)
{
    static const size_t counts[] = {1, 5000, 131072, 400000};

    (void)state;
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        assert_true(ranks_run(mode, 3, size_body, &counts[i], -1));
    }
}

/* ---- opening again ---- */

static bool again_body(struct weft_bootstrap *bootstrap, const void *context)
{
    for (uint32_t i = 0; i < 5; i++) {
        struct member member;

        CHECK(member_open(bootstrap, context, &member));
        CHECK(member_check_sum(&member, COUNT_MAX, i, false));
        nap(weft_bootstrap_rank(bootstrap) * 20000); /* they close at different times */
        CHECK(member_close(&member));
    }
    return true;
}

static void test_opening_again(void **state)
{
    const struct group group = {3, 8, NULL, COUNT_MAX, LONG_MS, NULL};

    (void)state;
    assert_true(ranks_run(mode, 3, again_body, &group, -1));
}

int main(int argument_count, char **arguments)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_layout),
        cmocka_unit_test(test_special_values),
        cmocka_unit_test(test_endurance),
        cmocka_unit_test(test_choice),
        cmocka_unit_test(test_rank_that_shares_nothing),
        cmocka_unit_test(test_memory_is_what_was_planned),
        cmocka_unit_test(test_opening_again),
    };

    mode = member_configure(argument_count, arguments);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
