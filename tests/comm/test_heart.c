/*
 * Heartbeats: stopped ranks are named, by everybody and whatever the others are doing; busy, paused and departing ones
 * are not. A group is a process tree of its own, so that it can be stopped as a whole.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>

#include "bodies.h"

enum { RANK_COUNT = 3, SILENCE_MS = 300, SOON_MS = 8000, FRAME_COUNT = 100, FRAME_MS = 40 };

/* Shared between the test and all ranks. */
struct board {
    _Atomic int pids[RANK_COUNT];
    _Atomic int failed_ranks[RANK_COUNT]; /* as each rank sees it; -2: still running */
    char reasons[RANK_COUNT][256];
    const char *victim;                /* as a line says it, of which has_said is */
    _Atomic bool has_said[RANK_COUNT]; /* in its log, that a rank failed */
    _Atomic uint32_t told_count;       /* frames of CONDUCT_TELLS that rank 2 has sent, and that rank 0 has read */
    _Atomic uint32_t read_count;
    _Atomic bool is_struck;
    _Atomic bool is_over;
};

enum conduct {
    CONDUCT_WAITS,    /* for frames or a wake-up, as idle ranks do */
    CONDUCT_COMPUTES, /* and looks at nothing */
    CONDUCT_LEAVES,   /* in order, one after the other */
    CONDUCT_TELLS,    /* rank 2 much, which rank 0 reads late and slowly; then all wait */
};

struct scene {
    struct board *board;
    enum conduct conduct;
    struct weft_heartbeat_options options;
};

static void spin_ms(int64_t ms)
{
    int64_t end = now_ms() + ms;

    while (now_ms() < end) {
    }
}

/* As in loading: the leader looks at what the others tell between two reads from a slow disk. */
static void tell(struct weft_bootstrap *bootstrap, struct board *board)
{
    enum weft_status status = WEFT_OK;
    const void *data;
    size_t size;

    if (weft_bootstrap_rank(bootstrap) == 2) {
        while (board->told_count < FRAME_COUNT &&
               weft_bootstrap_send(bootstrap, 0, "12345678", 8, SOON_MS) == WEFT_OK) {
            board->told_count++;
        }
    } else if (weft_bootstrap_rank(bootstrap) == 0) {
        while (!board->is_struck && !board->is_over) {
            pause_ms(1);
        }
        while (board->read_count < FRAME_COUNT && status == WEFT_OK && !board->is_over) {
            status = weft_bootstrap_recv(bootstrap, 2, &data, &size, SOON_MS);
            board->read_count += status == WEFT_OK;
            pause_ms(FRAME_MS);
            status = status == WEFT_OK ? weft_bootstrap_check(bootstrap) : status;
        }
    }
}

static void act(struct weft_bootstrap *bootstrap, const struct scene *scene)
{
    uint32_t rank = weft_bootstrap_rank(bootstrap);
    struct board *board = scene->board;
    enum weft_status status = WEFT_OK;
    int wake_fd = eventfd(0, EFD_CLOEXEC);
    const void *data;
    size_t size;

    switch (scene->conduct) {
    case CONDUCT_TELLS: tell(bootstrap, board); /* fallthrough */
    case CONDUCT_WAITS:
        while (status == WEFT_OK || status == WEFT_ERR_TIMEOUT) {
            if (board->is_over) {
                return;
            }
            status = rank == 0 ? weft_bootstrap_wait(bootstrap, wake_fd, 50)
                               : weft_bootstrap_recv(bootstrap, 0, &data, &size, 50);
        }
        break;
    case CONDUCT_COMPUTES: spin_ms(4 * SILENCE_MS); break;
    case CONDUCT_LEAVES: pause_ms(rank * 2 * SILENCE_MS); break;
    }
}

