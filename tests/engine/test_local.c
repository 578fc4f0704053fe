/*
 * Ranks as processes that open forks: the same answers, and what happens when one is killed. Not for ThreadSanitizer:
 * it does not follow forks.
 */
#include "harness.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "weft/log.h"

/* The promise is 2 s; the rest is for a busy machine. */
enum { RANKS = 3, END_SECONDS = 10 };

static const int32_t prompt[] = {5, 17, 200, 33, 9};

static int set_up(void **state)
{
    (void)state;
    log_capture();
    return 0;
}

static void make_request(struct weft_request *request)
{
    weft_request_init(request);
    request->token_ids = prompt;
    request->token_count = TEST_COUNT(prompt);
    request->max_tokens = 100;
    request->is_eos_ignored = true;
    request->has_logits_digest = true;
    request->temperature = 1.0f;
}

static struct weft_engine *open_local(void)
{
    struct weft_engine_options options;

    test_options(&options, golden_model("qwen2"), RANKS);
    options.launch = WEFT_LAUNCH_LOCAL;
    return open_engine(&options);
}

static int parent_of(int pid)
{
    char path[64];
    char text[512];
    int parent = -1;

    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return -1;
    }
    if (fgets(text, sizeof(text), file) != NULL && strrchr(text, ')') != NULL) {
        char process_state;
        if (sscanf(strrchr(text, ')') + 1, " %c %d", &process_state, &parent) != 2) {
            parent = -1;
        }
    }
    fclose(file);
    return parent;
}

/* Children of `parent` into pids_out[capacity]; returns their count. */
static uint32_t children_of(int parent, int *pids_out, uint32_t capacity)
{
    DIR *folder = opendir("/proc");
    uint32_t count = 0;

    assert_non_null(folder);
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        int pid = atoi(entry->d_name);
        if (pid > 0 && count < capacity && parent_of(pid) == parent) {
            pids_out[count++] = pid;
        }
    }
    closedir(folder);
    return count;
}

static void test_answers_are_those_of_one_rank(void **state)
{
    struct weft_engine_options options;
    struct weft_request request;
    struct answer alone;
    struct answer local;

    (void)state;
    make_request(&request);
    struct weft_engine *engine = open_local();
    run_requests(engine, &request, 1, &local);
    weft_engine_close(&engine);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* nobody is left */
    assert_int_equal(errno, ECHILD);
    test_options(&options, golden_model("qwen2"), 1);
    engine = open_engine(&options);
    run_requests(engine, &request, 1, &alone);
    weft_engine_close(&engine);
    assert_same_answer(&local, &alone);
}

/* Polls until the engine says that it has failed; the last events of open requests come before. */
static void expect_failure(struct weft_engine *engine, uint32_t open_count)
{
    time_t begin = time(NULL);
    uint32_t failed = 0;

    for (;;) {
        struct weft_event events[4];
        uint32_t count = 0;
        enum weft_status status = weft_engine_poll(engine, 200, events, 4, &count);
        if (status != WEFT_OK) {
            assert_int_equal(status, WEFT_ERR_PEER);
            break;
        }
        for (uint32_t i = 0; i < count; i++) {
            if (events[i].finish == WEFT_FINISH_ERROR) {
                assert_int_equal(events[i].status, WEFT_ERR_PEER);
                failed++;
            }
        }
        assert_true(time(NULL) - begin <= END_SECONDS);
    }
    assert_true(failed <= open_count);
    assert_true(open_count == 0 || failed >= 1);
    int rank = weft_engine_failed_rank(engine);
    char line[32];
    assert_true(rank >= 1 && rank < RANKS);
    snprintf(line, sizeof(line), "rank %d ", rank); /* "on HOST failed" or, before its first heartbeat, "failed" */
    assert_true(log_has(line));
    assert_non_null(strstr(weft_engine_error(), line));
}

static void kill_one(uint32_t index)
{
    int pids[RANKS];

    assert_int_equal(children_of(getpid(), pids, RANKS), RANKS - 1);
    assert_int_equal(kill(pids[index], SIGKILL), 0);
}

