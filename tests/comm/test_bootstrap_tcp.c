/* The tcp bootstrap: the bodies of every kind, and everything that can go wrong while ranks look for each other. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <poll.h>
#include <sys/wait.h>

#include "opener.h"

static struct place free_place(void)
{
    static int mark = -1;

    return place_take(&mark);
}

static int run(uint32_t rank_count, group_function *function, void *context)
{
    struct place place = free_place();

    return group_run_threads(GROUP_TCP, place.text, rank_count, function, context);
}

static void check_all(group_function *function, uint32_t rank_count_min)
{
    (void)free_place(); /* one descriptor, from now on */
    int before = open_fd_count();

    for (size_t i = 0; i < sizeof(rank_counts) / sizeof(rank_counts[0]); i++) {
        if (rank_counts[i] >= rank_count_min) {
            assert_int_equal(run(rank_counts[i], function, NULL), 0);
        }
    }
    assert_int_equal(open_fd_count(), before);
}

static void test_well(void **state)
{
    (void)state;
    check_all(gather_body, 1);
    check_all(frames_body, 2);
    check_all(leave_body, 3);
    check_all(wait_body, 1);
    check_all(recv_timeout_body, 2);
}

/* "[v6]:port", and a name. */
static void test_addresses(void **state)
{
    struct place place = free_place();
    struct sockaddr_in6 loopback = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    char text[32];

    (void)state;
    (void)snprintf(text, sizeof(text), "localhost:%u", place.port);
    assert_int_equal(group_run_threads(GROUP_TCP, text, 3, gather_body, NULL), 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&loopback, sizeof(loopback)) != 0) {
        print_message("no IPv6 here: [::1] is not tested\n");
    } else {
        (void)snprintf(text, sizeof(text), "[::1]:%u", place.port);
        assert_int_equal(group_run_threads(GROUP_TCP, text, 3, gather_body, NULL), 0);
    }
    if (fd >= 0) {
        close(fd);
    }
}

static void test_abort(void **state)
{
    (void)state;
    for (uint32_t by = 0; by < 4; by++) {
        struct abortion abortion = {.by = by, .of = by == 3 ? 2 : by};

        assert_int_equal(run(4, abort_body, &abortion), 0);
    }
    assert_int_equal(run(3, mismatch_body, NULL), 0);
}

/* ---- a rank is killed: processes, because a thread cannot die alone ---- */

/* Returns how many of the processes ended with anything but 0, the victim not counted. */
static int run_processes(const struct place *place, uint32_t rank_count, struct death *death)
{
    pid_t pids[GROUP_RANK_MAX];
    int wrong = 0;

    for (uint32_t rank = 0; rank < rank_count; rank++) {
        pids[rank] = fork();
        if (pids[rank] == 0) {
            struct weft_bootstrap_tcp_options options = {
                .leader = place->text, .rank = rank, .rank_count = rank_count, .timeout_ms = LONG_MS};
            struct weft_bootstrap *bootstrap;

            if (weft_bootstrap_open_tcp(&options, &bootstrap) != WEFT_OK) {
                _exit(1);
            }
            _exit(death_body(&bootstrap, death) == 0 ? 0 : 1);
        }
    }
    for (uint32_t rank = 0; rank < rank_count; rank++) {
        int status = -1;

        assert_int_equal(waitpid(pids[rank], &status, 0), pids[rank]);
        wrong += rank != death->victim && status != 0;
    }
    return wrong;
}

static void test_death(void **state)
{
    (void)state;
    for (int where = 0; where < PLACE_COUNT; where++) {
        for (uint32_t victim = 0; victim < 3; victim++) {
            struct death death = {.place = where, .victim = victim, .reason = ""};
            struct place place = free_place();

            if (victim == 0 && where == IN_GATHER) {
                continue; /* covered by IN_RECV: a worker in all_gather receives from the leader */
            }
            assert_int_equal(run_processes(&place, 4, &death), 0);
        }
    }
}

/* ---- while they look for each other ---- */

/* Connects when the leader listens. */
static int knock(const struct place *place)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(place->port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    for (int i = 0; connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0; i++) {
        assert_true(i < 2000);
        pause_ms(10);
    }
    return fd;
}

/* Two with the same number: once one has been refused the other is in, and that one is returned. */
static struct opener *start_twins(struct opener twins[2], const struct place *place, uint32_t rank, uint32_t rank_count)
{
    for (int i = 0; i < 2; i++) {
        start(&twins[i], place, rank, rank_count);
    }
    for (int i = 0;; i = 1 - i) {
        if (pthread_tryjoin_np(twins[i].thread, NULL) == 0) {
            assert_int_equal(twins[i].status, WEFT_ERR_PEER);
            assert_non_null(strstr(twins[i].error, "rank 1 is there already, from "));
            return &twins[1 - i];
        }
        pause_ms(1);
    }
}

