/*
 * weft_bootstrap_end(): the leader ends the group, whatever its ranks wait for; nobody is to blame and no line is
 * written. test_end threads|local|tcp.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bodies.h"
#include "place.h"
#include "weft/comm.h"

enum { RANK_COUNT = 4, IN_BARRIER = PLACE_COUNT, HERE_COUNT };

/* Shared between the ranks, also between processes. */
struct board {
    _Atomic uint32_t line_count; /* warnings and errors in the log */
    _Atomic uint32_t waiting_count;
    _Atomic uint32_t done_count;
};

struct scene {
    struct board *board;
    int place;     /* enum victim_place, or IN_BARRIER */
    bool is_early; /* the leader ends it when the others are not waiting yet */
};

static enum group_kind kind;

static void count_line(void *context, enum weft_log_level level, const char *line)
{
    struct board *board = context;

    (void)level;
    (void)line;
    board->line_count++;
}

/* The end comes from another thread than the leader's own, which waits as everybody does; twice. */
struct ender {
    struct weft_bootstrap *bootstrap;
    const struct scene *scene;
    pthread_t thread;
};

static void *end_group(void *argument)
{
    const struct ender *ender = argument;

    for (int i = 0; i < LONG_MS && !ender->scene->is_early && ender->scene->board->waiting_count < RANK_COUNT; i++) {
        pause_ms(1);
    }
    pause_ms(ender->scene->is_early ? 0 : 50); /* from the line above to the wait itself */
    weft_bootstrap_end(ender->bootstrap);
    weft_bootstrap_end(ender->bootstrap);
    return NULL;
}

/* A barrier that the leader never comes to. */
static enum weft_status wait_in_comm(struct weft_bootstrap *bootstrap, struct weft_comm *comm)
{
    enum weft_status status =
        weft_bootstrap_rank(bootstrap) == 0 ? weft_bootstrap_wait(bootstrap, -1, UINT32_MAX) : weft_comm_barrier(comm);

    if (weft_bootstrap_rank(bootstrap) != 0 && weft_comm_failed_rank(comm) != 0) {
        return WEFT_ERR_STATE;
    }
    return status;
}

static enum weft_status wait_somewhere(struct weft_bootstrap *bootstrap, const struct scene *scene,
                                       struct weft_comm *comm)
{
    bool is_away = scene->place == IN_GATHER && weft_bootstrap_rank(bootstrap) == RANK_COUNT - 1;
    const struct death death = {.place = is_away ? IN_RECV : (enum victim_place)scene->place, .victim = 1};

    scene->board->waiting_count++;
    return scene->place == IN_BARRIER ? wait_in_comm(bootstrap, comm) : survive(bootstrap, &death);
}

static int end_body(struct weft_bootstrap **bootstrap, void *context)
{
    const struct scene *scene = context;
    const struct weft_heartbeat_options options = {.silence_ms = LONG_MS};
    uint32_t rank = weft_bootstrap_rank(*bootstrap);
    struct ender ender = {.bootstrap = *bootstrap, .scene = scene};
    struct weft_range leaves[RANK_COUNT] = {{0, 2}, {2, 4}, {4, 6}, {6, 8}};
    const struct weft_comm_options comm_options = {
        .backend = "auto", .timeout_ms = LONG_MS, .leaf_count = 8, .leaves = leaves, .sum_count_max = 9};
    struct weft_comm *comm = NULL;
    uint8_t parts[RANK_COUNT];

    GROUP_CHECK(weft_bootstrap_heartbeat(*bootstrap, &options) == WEFT_OK || scene->is_early);
    GROUP_CHECK(!weft_bootstrap_is_ended(*bootstrap) || scene->is_early);
    if (scene->place == IN_BARRIER) {
        GROUP_CHECK(weft_comm_open(*bootstrap, &comm_options, &comm) == WEFT_OK);
    }
    GROUP_CHECK(weft_bootstrap_all_gather(*bootstrap, "x", 1, parts, LONG_MS) == WEFT_OK || scene->is_early);
    if (rank == 0) {
        GROUP_CHECK(pthread_create(&ender.thread, NULL, end_group, &ender) == 0);
    }
    GROUP_CHECK(wait_somewhere(*bootstrap, scene, comm) == WEFT_ERR_PEER);
    if (rank == 0) {
        pthread_join(ender.thread, NULL);
    }
    GROUP_CHECK(weft_bootstrap_is_ended(*bootstrap));
    GROUP_CHECK(weft_bootstrap_check(*bootstrap) == WEFT_ERR_PEER);
    GROUP_CHECK(weft_bootstrap_all_gather(*bootstrap, "x", 1, parts, LONG_MS) == WEFT_ERR_PEER);
    if (rank == 0) {
        weft_bootstrap_end(*bootstrap); /* once more, when all is over */
    }
    GROUP_CHECK(weft_bootstrap_is_ended(*bootstrap));
    weft_comm_close(&comm);
    scene->board->done_count++;
    for (int i = 0; i < LONG_MS && rank == 0 && scene->board->done_count < RANK_COUNT; i++) {
        pause_ms(1); /* the leader of processes gives them little time after its end */
    }
    return 0;
}