static void test_a_rank_is_killed_while_idle(void **state)
{
    struct weft_request request;
    uint64_t id;

    (void)state;
    struct weft_engine *engine = open_local();
    kill_one(0);
    expect_failure(engine, 0);
    make_request(&request);
    assert_int_equal(weft_engine_submit(engine, &request, &id), WEFT_ERR_STATE);
    assert_non_null(strstr(weft_engine_error(), "failed"));
    weft_engine_close(&engine);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

static void test_a_rank_is_killed_while_steps_run(void **state)
{
    struct weft_request request;
    uint64_t id;

    (void)state;
    for (uint32_t i = 0; i < RANKS - 1; i++) {
        struct weft_engine *engine = open_local();
        make_request(&request);
        for (uint32_t j = 0; j < 200; j++) {
            assert_int_equal(weft_engine_submit(engine, &request, &id), WEFT_OK);
        }
        kill_one(i);
        expect_failure(engine, 200);
        weft_engine_close(&engine);
        assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    }
}

static void kill_while_loading(void *context, const char *what, uint64_t done, uint64_t total)
{
    bool *is_killed = context;

    assert_string_equal(what, "weights");
    assert_true(done <= total);
    if (!*is_killed) {
        *is_killed = true;
        kill_one(1);
    }
}

static void test_a_rank_is_killed_while_loading(void **state)
{
    struct weft_engine_options options;
    struct weft_engine *engine = NULL;
    bool is_killed = false;

    (void)state;
    test_options(&options, golden_model("qwen2"), RANKS);
    options.launch = WEFT_LAUNCH_LOCAL;
    options.progress = kill_while_loading;
    options.callback_context = &is_killed;
    enum weft_status status = weft_engine_open(&options, &engine);
    assert_true(is_killed);
    if (status == WEFT_OK) { /* it had loaded already */
        expect_failure(engine, 0);
        weft_engine_close(&engine);
    } else {
        assert_int_equal(status, WEFT_ERR_PEER);
        assert_non_null(strstr(weft_engine_error(), "rank 2 "));
    }
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

/* A rank that hangs: nothing closes, only deadlines help. */
static void test_a_rank_hangs(void **state)
{
    struct weft_engine_options options;
    struct weft_request request;
    struct weft_event event;
    uint32_t count = 0;
    int pids[RANKS];
    uint64_t id;

    (void)state;
    test_options(&options, golden_model("qwen2"), RANKS);
    options.launch = WEFT_LAUNCH_LOCAL;
    options.timeout_ms = 1000;
    struct weft_engine *engine = open_engine(&options);
    assert_int_equal(children_of(getpid(), pids, RANKS), RANKS - 1);
    assert_int_equal(kill(pids[1], SIGSTOP), 0);
    make_request(&request);
    assert_int_equal(weft_engine_submit(engine, &request, &id), WEFT_OK);
    time_t begin = time(NULL);
    enum weft_status status = WEFT_OK;
    bool has_last_event = false;
    while (status == WEFT_OK) {
        status = weft_engine_poll(engine, 200, &event, 1, &count);
        has_last_event = has_last_event || (status == WEFT_OK && count == 1 && event.finish == WEFT_FINISH_ERROR);
        assert_true(time(NULL) - begin <= END_SECONDS);
    }
    assert_true(has_last_event);
    assert_true(status == WEFT_ERR_TIMEOUT || status == WEFT_ERR_PEER);
    int rank = weft_engine_failed_rank(engine);
    assert_int_equal(rank, 2); /* pids ascend with ranks */
    weft_engine_close(&engine);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

/* Leader in a process of its own: opens, tells that it is ready, runs for ever. */
static void lead_for_ever(int ready_fd)
{
    struct weft_request request;
    uint64_t id;
    struct weft_engine *engine = open_local();

    make_request(&request);
    for (bool is_first = true;; is_first = false) {
        struct weft_event event;
        uint32_t count;
        if (weft_engine_submit(engine, &request, &id) != WEFT_OK && is_first) {
            _exit(1);
        }
        if (is_first && write(ready_fd, "r", 1) != 1) {
            _exit(1);
        }
        if (weft_engine_poll(engine, 10, &event, 1, &count) != WEFT_OK) {
            _exit(1);
        }
    }
}

static void test_the_leader_is_killed(void **state)
{
    int pipe_fds[2];
    int workers[RANKS];
    char byte;

    (void)state;
    assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0); /* orphans become ours, so that we can see them end */
    assert_int_equal(pipe(pipe_fds), 0);
    pid_t leader = fork();
    assert_true(leader >= 0);
    if (leader == 0) {
        lead_for_ever(pipe_fds[1]);
    }
    close(pipe_fds[1]);
    assert_int_equal(read(pipe_fds[0], &byte, 1), 1);
    close(pipe_fds[0]);
    assert_int_equal(children_of(leader, workers, RANKS), RANKS - 1);
    assert_int_equal(kill(leader, SIGKILL), 0);
    time_t begin = time(NULL);
    for (uint32_t ended = 0; ended < RANKS;) {
        pid_t pid = waitpid(-1, NULL, WNOHANG);
        ended += pid > 0;
        if (pid == 0) {
            usleep(10000);
        }
        assert_true(pid >= 0 && time(NULL) - begin <= END_SECONDS);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_answers_are_those_of_one_rank, set_up),
        cmocka_unit_test_setup(test_a_rank_is_killed_while_idle, set_up),
        cmocka_unit_test_setup(test_a_rank_is_killed_while_steps_run, set_up),
        cmocka_unit_test_setup(test_a_rank_is_killed_while_loading, set_up),
        cmocka_unit_test_setup(test_a_rank_hangs, set_up),
        cmocka_unit_test_setup(test_the_leader_is_killed, set_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
