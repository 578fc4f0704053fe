/*
 * A sum through the peers' memory that goes on as residual, bias and norm, in one kernel or in two, on emulated GPUs:
 * test_peer_norm peer threads|processes real gpu. The bits of a sum and a norm one after the other, thousands of both
 * in turn, and ranks that die while others are inside.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "member.h"
#include "weft/device.h"

enum { COUNT_MAX = 40960, LONG_MS = 60000, SOON_MS = 40000 };

static enum ranks_mode mode;

/* ---- rows ---- */

/* Two of each, for either way; device memory of COUNT_MAX elements each. */
struct rows {
    struct weft_device *device;
    float *sum; /* what comm is given to write to */
    float *x[2];
    float *out[2];
    float *bias;
    float *weight;
    float *host[2];
};

enum { SEPARATE, TOGETHER };

static float *device_floats(struct member *member)
{
    const struct weft_comm_device *seat = fake_device_seat(member->device);

    return seat->alloc(seat->context, COUNT_MAX * sizeof(float));
}

static void fill(struct member *member, float *to, size_t count, uint32_t seed, float *host)
{
    values_fill((struct weft_range){0, 1}, seed, count, host);
    fake_device_put(member->device, to, host, count * sizeof(float));
}

static void rows_open(struct member *member, struct rows *rows)
{
    rows->device = fake_device_seat(member->device)->context; /* the seat is that of an emulated GPU */
    rows->sum = device_floats(member);
    rows->bias = device_floats(member);
    rows->weight = device_floats(member);
    for (int way = 0; way < 2; way++) {
        rows->x[way] = device_floats(member);
        rows->out[way] = device_floats(member);
        rows->host[way] = malloc(COUNT_MAX * sizeof(float));
        fill(member, rows->x[way], COUNT_MAX, 11, rows->host[way]);
    }
    fill(member, rows->bias, COUNT_MAX, 12, rows->host[0]);
    fill(member, rows->weight, COUNT_MAX, 13, rows->host[0]);
}

static void rows_close(struct member *member, struct rows *rows)
{
    const struct weft_comm_device *seat = fake_device_seat(member->device);
    float *const memory[] = {rows->sum, rows->bias, rows->weight, rows->x[0], rows->x[1], rows->out[0], rows->out[1]};

    for (size_t i = 0; i < sizeof(memory) / sizeof(memory[0]); i++) {
        seat->free(seat->context, memory[i]);
    }
    free(rows->host[0]);
    free(rows->host[1]);
}

struct shape {
    uint32_t row_count;
    uint32_t width;
    uint32_t shift; /* of x and out, elements: where not 0, words go one by one */
    bool has_bias;
};

static void add_norm(struct rows *rows, int way, const struct shape *shape, const struct weft_tree_add_args *y)
{
    const struct weft_add_norm_args args = {.x = rows->x[way] + shape->shift,
                                            .y = y,
                                            .bias = shape->has_bias ? rows->bias : NULL,
                                            .weight = rows->weight,
                                            .out = rows->out[way] + shape->shift,
                                            .eps = 1e-5f,
                                            .token_count = shape->row_count,
                                            .width = shape->width};

    weft_device_add_norm(rows->device, &args);
}

static enum weft_status sum_then_norm(struct member *member, struct rows *rows, const struct shape *shape,
                                      const float *nodes)
{
    const size_t count = (size_t)shape->row_count * shape->width;
    const float *input = rows->sum;
    const struct weft_tree_add_args y = {.inputs = &input, .input_count = 1, .count = count, .out = rows->sum};

    WEFT_TRY(weft_comm_tree_sum(member->comm, nodes, count, rows->sum));
    add_norm(rows, SEPARATE, shape, &y);
    return WEFT_OK;
}

static enum weft_status sum_and_norm(struct member *member, struct rows *rows, const struct shape *shape,
                                     const float *nodes)
{
    struct weft_tree_add_args y;

    WEFT_TRY(weft_comm_tree_gather(member->comm, nodes, (size_t)shape->row_count * shape->width, rows->sum, &y));
    add_norm(rows, TOGETHER, shape, &y);
    return WEFT_OK;
}