static void live(const struct scene *scene)
{
    struct board *board = scene->board;
    struct weft_bootstrap *bootstrap;
    uint32_t rank;

    if (weft_bootstrap_open_local(RANK_COUNT, &bootstrap) != WEFT_OK) {
        _exit(1);
    }
    rank = weft_bootstrap_rank(bootstrap);
    board->pids[rank] = getpid();
    if (weft_bootstrap_heartbeat(bootstrap, &scene->options) != WEFT_OK) {
        _exit(1);
    }
    act(bootstrap, scene);
    if (weft_bootstrap_check(bootstrap) != WEFT_OK) {
        (void)snprintf(board->reasons[rank], sizeof(board->reasons[rank]), "%s on %s",
                       weft_bootstrap_failed_reason(bootstrap), weft_bootstrap_failed_host(bootstrap));
    }
    board->failed_ranks[rank] = weft_bootstrap_failed_rank(bootstrap);
    for (int i = 0; i < SOON_MS / 4 && scene->conduct == CONDUCT_WAITS && board->failed_ranks[rank] == -1; i++) {
        if (board->failed_ranks[0] != -2 && board->failed_ranks[1] != -2 && board->failed_ranks[2] != -2) {
            break; /* nobody is left who would want something from this rank */
        }
        pause_ms(1);
    }
    weft_bootstrap_close(&bootstrap);
    _exit(0);
}

static struct board *board_new(void)
{
    struct board *board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    for (int i = 0; i < RANK_COUNT; i++) {
        board->failed_ranks[i] = -2;
    }
    return board;
}

/* Until every rank is there, and its heartbeats have been for a while. */
static void wait_for_ranks(const struct board *board)
{
    for (int i = 0; i < RANK_COUNT; i++) {
        for (int k = 0; k < SOON_MS && board->pids[i] == 0; k++) {
            pause_ms(1);
        }
        assert_int_not_equal(board->pids[i], 0);
    }
    pause_ms(SILENCE_MS);
}

/* The group as a process group of its own; returns when all ranks stand and beat. */
static pid_t begin(const struct scene *scene)
{
    pid_t leader = fork();

    if (leader == 0) {
        (void)setpgid(0, 0);
        live(scene);
    }
    (void)setpgid(leader, leader);
    wait_for_ranks(scene->board);
    return leader;
}

static void end(const struct scene *scene, pid_t leader)
{
    int status;

    scene->board->is_over = true;
    (void)kill(-leader, SIGCONT);
    assert_int_equal(waitpid(leader, &status, 0), leader);
    munmap(scene->board, sizeof(*scene->board));
}

/* What rank saw, once it saw anything. */
static int verdict_of(const struct scene *scene, uint32_t rank)
{
    for (int i = 0; i < SOON_MS && scene->board->failed_ranks[rank] == -2; i++) {
        pause_ms(1);
    }
    return scene->board->failed_ranks[rank];
}

static void check_stopped(enum conduct conduct, uint32_t victim)
{
    struct scene scene = {board_new(), conduct, {.silence_ms = SILENCE_MS}};
    pid_t leader = begin(&scene);

    (void)kill(scene.board->pids[victim], SIGSTOP);
    for (uint32_t rank = 0; rank < RANK_COUNT; rank++) {
        if (rank != victim) {
            assert_int_equal(verdict_of(&scene, rank), victim);
            assert_non_null(strstr(scene.board->reasons[rank], "is stopped"));
        }
    }
    if (victim == 0) {
        (void)kill(leader, SIGKILL);
    }
    end(&scene, leader);
}

static void test_stopped_worker(void **state)
{
    (void)state;
    check_stopped(CONDUCT_WAITS, 2);
}

static void test_stopped_leader(void **state)
{
    (void)state;
    check_stopped(CONDUCT_WAITS, 0);
}

/* What a stopped process had sent before is no sign of life, whenever it is read. */
static void test_stale_frames_are_no_life(void **state)
{
    struct scene scene = {board_new(), CONDUCT_TELLS, {.silence_ms = SILENCE_MS}};
    pid_t leader = begin(&scene);

    (void)state;
    for (int i = 0; i < SOON_MS && scene.board->told_count < FRAME_COUNT; i++) {
        pause_ms(1);
    }
    (void)kill(scene.board->pids[2], SIGSTOP);
    scene.board->is_struck = true;
    assert_int_equal(verdict_of(&scene, 0), 2);
    assert_non_null(strstr(scene.board->reasons[0], "is stopped"));
    assert_in_range(scene.board->read_count, 0, FRAME_COUNT - 1);
    end(&scene, leader);
}

