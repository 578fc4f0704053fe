/*
 * Heartbeats between hosts: a network cut between two of them is noticed though both reach the leader, the right one is
 * named, and nothing else is taken for a cut. Ranks are threads, each a host of its own; a socket that drops all it
 * gets stands for the network.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <linux/filter.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#include "bodies.h"
#include "heart_mesh.h"
#include "tcp_connect.h"

enum {
    RANK_COUNT = 4,
    MANY = 96,
    NOBODY = -1,
    SOON_MS = 20000,
    /* As by default. With less, a machine that stands still for a moment spreads what the ranks say of one cut over
     * several intervals, and the leader judges by the first. */
    SILENCE_MS = 900,
    MANY_SILENCE_MS = 3000, /* so many threads, under a sanitizer on few cores, do not all get to run within one */
};

static uint32_t ranks_per_host;
static int absent_rank = NOBODY;                /* reaches nobody, and is reached by nobody, between hosts */
static int fds[GROUP_RANK_MAX][GROUP_RANK_MAX]; /* of rank, to rank */
static _Atomic int warning_count;

uint64_t __real_weft_bootstrap_host_id(const struct weft_bootstrap *bootstrap);
uint64_t __wrap_weft_bootstrap_host_id(const struct weft_bootstrap *bootstrap);

uint64_t __wrap_weft_bootstrap_host_id(const struct weft_bootstrap *bootstrap)
{
    return __real_weft_bootstrap_host_id(bootstrap) + weft_bootstrap_rank(bootstrap) / ranks_per_host;
}

enum weft_status __real_weft_tcp_channel_connect(struct weft_channel *channel, struct weft_door *door,
                                                 const struct tcp_address *own, const void *addresses, int *fds_out,
                                                 bool is_optional);
enum weft_status __wrap_weft_tcp_channel_connect(struct weft_channel *channel, struct weft_door *door,
                                                 const struct tcp_address *own, const void *addresses, int *fds_out,
                                                 bool is_optional);

enum weft_status __wrap_weft_tcp_channel_connect(struct weft_channel *channel, struct weft_door *door,
                                                 const struct tcp_address *own, const void *addresses, int *fds_out,
                                                 bool is_optional)
{
    uint32_t rank = channel->options.rank;
    enum weft_status status = WEFT_OK;

    channel->options.timeout_ms = absent_rank != NOBODY ? 1000 : channel->options.timeout_ms;
    if (absent_rank != (int)rank) {
        status = __real_weft_tcp_channel_connect(channel, door, own, addresses, fds_out, is_optional);
    }
    for (uint32_t m = 0; m < channel->options.member_count; m++) {
        fds[rank][channel->options.members[m]] = fds_out[m];
    }
    return status;
}

static void count_warnings(void *context, enum weft_log_level level, const char *line)
{
    (void)context;
    warning_count += level == WEFT_LOG_WARN && strstr(line, "no connection between rank") != NULL;
    fprintf(stderr, "log: %s\n", line); /* why, when something fails */
}

/* Nothing that is sent to this socket arrives any more, acknowledgements neither. */
static void deafen(int fd)
{
    struct sock_filter drop = {.code = BPF_RET | BPF_K, .k = 0};
    const struct sock_fprog program = {.len = 1, .filter = &drop};

    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)) != 0) {
        abort();
    }
}

static void undeafen(int fd)
{
    int unused = 0;

    if (setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &unused, sizeof(unused)) != 0) {
        abort();
    }
}

/* What happens to the network, and what every rank must hear of it. */
struct scene {
    uint32_t rank_count;
    bool is_deaf[GROUP_RANK_MAX][GROUP_RANK_MAX]; /* to what comes from */
    uint32_t silence_ms;
    int64_t heal_ms; /* 0: never */
    int victim;
    const char *reason;
};

static void cut(const struct scene *scene, void act(int fd))
{
    for (uint32_t to = 0; to < scene->rank_count; to++) {
        for (uint32_t from = 0; from < scene->rank_count; from++) {
            if (scene->is_deaf[to][from]) {
                act(fds[to][from]);
            }
        }
    }
}

static int meet(struct weft_bootstrap *bootstrap)
{
    char nothing = 0;
    char all[GROUP_RANK_MAX];

    GROUP_CHECK(weft_bootstrap_all_gather(bootstrap, &nothing, 1, all, LONG_MS) == WEFT_OK);
    return 0;
}