/* All of x, so that nothing beside the rows is written either. */
static bool same_rows(struct member *member, struct rows *rows)
{
    float *const *const pairs[] = {rows->x, rows->out};

    for (int i = 0; i < 2; i++) {
        for (int way = 0; way < 2; way++) {
            fake_device_get(member->device, rows->host[way], pairs[i][way], COUNT_MAX * sizeof(float));
        }
        CHECK(memcmp(rows->host[0], rows->host[1], COUNT_MAX * sizeof(float)) == 0);
    }
    return true;
}

/* ---- bits ---- */

static bool is_empty(struct member *member, struct rows *rows, size_t count)
{
    fake_device_get(member->device, rows->host[0], rows->sum, count * sizeof(float));
    for (size_t i = 0; i < count; i++) {
        if (rows->host[0][i] != -7.0f) {
            return false;
        }
    }
    return true;
}

static void empty(struct member *member, struct rows *rows, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        rows->host[0][i] = -7.0f;
    }
    fake_device_put(member->device, rows->sum, rows->host[0], count * sizeof(float));
}

/* A row receives at most 128 KiB, and there are not many. */
static bool is_one_kernel(const struct member *member, const struct shape *shape)
{
    struct weft_range nodes[WEFT_TREE_NODE_MAX];
    size_t received = 0;

    for (uint32_t r = 0; r < member->rank_count; r++) {
        received += r == member->rank ? 0 : weft_tree_nodes(member->leaf_count, member->ranges[r], nodes);
    }
    return shape->row_count <= 16 && received * shape->width * sizeof(float) <= 128 << 10;
}

static bool shapes_body(struct weft_bootstrap *bootstrap, const void *context)
{
    static const struct shape shapes[] = {
        {1, 64, 0, false},  {1, 1, 0, true},    {3, 77, 0, true},    {16, 40, 0, true},
        {17, 40, 0, true},  {2, 2052, 0, true}, {4, 4100, 0, true},  {1, 4096, 0, false},
        {1, 8192, 0, true}, {2, 500, 1, true},  {1, 32772, 0, true}, {5, 8, 0, false},
    };
    struct member member;
    struct rows rows;

    CHECK(member_open(bootstrap, context, &member));
    rows_open(&member, &rows);
    for (uint32_t i = 0; i < 2 * sizeof(shapes) / sizeof(shapes[0]); i++) {
        const struct shape *shape = &shapes[i / 2];
        const size_t count = (size_t)shape->row_count * shape->width;
        const float *nodes = member_produce(&member, count, i, i % 2 == 0);

        CHECK(sum_then_norm(&member, &rows, shape, nodes) == WEFT_OK);
        empty(&member, &rows, count);
        CHECK(sum_and_norm(&member, &rows, shape, nodes) == WEFT_OK);
        CHECK(weft_comm_sync(member.comm) == WEFT_OK);
        CHECK(same_rows(&member, &rows));
        CHECK(is_empty(&member, &rows, count) == is_one_kernel(&member, shape));
    }
    rows_close(&member, &rows);
    return member_close(&member);
}

static void test_bits_of_every_shape(void **state)
{
    static const uint32_t uneven[] = {3, 1, 4}, many[] = {1, 2, 7, 2, 1};
    const struct group groups[] = {{2, 8, NULL, COUNT_MAX, LONG_MS, NULL},
                                   {3, 8, uneven, COUNT_MAX, LONG_MS, NULL},
                                   {5, 13, many, COUNT_MAX, LONG_MS, NULL}};

    (void)state;
    for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++) {
        assert_true(ranks_run(mode, groups[i].rank_count, shapes_body, &groups[i], -1));
    }
}

/* ---- endurance ---- */

static void nap(uint32_t microseconds)
{
    const struct timespec time = {.tv_nsec = microseconds * 1000L};

    nanosleep(&time, NULL);
}

