/* Strangers at the door, and choosing addresses by interface. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "door.h"
#include "netif.h"
#include "weft/log.h"

#define NONCE 0x1234567890abcdefu

static const uint32_t MEMBERS[] = {0, 2, 5};

struct fixture {
    struct weft_door door;
    struct weft_channel channel; /* of rank 2 */
    struct sockaddr_in address;
    int refusal_count;
};

static void count_refusals(void *context, enum weft_log_level level, const char *line)
{
    struct fixture *fixture = context;

    if (level == WEFT_LOG_WARN && strstr(line, "refused") != NULL) {
        fixture->refusal_count++;
    }
}

static struct weft_channel channel_of(uint32_t rank, uint64_t nonce)
{
    const struct weft_channel_options options = {
        .rank = rank, .rank_count = 6, .members = MEMBERS, .member_count = 3, .nonce = nonce};
    struct weft_channel channel;

    weft_channel_init(&channel, &weft_backend_tcp, &options);
    return channel;
}

static int set_up(void **state)
{
    static struct fixture fixture;
    socklen_t size = sizeof(fixture.address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

    fixture = (struct fixture){.channel = channel_of(2, NONCE), .address = {.sin_family = AF_INET}};
    fixture.address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(fd, (struct sockaddr *)&fixture.address, size), 0);
    assert_int_equal(listen(fd, 128), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&fixture.address, &size), 0);
    weft_door_init(&fixture.door, fd);
    weft_log_configure(WEFT_LOG_WARN, count_refusals, &fixture);
    *state = &fixture;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *fixture = *state;

    weft_door_fini(&fixture->door);
    weft_log_configure(WEFT_LOG_INFO, NULL, NULL);
    return 0;
}

static int connect_to(const struct fixture *fixture)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_int_equal(connect(fd, (const struct sockaddr *)&fixture->address, sizeof(fixture->address)), 0);
    return fd;
}

/* Looks for up to a second; -1 when nobody was let in and, if wanted, `refusals` were counted. */
static int look(struct fixture *fixture, int refusals, uint32_t *rank_out)
{
    const struct timespec moment = {.tv_nsec = 1000000};

    for (int i = 0; i < 1000; i++) {
        int fd = weft_door_accept(&fixture->door, &fixture->channel, rank_out);

        if (fd >= 0 || (refusals > 0 && fixture->refusal_count >= refusals)) {
            return fd;
        }
        nanosleep(&moment, NULL);
    }
    return -1;
}

static void test_member_is_let_in(void **state)
{
    struct fixture *fixture = *state;
    struct weft_channel peer = channel_of(5, NONCE);
    int ours = connect_to(fixture), theirs;
    uint32_t rank = 99;

    assert_int_equal(weft_door_knock(ours, &peer, 2), 0);
    theirs = look(fixture, 0, &rank);
    assert_true(theirs >= 0);
    assert_int_equal(rank, 5);
    assert_true((fcntl(theirs, F_GETFL) & O_NONBLOCK) != 0);
    assert_int_equal(fixture->refusal_count, 0);
    close(theirs);
    close(ours);
}

/* Connects as `from` seeking `to`; must be refused. */
static void expect_refusal(struct fixture *fixture, uint32_t from, uint32_t to, uint64_t nonce)
{
    struct weft_channel peer = channel_of(from, nonce);
    int fd = connect_to(fixture);
    int before = fixture->refusal_count;
    uint32_t rank;
    char byte;

    assert_int_equal(weft_door_knock(fd, &peer, to), 0);
    assert_int_equal(look(fixture, before + 1, &rank), -1);
    assert_int_equal(fixture->refusal_count, before + 1);
    assert_true(recv(fd, &byte, 1, 0) <= 0); /* closed on them */
    close(fd);
}

static void test_wrong_hello_is_refused(void **state)
{
    struct fixture *fixture = *state;

    expect_refusal(fixture, 5, 2, NONCE + 1); /* another group */
    expect_refusal(fixture, 5, 0, NONCE);     /* another rank */
    expect_refusal(fixture, 3, 2, NONCE);     /* not a member */
    expect_refusal(fixture, 2, 2, NONCE);     /* ourselves */
    expect_refusal(fixture, 70000, 2, NONCE); /* nobody */
}

static void test_other_protocols_are_refused(void **state)
{
    struct fixture *fixture = *state;
    const char *const request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    int fd = connect_to(fixture);
    uint32_t rank;

    assert_true(send(fd, request, strlen(request), 0) > 0);
    assert_int_equal(look(fixture, 1, &rank), -1);
    assert_int_equal(fixture->refusal_count, 1);
    close(fd);
    fd = connect_to(fixture);
    close(fd); /* a port scan */
    assert_int_equal(look(fixture, 2, &rank), -1);
    assert_int_equal(fixture->refusal_count, 2);
}