/* A death stands, whatever the leader says afterwards. */
static int dead_body(struct weft_bootstrap **bootstrap, void *context)
{
    const struct scene *scene = context;
    const struct weft_heartbeat_options options = {.silence_ms = LONG_MS};
    uint32_t rank = weft_bootstrap_rank(*bootstrap);
    char text[300];
    uint32_t lost;

    GROUP_CHECK(weft_bootstrap_heartbeat(*bootstrap, &options) == WEFT_OK);
    scene->board->waiting_count++;
    for (int i = 0; i < LONG_MS && rank == 2 && scene->board->waiting_count < RANK_COUNT; i++) {
        pause_ms(1);
    }
    if (rank == 2) {
        weft_bootstrap_abort(*bootstrap, 2, "gives up");
    }
    for (int i = 0; i < LONG_MS && !weft_bootstrap_lost(*bootstrap, &lost, text, sizeof(text)); i++) {
        pause_ms(1);
    }
    if (rank == 0) {
        weft_bootstrap_end(*bootstrap);
    }
    GROUP_CHECK(weft_bootstrap_check(*bootstrap) == WEFT_ERR_PEER);
    GROUP_CHECK(weft_bootstrap_failed_rank(*bootstrap) == 2);
    GROUP_CHECK(!weft_bootstrap_is_ended(*bootstrap));
    scene->board->done_count++;
    for (int i = 0; i < LONG_MS && rank == 0 && scene->board->done_count < RANK_COUNT; i++) {
        pause_ms(1);
    }
    return 0;
}

static void run(group_function *function, struct scene *scene, uint32_t line_count)
{
    static int mark = -1;
    struct place place = place_take(&mark);
    int before = open_fd_count();

    scene->board = mmap(NULL, sizeof(*scene->board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    weft_log_configure(WEFT_LOG_WARN, count_line, scene->board);
    assert_int_equal(kind == GROUP_LOCAL ? group_run_local(RANK_COUNT, function, scene)
                                         : group_run_threads(kind, place.text, RANK_COUNT, function, scene),
                     0);
    weft_log_configure(WEFT_LOG_WARN, NULL, NULL);
    assert_int_equal(scene->board->done_count, RANK_COUNT);
    assert_int_equal(scene->board->line_count, line_count);
    munmap(scene->board, sizeof(*scene->board));
    assert_int_equal(open_fd_count(), before);
}

static void test_every_wait_ends(void **state)
{
    (void)state;
    for (int place = 0; place < HERE_COUNT; place++) {
        struct scene scene = {.place = place};

        run(end_body, &scene, 0);
    }
}

static void test_not_yet_waiting(void **state)
{
    struct scene scene = {.place = IN_RECV, .is_early = true};

    (void)state;
    run(end_body, &scene, 0);
}

static void test_a_death_stands(void **state)
{
    struct scene scene = {.place = IN_CHECK};

    (void)state;
    run(dead_body, &scene, RANK_COUNT); /* each says once that rank 2 has given up */
}

int main(int argument_count, char **arguments)
{
    static const char *const kinds[GROUP_KIND_COUNT] = {
        [GROUP_THREADS] = "threads", [GROUP_LOCAL] = "local", [GROUP_TCP] = "tcp"};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_wait_ends),
        cmocka_unit_test(test_not_yet_waiting),
        cmocka_unit_test(test_a_death_stands),
    };

    while (kind < GROUP_KIND_COUNT && (argument_count != 2 || strcmp(arguments[1], kinds[kind]) != 0)) {
        kind++;
    }
    if (kind == GROUP_KIND_COUNT) {
        fprintf(stderr, "usage: test_end threads|local|tcp\n");
        return 2;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