static int scene_body(struct weft_bootstrap **bootstrap, void *context)
{
    const struct scene *scene = context;
    const struct weft_heartbeat_options options = {.silence_ms = scene->silence_ms};
    uint32_t rank = weft_bootstrap_rank(*bootstrap);
    int64_t patience_ms = scene->victim == NOBODY ? 4 * (int64_t)scene->silence_ms : SOON_MS;
    int64_t end;
    uint32_t lost = 0;
    char text[400];

    GROUP_CHECK(weft_bootstrap_heartbeat(*bootstrap, &options) == WEFT_OK);
    GROUP_CHECK(meet(*bootstrap) == 0);
    pause_ms(2 * scene->silence_ms); /* all is well for longer than a cut may last */
    GROUP_CHECK(!weft_bootstrap_lost(*bootstrap, &lost, text, sizeof(text)));
    GROUP_CHECK(meet(*bootstrap) == 0);
    if (rank == 0) {
        cut(scene, deafen);
        if (scene->heal_ms > 0) {
            pause_ms(scene->heal_ms);
            cut(scene, undeafen);
        }
    }
    end = now_ms() + patience_ms;
    while (now_ms() < end && !weft_bootstrap_lost(*bootstrap, &lost, text, sizeof(text))) {
        pause_ms(5);
    }
    if (scene->victim == NOBODY) {
        GROUP_CHECK(!weft_bootstrap_lost(*bootstrap, &lost, text, sizeof(text)));
        return meet(*bootstrap);
    }
    GROUP_CHECK(weft_bootstrap_lost(*bootstrap, &lost, text, sizeof(text)));
    GROUP_CHECK((int)lost == scene->victim);
    if (strstr(text, scene->reason) == NULL) {
        fprintf(stderr, "expected \"%s\" in \"%s\"\n", scene->reason, text);
        return __LINE__;
    }
    GROUP_CHECK(weft_bootstrap_check(*bootstrap) == WEFT_ERR_PEER);
    return 0;
}

static void play(struct scene *scene)
{
    int before = open_fd_count();

    ranks_per_host = 1;
    scene->rank_count = scene->rank_count == 0 ? RANK_COUNT : scene->rank_count;
    assert_int_equal(group_run_threads(GROUP_THREADS, NULL, scene->rank_count, scene_body, scene), 0);
    assert_int_equal(open_fd_count(), before);
}

static void test_two_workers(void **state)
{
    struct scene scene = {.silence_ms = SILENCE_MS, .victim = 2, .reason = "no answer between it and rank 1 on "};

    (void)state;
    scene.is_deaf[1][2] = scene.is_deaf[2][1] = true;
    play(&scene);
}

/* Packets vanish one way only: whoever hears nothing tells. */
static void test_one_way(void **state)
{
    struct scene scene = {
        .silence_ms = SILENCE_MS, .victim = 3, .reason = "both answer the leader: the network between"};

    (void)state;
    scene.is_deaf[1][3] = true;
    play(&scene);
}

/* One host has lost all others: it is named, not those that miss it. */
static void test_lonely_worker(void **state)
{
    struct scene scene = {.silence_ms = SILENCE_MS, .victim = 1, .reason = "no answer between it and rank "};

    (void)state;
    for (uint32_t rank = 0; rank < RANK_COUNT; rank++) {
        scene.is_deaf[1][rank] = scene.is_deaf[rank][1] = rank != 1;
    }
    play(&scene);
}

/* Heartbeats to the leader arrive, what the data takes does not. */
static void test_leader_without_data(void **state)
{
    struct scene scene = {
        .silence_ms = SILENCE_MS, .victim = 0, .reason = "though heartbeats arrive: the network of the data between"};

    (void)state;
    for (uint32_t rank = 1; rank < RANK_COUNT; rank++) {
        scene.is_deaf[0][rank] = scene.is_deaf[rank][0] = true;
    }
    play(&scene);
}

static void test_short_cut_is_no_failure(void **state)
{
    struct scene scene = {.silence_ms = SILENCE_MS, .heal_ms = 300, .victim = NOBODY};

    (void)state;
    scene.is_deaf[1][2] = scene.is_deaf[2][1] = true;
    play(&scene);
}