/* Silent strangers neither block the door nor use it up; a hello may come byte by byte. */
static void test_silent_strangers_do_not_block(void **state)
{
    struct fixture *fixture = *state;
    struct weft_hello hello = {.from = 0, .to = 2, .nonce = NONCE};
    struct weft_channel peer = channel_of(0, NONCE);
    int strangers[WEFT_DOOR_GUESTS + 3], pipe_fds[2], fd, theirs = -1;
    uint32_t rank = 99;

    for (size_t i = 0; i < sizeof(strangers) / sizeof(strangers[0]); i++) {
        strangers[i] = connect_to(fixture);
        assert_int_equal(weft_door_accept(&fixture->door, &fixture->channel, &rank), -1);
    }
    assert_int_equal(fixture->refusal_count, 3);
    /* The bytes of a hello, caught in a socket pair. */
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pipe_fds), 0);
    assert_int_equal(weft_door_knock(pipe_fds[0], &peer, 2), 0);
    assert_int_equal(recv(pipe_fds[1], &hello, sizeof(hello), 0), sizeof(hello));
    fd = connect_to(fixture);
    for (size_t i = 0; i < sizeof(hello); i++) {
        assert_int_equal(theirs, -1);
        assert_int_equal(send(fd, (const char *)&hello + i, 1, 0), 1);
        theirs = i + 1 < sizeof(hello) ? weft_door_accept(&fixture->door, &fixture->channel, &rank)
                                       : look(fixture, 0, &rank);
    }
    assert_true(theirs >= 0);
    assert_int_equal(rank, 0);
    close(theirs);
    close(fd);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    for (size_t i = 0; i < sizeof(strangers) / sizeof(strangers[0]); i++) {
        close(strangers[i]);
    }
}

static void test_interfaces(void **state)
{
    struct weft_netif_address addresses[8];
    char text[64];

    (void)state;
    assert_int_equal(weft_netif_list("127.0.0.1", addresses, 8), 1);
    assert_string_equal(weft_netif_text(&addresses[0], 80, text, sizeof(text)), "127.0.0.1:80");
    assert_int_equal(addresses[0].is_loopback, 1);
    assert_int_equal(weft_netif_list("127.5.0.0/8", addresses, 8), 1);
    assert_true(weft_netif_list("lo", addresses, 8) >= 1);
    assert_true(weft_netif_list(NULL, addresses, 8) >= 1);
    assert_int_equal(weft_netif_list("0.0.0.0/0", addresses, 1), 1);
    assert_int_equal(weft_netif_list("no-such-interface", addresses, 8), 0);
    assert_int_equal(weft_netif_list("127.0.0.2", addresses, 8), 0);
    assert_int_equal(weft_netif_list("127.0.0.0/", addresses, 8), 0);
    assert_int_equal(weft_netif_list("127.0.0.0/33", addresses, 8), 0);
    assert_int_equal(weft_netif_list("127.0.0.0/8x", addresses, 8), 0);
    assert_int_equal(weft_netif_list("", addresses, 8), 0);
}

/* Lists keep the order of their items and name nothing twice. */
static void test_interface_lists(void **state)
{
    struct weft_netif_address addresses[8], found;
    struct sockaddr_storage name;
    char text[64];

    (void)state;
    assert_int_equal(weft_netif_list("nothing,127.0.0.1,127.0.0.0/8,,127.0.0.1", addresses, 8), 1);
    assert_true(weft_netif_names("lo,127.0.0.0/8,mlx5_0:1,lo", text, sizeof(text)));
    assert_string_equal(text, "lo,mlx5_0:1");
    assert_false(weft_netif_names("mlx5_0:1,mlx5_1:1", text, 12));
    weft_netif_name_of(&addresses[0], text, sizeof(text));
    assert_string_equal(text, "lo");
    (void)weft_netif_sockaddr(&addresses[0], 80, &name);
    assert_true(weft_netif_from_sockaddr(&name, &found));
    assert_memory_equal(found.bytes, addresses[0].bytes, sizeof(found.bytes));
    weft_netif_name_of(&(struct weft_netif_address){.family = 4, .bytes = {192, 0, 2, 1}}, text, sizeof(text));
    assert_string_equal(text, "?");
    if (weft_netif_list("::1", addresses, 1) == 1) {
        assert_int_equal(weft_netif_list("::1,127.0.0.1", addresses, 8), 2);
        assert_int_equal(addresses[0].family, 6);
        assert_int_equal(weft_netif_list("127.0.0.1,::1", addresses, 8), 2);
        assert_int_equal(addresses[0].family, 4);
    }
}

static void test_subnets(void **state)
{
    const struct weft_netif_address a = {4, 20, 0, 0, {10, 1, 16, 5}}, b = {4, 24, 0, 0, {10, 1, 31, 200}},
                                    c = {4, 24, 0, 0, {10, 1, 32, 1}};
    const struct weft_netif_address v6 = {6, 64, 0, 0, {0xfd, 0, 0, 0, 0, 0, 0, 1, 9}},
                                    v6_near = {6, 64, 0, 0, {0xfd, 0, 0, 0, 0, 0, 0, 1, 7}},
                                    v6_far = {6, 64, 0, 0, {0xfd, 0, 0, 0, 0, 0, 0, 2, 9}};
    char text[64];

    (void)state;
    assert_true(weft_netif_is_same_subnet(&a, &b));
    assert_false(weft_netif_is_same_subnet(&b, &a)); /* b's own subnet is smaller */
    assert_false(weft_netif_is_same_subnet(&a, &c));
    assert_true(weft_netif_is_same_subnet(&v6, &v6_near));
    assert_false(weft_netif_is_same_subnet(&v6, &v6_far));
    assert_false(weft_netif_is_same_subnet(&a, &v6));
    assert_string_equal(weft_netif_text(&v6, 5001, text, sizeof(text)), "[fd00:0:0:1:900::]:5001");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_member_is_let_in, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_wrong_hello_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_other_protocols_are_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_silent_strangers_do_not_block, set_up, tear_down),
        cmocka_unit_test(test_interfaces),
        cmocka_unit_test(test_interface_lists),
        cmocka_unit_test(test_subnets),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