static void check_peace(enum conduct conduct, uint32_t silence_ms, bool is_group_stopped, bool is_worker_stopped)
{
    struct scene scene = {board_new(), conduct, {.silence_ms = silence_ms}};
    pid_t leader = begin(&scene);

    if (is_group_stopped || is_worker_stopped) {
        (void)kill(is_group_stopped ? -leader : scene.board->pids[1], SIGSTOP);
        pause_ms(4 * SILENCE_MS);
        (void)kill(is_group_stopped ? -leader : scene.board->pids[1], SIGCONT);
        pause_ms(2 * SILENCE_MS);
        scene.board->is_over = true;
    }
    for (uint32_t rank = 0; rank < RANK_COUNT; rank++) {
        assert_int_equal(verdict_of(&scene, rank), -1);
    }
    end(&scene, leader);
}

static void test_computing_is_no_failure(void **state)
{
    (void)state;
    check_peace(CONDUCT_COMPUTES, SILENCE_MS, false, false);
}

static void test_leaving_is_no_failure(void **state)
{
    (void)state;
    check_peace(CONDUCT_LEAVES, SILENCE_MS, false, false);
}

/* Who was away itself accuses nobody: Ctrl-Z and fg, a paused virtual machine. */
static void test_stopped_together(void **state)
{
    (void)state;
    check_peace(CONDUCT_WAITS, SILENCE_MS, true, false);
}

static void test_off(void **state)
{
    (void)state;
    check_peace(CONDUCT_WAITS, UINT32_MAX, false, true);
}

/* A main thread that nothing reaches: the process ends all the same. */
static void test_stuck_process_leaves(void **state)
{
    struct scene scene = {board_new(), CONDUCT_LEAVES, {.silence_ms = SILENCE_MS, .exit_ms = 200}};
    pid_t leader;
    int status;

    (void)state;
    leader = fork();
    if (leader == 0) {
        struct weft_bootstrap *bootstrap;

        if (weft_bootstrap_open_local(RANK_COUNT, &bootstrap) != WEFT_OK ||
            weft_bootstrap_heartbeat(bootstrap, &scene.options) != WEFT_OK) {
            _exit(2);
        }
        scene.board->pids[weft_bootstrap_rank(bootstrap)] = getpid();
        pause_ms(100000);
        _exit(3);
    }
    for (int i = 0; i < SOON_MS && (scene.board->pids[0] == 0 || scene.board->pids[1] == 0); i++) {
        pause_ms(1);
    }
    pause_ms(SILENCE_MS);
    (void)kill(scene.board->pids[1], SIGKILL);
    assert_int_equal(waitpid(leader, &status, 0), leader);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), EXIT_FAILURE);
    munmap(scene.board, sizeof(*scene.board));
}

static void note_said(void *context, enum weft_log_level level, const char *line)
{
    struct board *board = context;
    int rank = weft_log_rank();

    if (level == WEFT_LOG_ERROR && strstr(line, board->victim) != NULL && rank >= 0) {
        board->has_said[rank] = true;
    }
}

/* Where threads cannot be started (the limit of a container, say). */
static _Atomic bool is_full;
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *), void *context);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *), void *context);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *), void *context)
{
    return is_full ? EAGAIN : __real_pthread_create(thread, attributes, body, context);
}

enum main_thread { MAIN_STUCK, MAIN_CLOSES };