/* A firewall: said once for each pair, and the rest works. */
static void test_unreachable_is_no_failure(void **state)
{
    struct scene scene = {.silence_ms = SILENCE_MS, .victim = 2, .reason = "no answer between it and rank 1 on "};

    (void)state;
    warning_count = 0;
    absent_rank = 0;
    scene.is_deaf[1][2] = scene.is_deaf[2][1] = true;
    play(&scene);
    absent_rank = NOBODY;
    assert_int_equal(warning_count, RANK_COUNT - 1);
}

static int count_body(struct weft_bootstrap **bootstrap, void *context)
{
    const struct weft_heartbeat_options options = {.silence_ms = 0};

    (void)context;
    GROUP_CHECK(weft_bootstrap_heartbeat(*bootstrap, &options) == WEFT_OK);
    return meet(*bootstrap);
}

static uint32_t link_count_with(uint32_t ranks_of_a_host)
{
    uint32_t count = 0;

    memset(fds, -1, sizeof(fds));
    ranks_per_host = ranks_of_a_host;
    assert_int_equal(group_run_threads(GROUP_THREADS, NULL, RANK_COUNT, count_body, NULL), 0);
    for (uint32_t i = 0; i < RANK_COUNT * RANK_COUNT; i++) {
        count += fds[i / RANK_COUNT][i % RANK_COUNT] >= 0;
    }
    return count / 2;
}

static void test_one_link_between_two_hosts(void **state)
{
    (void)state;
    assert_int_equal(link_count_with(1), RANK_COUNT * (RANK_COUNT - 1) / 2);
    assert_int_equal(link_count_with(2), 1);
    assert_int_equal(link_count_with(RANK_COUNT), 0);
}

/* ---- more hosts than are probed at once ---- */