static void test_strangers(void **state)
{
    struct opener openers[3] = {{.status = WEFT_OK}};
    struct place place = free_place();
    int before = open_fd_count();
    int silent[100];
    int loud;
    char byte;

    (void)state;
    start(&openers[0], &place, 0, 3);
    /* More silent ones than the leader has places for. */
    for (size_t i = 0; i < sizeof(silent) / sizeof(silent[0]); i++) {
        silent[i] = knock(&place);
    }
    loud = knock(&place);
    assert_int_equal(send(loud, "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL), 18);
    while (recv(loud, &byte, 1, 0) > 0) { /* the challenge, then the end: refused at once, not after a deadline */
    }
    close(loud);
    start(&openers[1], &place, 1, 3);
    start(&openers[2], &place, 2, 3);
    finish(openers, 3, WEFT_OK);
    for (size_t i = 0; i < sizeof(silent) / sizeof(silent[0]); i++) {
        close(silent[i]);
    }
    assert_int_equal(open_fd_count(), before);
}

/* A rank with another secret, rank count or a rank taken already is refused; the right one still gets in. */
static void test_refusals(void **state)
{
    struct opener openers[2] = {{.status = WEFT_OK}}; /* 0 and 2 */
    struct opener twins[2] = {{.status = WEFT_OK}};
    struct opener *second;
    struct opener wrong[5] = {{.status = WEFT_OK}};
    struct place place = free_place();
    static const char *const reasons[] = {"the secret differs", "the secret differs",
                                          "the rank count differs: the leader has 3, this rank was told 4",
                                          "is another version: weft 1 (protocol 6), this is weft 2 (protocol 6)",
                                          "no place left among 3 ranks, 1 on each host; this host starts 3"};
    static const char *const said[] = {"rank 2 on ",
                                       "rank 2 on ",
                                       "the leader has 3",
                                       "rank 1 is there already",
                                       "is another version: weft 2 (protocol 6), the leader is weft 1 (protocol 6)",
                                       "a rank on "};
    struct listener listener = {.text = ""};

    (void)state;
    for (int i = 0; i < 2; i++) {
        openers[i].options.secret = twins[i].options.secret = "a";
        openers[i].options.program = twins[i].options.program = "weft 1";
    }
    for (int i = 0; i < 5; i++) {
        wrong[i].options.program = i == 3 ? "weft 2" : "weft 1";
    }
    listen_to_the_log(&listener);
    start(&openers[0], &place, 0, 3);
    second = start_twins(twins, &place, 1, 3);
    wrong[0].options.secret = "b";
    start(&wrong[0], &place, 2, 3);
    start(&wrong[1], &place, 2, 3); /* none at all */
    wrong[2].options.secret = "a";
    start(&wrong[2], &place, 2, 4);
    wrong[3].options.secret = "a";
    start(&wrong[3], &place, 2, 3);
    wrong[4].options.secret = "a";
    wrong[4].options.local_count = 3;
    start(&wrong[4], &place, WEFT_BOOTSTRAP_RANK_ANY, 3);
    for (int i = 0; i < 5; i++) {
        pthread_join(wrong[i].thread, NULL);
        assert_int_equal(wrong[i].status, WEFT_ERR_PEER);
        if (strstr(wrong[i].error, reasons[i]) == NULL) {
            fail_msg("expected \"%s\" in \"%s\"", reasons[i], wrong[i].error);
        }
    }
    start(&openers[1], &place, 2, 3);
    finish(second, 1, WEFT_OK);
    finish(openers, 2, WEFT_OK);
    weft_log_configure(WEFT_LOG_INFO, NULL, NULL);
    for (int i = 0; i < 6; i++) {
        assert_non_null(strstr(listener.text, said[i])); /* the leader says who came, too */
    }
}

/* Ranks without a number: two on each of three hosts, the leader's among them (one host name here, so by arrival). */
static void test_numbers_are_given(void **state)
{
    struct opener openers[6] = {{.status = WEFT_OK}};
    struct place place = free_place();
    bool is_taken[6] = {false};

    (void)state;
    for (uint32_t i = 0; i < 6; i++) {
        openers[i].options.local_count = 2;
        openers[i].options.local_rank = i % 2;
        start(&openers[i], &place, i == 0 ? 0 : WEFT_BOOTSTRAP_RANK_ANY, 6);
    }
    for (uint32_t i = 0; i < 6; i++) {
        uint32_t rank;

        pthread_join(openers[i].thread, NULL);
        assert_int_equal(openers[i].status, WEFT_OK);
        rank = weft_bootstrap_rank(openers[i].bootstrap);
        assert_true(rank < 6 && !is_taken[rank]);
        assert_int_equal(rank % 2, i % 2);
        is_taken[rank] = true;
    }
    for (uint32_t i = 6; i-- > 0;) {
        weft_bootstrap_close(&openers[i].bootstrap);
    }
}

/* Whoever starts the ranks says that one cannot come: nobody waits for a deadline, however far it has come itself. */
static void test_a_starter_gives_up(void **state)
{
    struct opener leader = {.status = WEFT_OK};
    struct opener twins[2];
    struct opener *worker;
    struct place place = free_place();
    int ends[2];

    (void)state;
    memset(twins, 0, sizeof(twins));
    assert_int_equal(pipe(ends), 0);
    leader.options.watch_fd = ends[0];
    start(&leader, &place, 0, 3);
    worker = start_twins(twins, &place, 1, 3);
    assert_int_equal(write(ends[1], "2 cannot be reached\n", 20), 20);
    pthread_join(worker->thread, NULL);
    finish(&leader, 1, WEFT_ERR_PEER);
    assert_non_null(strstr(leader.error, "rank 2 failed: cannot be reached"));
    close(ends[0]);
    close(ends[1]);
    assert_int_equal(worker->status, WEFT_ERR_PEER);
    assert_non_null(strstr(worker->error, "rank 2 failed: cannot be reached"));
}

/* Between a worker and its leader: passes one connection on, and lets the next one wait until that has ended. */
struct gate {
    int listen_fd;
    struct place leader;
    _Atomic bool is_second_there;
    pthread_t thread;
};

static void *keep_gate(void *argument)
{
    struct gate *gate = argument;
    int fds[2] = {accept(gate->listen_fd, NULL, NULL), knock(&gate->leader)};
    int second = -1;
    bool is_open = true;

    while (is_open) {
        struct pollfd polls[3] = {{.fd = fds[0], .events = POLLIN},
                                  {.fd = fds[1], .events = POLLIN},
                                  {.fd = second < 0 ? gate->listen_fd : -1, .events = POLLIN}};
        char bytes[4096];

        (void)poll(polls, 3, -1);
        for (int i = 0; i < 2 && is_open; i++) {
            ssize_t got = polls[i].revents != 0 ? recv(fds[i], bytes, sizeof(bytes), 0) : 1;

            is_open = got > 0;
            if (is_open && polls[i].revents != 0) {
                is_open = send(fds[1 - i], bytes, (size_t)got, MSG_NOSIGNAL) == got;
            }
        }
        if (polls[2].revents != 0) {
            second = accept(gate->listen_fd, NULL, NULL);
            gate->is_second_there = true;
        }
    }
    close(gate->listen_fd);
    close(second);
    close(fds[0]);
    close(fds[1]);
    return NULL;
}

static void open_gate(struct gate *gate, const struct place *leader, const struct place *place)
{
    int on = 1;

    *gate = (struct gate){.listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), .leader = *leader};
    (void)setsockopt(gate->listen_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    assert_true(place_bind(gate->listen_fd, place->port));
    assert_int_equal(listen(gate->listen_fd, 8), 0);
    assert_int_equal(pthread_create(&gate->thread, NULL, keep_gate, gate), 0);
}

/* A worker with one of its connections, when the leader gives up or is killed. */
static void check_halfway(bool is_killed, const char *reason)
{
    static int mark = -1;
    struct place place = place_take(&mark);
    struct place leader = free_place();
    struct opener worker = {.status = WEFT_OK};
    struct weft_bootstrap_tcp_options options = {
        .leader = leader.text, .rank = 0, .rank_count = 3, .timeout_ms = LONG_MS};
    struct weft_bootstrap *bootstrap;
    struct gate gate;
    int ends[2];
    pid_t pid;

    assert_int_equal(pipe(ends), 0);
    options.watch_fd = ends[0];
    pid = fork();
    if (pid == 0) {
        _exit(weft_bootstrap_open_tcp(&options, &bootstrap) == WEFT_ERR_PEER ? 0 : 1);
    }
    open_gate(&gate, &leader, &place);
    start(&worker, &place, 1, 3);
    while (!gate.is_second_there) {
        pause_ms(1);
    }
    if (is_killed) {
        kill(pid, SIGKILL);
    } else {
        assert_int_equal(write(ends[1], "2 cannot be reached\n", 20), 20);
    }
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    finish(&worker, 1, WEFT_ERR_PEER);
    if (strstr(worker.error, reason) == NULL) {
        fail_msg("expected \"%s\" in \"%s\"", reason, worker.error);
    }
    pthread_join(gate.thread, NULL);
    close(ends[0]);
    close(ends[1]);
}

static void test_the_leader_ends_while_a_rank_is_halfway_in(void **state)
{
    (void)state;
    check_halfway(false, "rank 2 failed: cannot be reached (reported by rank 0)");
    check_halfway(true, "rank 0 failed: connection closed");
}

static void test_missing_by_host(void **state)
{
    static const char *const hosts[] = {"a", "b", "c.example.org", NULL};
    struct opener opener = {.options = {.timeout_ms = 200, .hosts = hosts}};
    struct place place = free_place();

    (void)state;
    start(&opener, &place, 0, 4);
    finish(&opener, 1, WEFT_ERR_TIMEOUT);
    assert_non_null(strstr(opener.error, "missing: 1 on b, 2 on c.example.org, 3)"));
    opener.options.hosts = NULL;
    start(&opener, &place, 0, 1000);
    finish(&opener, 1, WEFT_ERR_TIMEOUT);
    assert_non_null(strstr(opener.error, " more)"));
}

static void test_missing(void **state)
{
    struct opener openers[3] = {{.status = WEFT_OK}};
    struct place place = free_place();
    int before = open_fd_count();

    (void)state;
    for (uint32_t i = 0; i < 3; i++) {
        openers[i].options.timeout_ms = i == 0 ? 3000 : LONG_MS; /* who comes is there by then */
        start(&openers[i], &place, i * 2, 7);                    /* 0, 2, 4 of 7 come */
    }
    for (uint32_t i = 0; i < 3; i++) {
        pthread_join(openers[i].thread, NULL);
        assert_int_equal(openers[i].status, i == 0 ? WEFT_ERR_TIMEOUT : WEFT_ERR_PEER);
        assert_non_null(strstr(openers[i].error, "missing: 1, 3, 5, 6"));
    }
    assert_int_equal(open_fd_count(), before);
}

static void test_no_leader(void **state)
{
    struct opener opener = {.status = WEFT_OK};
    struct place place = free_place();

    (void)state;
    opener.options.timeout_ms = 2000;
    start(&opener, &place, 1, 2);
    finish(&opener, 1, WEFT_ERR_TIMEOUT);
    assert_non_null(strstr(opener.error, place.text));
    assert_non_null(strstr(opener.error, "Connection refused"));
}

/* A rank that came, died and was started again before the others were there. */
static void test_comes_again(void **state)
{
    struct opener openers[3] = {{.status = WEFT_OK}};
    struct place place = free_place();
    pid_t first;
    int status;

    (void)state;
    first = fork();
    if (first == 0) {
        struct weft_bootstrap *bootstrap;
        struct weft_bootstrap_tcp_options options = {
            .leader = place.text, .rank = 1, .rank_count = 3, .timeout_ms = LONG_MS};

        (void)!weft_bootstrap_open_tcp(&options, &bootstrap);
        _exit(0);
    }
    start(&openers[0], &place, 0, 3);
    pause_ms(700);
    kill(first, SIGKILL);
    assert_int_equal(waitpid(first, &status, 0), first);
    start(&openers[1], &place, 1, 3);
    start(&openers[2], &place, 2, 3);
    finish(openers, 3, WEFT_OK);
}

static void test_arguments(void **state)
{
    static const char *const wrong[] = {"",           "host",    "host:",    ":5000", "host:0",
                                        "host:65536", "host:5x", "::1:5000", NULL};
    struct weft_bootstrap *bootstrap = NULL;
    struct weft_bootstrap_tcp_options options = {.rank = 0, .rank_count = 2, .timeout_ms = 100};
    struct place place = free_place();

    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        options.leader = wrong[i];
        assert_int_equal(weft_bootstrap_open_tcp(&options, &bootstrap), WEFT_ERR_ARGUMENT);
    }
    options.leader = place.text;
    options.rank = 2;
    assert_int_equal(weft_bootstrap_open_tcp(&options, &bootstrap), WEFT_ERR_ARGUMENT);
    assert_null(bootstrap);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_well),
        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_death),
        cmocka_unit_test(test_strangers),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_missing),
        cmocka_unit_test(test_no_leader),
        cmocka_unit_test(test_comes_again),
        cmocka_unit_test(test_missing_by_host),
        cmocka_unit_test(test_numbers_are_given),
        cmocka_unit_test(test_a_starter_gives_up),
        cmocka_unit_test(test_the_leader_ends_while_a_rank_is_halfway_in),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