/* Rank 2 is stopped. The leader's main thread looks at nothing: its log has it all the same, long before the end. */
static void check_leader_speaks(enum main_thread conduct)
{
    struct scene scene = {board_new(), CONDUCT_LEAVES, {.silence_ms = SILENCE_MS, .exit_ms = 10 * SOON_MS}};
    pid_t leader = fork();
    int status;

    if (leader == 0) {
        struct weft_bootstrap *bootstrap;
        char text[256];
        uint32_t lost;

        scene.board->victim = "rank 2";
        weft_log_configure(WEFT_LOG_ERROR, note_said, scene.board);
        if (weft_bootstrap_open_local(RANK_COUNT, &bootstrap) != WEFT_OK ||
            weft_bootstrap_heartbeat(bootstrap, &scene.options) != WEFT_OK) {
            _exit(2);
        }
        is_full = true;
        scene.board->pids[weft_bootstrap_rank(bootstrap)] = getpid();
        while (conduct == MAIN_CLOSES && !weft_bootstrap_lost(bootstrap, &lost, text, sizeof(text))) {
            pause_ms(1);
        }
        if (conduct == MAIN_CLOSES) {
            weft_bootstrap_close(&bootstrap);
        }
        pause_ms(100000);
        _exit(3);
    }
    wait_for_ranks(scene.board);
    (void)kill(scene.board->pids[2], SIGSTOP);
    for (int i = 0; i < SOON_MS && !scene.board->has_said[0]; i++) {
        pause_ms(1);
    }
    (void)kill(leader, SIGKILL);
    assert_int_equal(waitpid(leader, &status, 0), leader);
    assert_true(scene.board->has_said[0]);
    munmap(scene.board, sizeof(*scene.board));
}

static void test_a_stuck_leader_speaks(void **state)
{
    (void)state;
    check_leader_speaks(MAIN_STUCK);
}

static void test_a_leader_that_has_closed_speaks(void **state)
{
    (void)state;
    check_leader_speaks(MAIN_CLOSES);
}

/* The leader is stopped, and the others' main threads are stuck: their logs have it long before they are ended. */
static void test_stuck_processes_speak_for_the_leader(void **state)
{
    struct scene scene = {board_new(), CONDUCT_LEAVES, {.silence_ms = SILENCE_MS, .exit_ms = 10 * SOON_MS}};
    pid_t leader = fork();
    int status;

    (void)state;
    if (leader == 0) {
        struct weft_bootstrap *bootstrap;

        scene.board->victim = "rank 0";
        weft_log_configure(WEFT_LOG_ERROR, note_said, scene.board);
        if (weft_bootstrap_open_local(RANK_COUNT, &bootstrap) != WEFT_OK ||
            weft_bootstrap_heartbeat(bootstrap, &scene.options) != WEFT_OK) {
            _exit(2);
        }
        scene.board->pids[weft_bootstrap_rank(bootstrap)] = getpid();
        pause_ms(100000);
        _exit(3);
    }
    wait_for_ranks(scene.board);
    (void)kill(leader, SIGSTOP);
    for (int i = 0; i < SOON_MS && !(scene.board->has_said[1] && scene.board->has_said[2]); i++) {
        pause_ms(1);
    }
    (void)kill(leader, SIGKILL); /* its children go with it */
    assert_int_equal(waitpid(leader, &status, 0), leader);
    assert_true(scene.board->has_said[1] && scene.board->has_said[2]);
    munmap(scene.board, sizeof(*scene.board));
}

/* ---- threads: what needs no death ---- */

static int busy_body(struct weft_bootstrap **bootstrap, void *context)
{
    atomic_bool *has_seen = context;
    const struct weft_heartbeat_options options = {.silence_ms = SILENCE_MS};
    uint32_t rank = weft_bootstrap_rank(*bootstrap);
    char text[300];
    uint32_t lost;

    GROUP_CHECK(weft_bootstrap_quiet_ms(*bootstrap, 0) == UINT32_MAX);
    GROUP_CHECK(weft_bootstrap_heartbeat(*bootstrap, &options) == WEFT_OK);
    GROUP_CHECK(!weft_bootstrap_lost(*bootstrap, &lost, text, sizeof(text)));
    /* Rank 1 makes progress, rank 2 does nothing, until rank 0 has seen it: who gets no core counts as busy for a
     * while. */
    for (int i = 0; i < SOON_MS / 10 && !atomic_load(has_seen); i++) {
        weft_bootstrap_phase(*bootstrap, WEFT_PHASE_STEP, 7);
        if (rank == 1) {
            weft_bootstrap_progress(*bootstrap);
        }
        pause_ms(10);
        if (rank == 0 && weft_bootstrap_quiet_ms(*bootstrap, 1) < 1000 &&
            weft_bootstrap_quiet_ms(*bootstrap, 2) > 1000) {
            atomic_store(has_seen, true);
        }
    }
    GROUP_CHECK(atomic_load(has_seen));
    if (rank != 0) {
        GROUP_CHECK(weft_bootstrap_quiet_ms(*bootstrap, 2) < 1000); /* somebody works */
    }
    if (rank == 2) {
        weft_bootstrap_abort(*bootstrap, 2, "gives up");
    }
    for (int i = 0; i < SOON_MS && !weft_bootstrap_lost(*bootstrap, &lost, text, sizeof(text)); i++) {
        pause_ms(1); /* nobody looks at its sockets: the heartbeats bring the news */
    }
    GROUP_CHECK(weft_bootstrap_lost(*bootstrap, &lost, text, sizeof(text)) && lost == 2);
    GROUP_CHECK(strstr(text, "rank 2") == text && strstr(text, "failed: gives up") != NULL);
    GROUP_CHECK(weft_bootstrap_check(*bootstrap) == WEFT_ERR_PEER);
    return 0;
}