/* A mesh of as many threads needs two descriptors per pair. */
static void need_descriptors(uint32_t rank_count)
{
    struct rlimit limit;
    rlim_t count = (rlim_t)rank_count * (rank_count + 20) + 200;

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    if (limit.rlim_max < count) {
        print_message("%u ranks need %lu descriptors: the hard limit is %lu\n", rank_count, (unsigned long)count,
                      (unsigned long)limit.rlim_max);
        skip();
    }
    limit.rlim_cur = limit.rlim_cur < count ? count : limit.rlim_cur;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

/* Both ends far from the leader, and nobody waits: the turn comes to every pair. */
static void test_many_hosts(void **state)
{
    struct scene scene = {.rank_count = MANY,
                          .silence_ms = MANY_SILENCE_MS,
                          .victim = 80,
                          .reason = "no answer between it and rank 70 on "};

    (void)state;
    need_descriptors(MANY);
    scene.is_deaf[70][80] = scene.is_deaf[80][70] = true;
    play(&scene);
}

/* How many of the others have got something from rank 0 that they have not read yet. */
static uint32_t probed_count(uint32_t rank_count)
{
    uint32_t count = 0;

    for (uint32_t rank = 1; rank < rank_count; rank++) {
        struct pollfd wait = {.fd = fds[rank][0], .events = POLLIN};

        count += poll(&wait, 1, 0) == 1;
    }
    return count;
}

/* Until that many have; probes take a moment. */
static bool is_probed_count(uint32_t rank_count, uint32_t expected)
{
    int64_t end = now_ms() + SOON_MS;

    while (probed_count(rank_count) < expected && now_ms() < end) {
        pause_ms(1);
    }
    return probed_count(rank_count) == expected;
}

/* Until all that rank 0 sent is acknowledged, whatever the delay of acknowledgements. */
static void settle(uint32_t rank_count)
{
    for (uint32_t rank = 1; rank < rank_count; rank++) {
        for (int i = 0; i < SOON_MS && !weft_heart_is_acknowledged(fds[0][rank], 0); i++) {
            pause_ms(1);
        }
    }
}

enum { SOME = 40, WAITED = 38 };

static int probes_body(struct weft_bootstrap **bootstrap, void *context)
{
    const int64_t step_ns = 100 * 1000000;
    struct heart_beat own = {.waiting_for = NOBODY};
    struct heart_mesh *mesh;

    (void)context;
    GROUP_CHECK(weft_heart_mesh_open(*bootstrap, NULL, &mesh) == WEFT_OK);
    GROUP_CHECK(mesh != NULL);
    GROUP_CHECK(meet(*bootstrap) == 0);
    if (weft_bootstrap_rank(*bootstrap) == 0) {
        weft_heart_mesh_step(mesh, step_ns, 900, &own);
        GROUP_CHECK(is_probed_count(SOME, HEART_PROBES));
        settle(SOME);
        own.waiting_for = WAITED; /* out of turn */
        GROUP_CHECK(poll(&(struct pollfd){.fd = fds[WAITED][0], .events = POLLIN}, 1, 0) == 0);
        weft_heart_mesh_step(mesh, step_ns, 900, &own);
        GROUP_CHECK(poll(&(struct pollfd){.fd = fds[WAITED][0], .events = POLLIN}, 1, SOON_MS) == 1);
        GROUP_CHECK(is_probed_count(SOME, 2 * HEART_PROBES));
        settle(SOME);
        weft_heart_mesh_step(mesh, step_ns, 900, &own);
        GROUP_CHECK(is_probed_count(SOME, SOME - 1));
        settle(SOME);
        /* Nothing is acknowledged any more, by more than are probed at once: still one place is left for the waited. */
        for (uint32_t rank = 1; rank < SOME; rank++) {
            deafen(fds[rank][0]);
        }
        own.waiting_for = NOBODY;
        weft_heart_mesh_step(mesh, step_ns, 900, &own);
        for (int i = 0; i < 14; i++) {
            GROUP_CHECK(own.cut_rank == HEART_NOBODY && own.cut_count == 0);
            pause_ms(step_ns / 1000000); /* in the kernel's time, too */
            weft_heart_mesh_step(mesh, step_ns, 900, &own);
        }
        GROUP_CHECK(own.cut_count == HEART_PROBES && own.cut_ms == 1400);
        for (uint32_t rank = 1; rank < SOME && own.waiting_for == NOBODY; rank++) {
            own.waiting_for = weft_heart_is_acknowledged(fds[0][rank], 0) ? (int32_t)rank : NOBODY;
        }
        for (int i = 0; i < 15; i++) {
            pause_ms(step_ns / 1000000);
            weft_heart_mesh_step(mesh, step_ns, 900, &own);
        }
        GROUP_CHECK(own.cut_count == HEART_PROBES + 1 && own.cut_rank == (uint32_t)own.waiting_for);
        weft_heart_mesh_step(mesh, step_ns, UINT32_MAX, &own); /* never, for debuggers */
        GROUP_CHECK(own.cut_count == 0);
    }
    GROUP_CHECK(meet(*bootstrap) == 0);
    weft_heart_mesh_close(&mesh);
    return 0;
}

static void test_probes_by_turns(void **state)
{
    int before;

    (void)state;
    need_descriptors(SOME);
    before = open_fd_count();
    ranks_per_host = 1;
    assert_int_equal(group_run_threads(GROUP_THREADS, NULL, SOME, probes_body, NULL), 0);
    assert_int_equal(open_fd_count(), before);
}

/* ---- cost: test_heart_mesh cost RANKS ---- */

static int cost_body(struct weft_bootstrap **bootstrap, void *context)
{
    const struct weft_heartbeat_options options = {.silence_ms = 0};
    struct timespec begin, end;

    (void)context;
    weft_bootstrap_phase(*bootstrap, WEFT_PHASE_IDLE, 0);
    GROUP_CHECK(weft_bootstrap_heartbeat(*bootstrap, &options) == WEFT_OK);
    GROUP_CHECK(meet(*bootstrap) == 0);
    pause_ms(2000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
    pause_ms(10000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    if (weft_bootstrap_rank(*bootstrap) == 0) {
        double ms = (double)(end.tv_sec - begin.tv_sec) * 1e3 + (double)(end.tv_nsec - begin.tv_nsec) / 1e6;
        uint32_t count = weft_bootstrap_rank_count(*bootstrap);

        printf("%u hosts: %.2f ms of CPU per second and rank\n", count, ms / 10 / count);
    }
    return meet(*bootstrap);
}

/* ---- when the leader believes what it is told ---- */

struct table {
    struct heart_beat own;
    struct heart_link links[3]; /* of ranks 1, 2, 3 */
    int64_t own_cut_ns;
    struct heart_view view;
};

static void table_init(struct table *table)
{
    *table = (struct table){.own = {.cut_rank = HEART_NOBODY}};
    for (uint32_t i = 0; i < 3; i++) {
        table->links[i] = (struct heart_link){
            .rank = i + 1, .fd = 0, .has_spoken = true, .heard_ns = 1, .last = {.cut_rank = HEART_NOBODY}};
        (void)snprintf(table->links[i].last.host, STAR_HOST_SIZE, "node%u", i + 1);
    }
    table->view = (struct heart_view){.own = &table->own,
                                      .own_cut_ns = &table->own_cut_ns,
                                      .links = table->links,
                                      .link_count = 3,
                                      .interval_ns = 100};
}

static bool is_cut(struct table *table, int64_t now, uint32_t *rank)
{
    char reason[STAR_REASON_SIZE];

    return weft_heart_mesh_is_cut(&table->view, now, rank, reason, sizeof(reason));
}

static void report(struct table *table, uint32_t reporter, uint32_t peer, uint32_t count)
{
    table->links[reporter - 1].last.cut_rank = peer;
    table->links[reporter - 1].last.cut_count = count;
}

/* A host that is gone altogether is reported by others, too: the leader finds that out by itself. */
static void test_silent_ends_are_not_cut(void **state)
{
    struct table table;
    uint32_t rank;

    (void)state;
    table_init(&table);
    report(&table, 1, 3, 1);
    for (int64_t now = 1000; now < 10000; now += 100) {
        table.links[0].heard_ns = now;
        assert_false(is_cut(&table, now, &rank)); /* rank 3 is not heard */
    }
    table.links[2].heard_ns = 10000;
    assert_true(is_cut(&table, 10000, &rank));
    assert_int_equal(rank, 3);
}

static void test_report_is_weighed(void **state)
{
    struct table table;
    uint32_t rank;

    (void)state;
    table_init(&table);
    report(&table, 1, 3, 1);
    assert_false(is_cut(&table, 1000, &rank));
    table.links[0].heard_ns = table.links[2].heard_ns = 1050;
    assert_false(is_cut(&table, 1050, &rank)); /* not for an interval yet */
    report(&table, 1, HEART_NOBODY, 0);
    assert_false(is_cut(&table, 1100, &rank)); /* taken back */
    report(&table, 1, 3, 2);
    table.links[0].heard_ns = table.links[2].heard_ns = 1200;
    assert_false(is_cut(&table, 1200, &rank)); /* told anew: from the beginning */
    table.links[0].heard_ns = table.links[2].heard_ns = 1300;
    assert_true(is_cut(&table, 1300, &rank));
    assert_int_equal(rank, 1); /* it has lost two */
}

static void test_nonsense_is_passed_over(void **state)
{
    const uint32_t peers[] = {1, 4, 1000, UINT32_MAX};
    struct table table;
    uint32_t rank;

    (void)state;
    for (size_t i = 0; i < sizeof(peers) / sizeof(peers[0]); i++) {
        table_init(&table);
        report(&table, 1, peers[i], 1); /* of itself, of a rank that is not */
        for (int64_t now = 1000; now < 2000; now += 100) {
            table.links[0].heard_ns = table.links[1].heard_ns = table.links[2].heard_ns = now;
            assert_false(is_cut(&table, now, &rank));
        }
    }
    table_init(&table);
    report(&table, 1, 2, 1);
    table.links[0].has_spoken = false;
    table.links[0].heard_ns = table.links[1].heard_ns = 5000;
    assert_false(is_cut(&table, 1000, &rank));
    assert_false(is_cut(&table, 5000, &rank));
}

int main(int argument_count, char **arguments)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_silent_ends_are_not_cut),
        cmocka_unit_test(test_report_is_weighed),
        cmocka_unit_test(test_nonsense_is_passed_over),
        cmocka_unit_test(test_one_link_between_two_hosts),
        cmocka_unit_test(test_two_workers),
        cmocka_unit_test(test_one_way),
        cmocka_unit_test(test_lonely_worker),
        cmocka_unit_test(test_leader_without_data),
        cmocka_unit_test(test_short_cut_is_no_failure),
        cmocka_unit_test(test_unreachable_is_no_failure),
        cmocka_unit_test(test_probes_by_turns),
        cmocka_unit_test(test_many_hosts),
    };

    if (argument_count == 3 && strcmp(arguments[1], "cost") == 0) {
        uint32_t count = (uint32_t)atoi(arguments[2]);

        ranks_per_host = 1;
        need_descriptors(count);
        return group_run_threads(GROUP_THREADS, NULL, count, cost_body, NULL) != 0;
    }
    weft_log_configure(WEFT_LOG_WARN, count_warnings, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