/* Both ways in turn, the host now ahead and now late; x goes through all of it, so that an error anywhere shows. */
static bool endurance_body(struct weft_bootstrap *bootstrap, const void *context)
{
    uint64_t random = 88172645463325252u, delay = weft_bootstrap_rank(bootstrap) * 7919 + 1;
    struct member member;
    struct rows rows;

    CHECK(member_open(bootstrap, context, &member));
    rows_open(&member, &rows);
    const float *nodes = member_produce(&member, 1000, 5, false);
    for (uint32_t i = 0; i < 1000; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        delay = delay * 6364136223846793005u + 1442695040888963407u;
        const struct shape shape = {.row_count = 1 + (uint32_t)(random >> 60),
                                    .width = 1 + (uint32_t)(random >> 50) % 20,
                                    .has_bias = random >> 49 & 1};

        if (delay >> 60 == 0) {
            nap((uint32_t)(delay >> 40) % 2000);
        }
        if (i % 3 == 0) {
            CHECK(sum_and_norm(&member, &rows, &shape, nodes) == WEFT_OK);
            CHECK(sum_then_norm(&member, &rows, &shape, nodes) == WEFT_OK);
        } else {
            CHECK(sum_then_norm(&member, &rows, &shape, nodes) == WEFT_OK);
            CHECK(sum_and_norm(&member, &rows, &shape, nodes) == WEFT_OK);
        }
        if (delay >> 58 == 1) {
            CHECK(weft_comm_sync(member.comm) == WEFT_OK);
        }
    }
    CHECK(weft_comm_sync(member.comm) == WEFT_OK);
    CHECK(same_rows(&member, &rows));
    rows_close(&member, &rows);
    return member_close(&member);
}

static void test_endurance(void **state)
{
    static const uint32_t uneven[] = {3, 1, 4};
    const struct group group = {3, 8, uneven, COUNT_MAX, LONG_MS, NULL};

    (void)state;
    assert_true(ranks_run(mode, 3, endurance_body, &group, -1));
}

/* ---- deaths ---- */

static const struct shape under_way = {.row_count = 3, .width = 64};

struct death {
    struct group group;
    uint32_t victim;
    bool is_inside; /* killed in the middle of its own sums; else the others are in theirs, and it comes to none */
};

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void *kill_soon(void *unused)
{
    (void)unused;
    nap(30000);
    kill(getpid(), SIGKILL);
    return NULL;
}

/* Until one fails. */
static enum weft_status go_on(struct member *member, struct rows *rows)
{
    enum weft_status status = WEFT_OK;

    while (status == WEFT_OK) {
        status = sum_and_norm(member, rows, &under_way, member->device_input);
        status = status == WEFT_OK ? weft_comm_sync(member->comm) : status;
    }
    return status;
}

static bool be_victim(struct member *member, struct rows *rows, bool is_inside)
{
    pthread_t thread;

    CHECK(pthread_create(&thread, NULL, kill_soon, NULL) == 0);
    if (is_inside) {
        (void)go_on(member, rows);
    }
    (void)pthread_join(thread, NULL);
    return false;
}

static bool death_body(struct weft_bootstrap *bootstrap, const void *context)
{
    const struct death *death = context;
    enum weft_status status;
    struct member member;
    struct rows rows;

    CHECK(member_open(bootstrap, &death->group, &member));
    rows_open(&member, &rows);
    (void)member_produce(&member, 200, 1, false);
    CHECK(sum_and_norm(&member, &rows, &under_way, member.device_input) == WEFT_OK);
    CHECK(weft_comm_sync(member.comm) == WEFT_OK);
    status = weft_comm_barrier(member.comm);
    CHECK(status == WEFT_OK || (member.rank != death->victim && status == WEFT_ERR_PEER));
    if (member.rank == death->victim) {
        return be_victim(&member, &rows, death->is_inside);
    }
    const uint64_t begin = now_ms();
    CHECK(go_on(&member, &rows) == WEFT_ERR_PEER);
    CHECK(now_ms() - begin < SOON_MS);
    CHECK(weft_comm_failed_rank(member.comm) == (int)death->victim);
    CHECK(sum_and_norm(&member, &rows, &under_way, member.device_input) == WEFT_ERR_PEER);
    rows_close(&member, &rows);
    return member_close(&member);
}

static void test_rank_that_dies(void **state)
{
    (void)state;
    if (mode != RANKS_PROCESSES) {
        skip();
    }
    for (uint32_t i = 0; i < 4; i++) {
        const struct death death = {{3, 8, NULL, COUNT_MAX, LONG_MS, NULL}, 1 + i / 2, i % 2 == 0};

        assert_true(ranks_run(mode, 3, death_body, &death, (int)death.victim));
    }
}

int main(int argument_count, char **arguments)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits_of_every_shape),
        cmocka_unit_test(test_endurance),
        cmocka_unit_test(test_rank_that_dies),
    };

    mode = member_configure(argument_count, arguments);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