static void test_busy(void **state)
{
    int before = open_fd_count();
    atomic_bool has_seen = false;

    (void)state;
    assert_int_equal(group_run_threads(GROUP_THREADS, NULL, RANK_COUNT, busy_body, &has_seen), 0);
    assert_int_equal(open_fd_count(), before);
}

/* What a quiet caller says of itself has been said before; what the heartbeats knew first has not. */
static int quiet_body(struct weft_bootstrap **bootstrap, void *context)
{
    const struct weft_heartbeat_options options = {.silence_ms = SOON_MS};
    uint32_t rank = weft_bootstrap_rank(*bootstrap);
    struct board *board = context;
    char text[300];
    uint32_t lost;

    GROUP_CHECK(weft_bootstrap_heartbeat(*bootstrap, &options) == WEFT_OK);
    board->told_count++;
    while (board->told_count < RANK_COUNT) {
        pause_ms(1);
    }
    if (rank == 2) {
        weft_bootstrap_abort(*bootstrap, 2, "gives up");
    }
    while (!weft_bootstrap_lost(*bootstrap, &lost, text, sizeof(text))) {
        pause_ms(1);
    }
    if (rank != 2) {
        (void)weft_log_set_quiet(true);
        weft_bootstrap_abort(*bootstrap, rank, "cannot go on either");
        GROUP_CHECK(weft_log_set_quiet(false));
    }
    GROUP_CHECK(weft_bootstrap_failed_rank(*bootstrap) == 2);
    return 0;
}

static void test_quiet(void **state)
{
    struct board *board = board_new();

    (void)state;
    board->victim = "rank 2";
    weft_log_configure(WEFT_LOG_ERROR, note_said, board);
    assert_int_equal(group_run_threads(GROUP_THREADS, NULL, RANK_COUNT, quiet_body, board), 0);
    weft_log_configure(WEFT_LOG_ERROR, NULL, NULL);
    assert_true(board->has_said[0] && board->has_said[2]);
    assert_false(board->has_said[1]); /* its leader says it */
    munmap(board, sizeof(*board));
}

int main(int argument_count, char **arguments)
{
    const struct CMUnitTest processes[] = {
        cmocka_unit_test(test_stopped_worker),
        cmocka_unit_test(test_stopped_leader),
        cmocka_unit_test(test_stale_frames_are_no_life),
        cmocka_unit_test(test_computing_is_no_failure),
        cmocka_unit_test(test_leaving_is_no_failure),
        cmocka_unit_test(test_stopped_together),
        cmocka_unit_test(test_off),
        cmocka_unit_test(test_stuck_process_leaves),
        cmocka_unit_test(test_stuck_processes_speak_for_the_leader),
        cmocka_unit_test(test_a_stuck_leader_speaks),
        cmocka_unit_test(test_a_leader_that_has_closed_speaks),
    };
    const struct CMUnitTest threads[] = {cmocka_unit_test(test_busy), cmocka_unit_test(test_quiet)};

    weft_log_configure(WEFT_LOG_ERROR, NULL, NULL);
    if (argument_count > 1 && strcmp(arguments[1], "threads") == 0) {
        return cmocka_run_group_tests(threads, NULL, NULL);
    }
    return cmocka_run_group_tests(processes, NULL, NULL);
}
