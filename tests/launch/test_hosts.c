/* --hosts: the list, and what the hosts are told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* after those four */
#include <cmocka.h>

#include "hosts.h"
#include "weft/weft.h"

const char *weft_version(void)
{
    return "1.2.3";
}

static void test_lists(void **state)
{
    static const struct {
        const char *text;
        const char *expected; /* "name/slots ...", or a part of the refusal */
        bool is_fine;
    } cases[] = {
        {"a", "a/1", true},
        {"a,b:2,user@c.example.org:10", "a/1 b/2 user@c.example.org/10", true},
        {"[fd00::1],[fd00::2]:3", "fd00::1/1 fd00::2/3", true},
        {"10.0.0.1,10.0.0.2:2", "10.0.0.1/1 10.0.0.2/2", true},
        {"", "expected host names such as a,b:2, found \"\"", false},
        {"a,,b", "expected host names", false},
        {"a,", "expected host names", false},
        {"a:0", "found \"a:0\"", false},
        {"a:65", "found \"a:65\"", false},
        {"a:x", "found \"a:x\"", false},
        {"a:2x", "found \"a:2x\"", false},
        {"a:", "found \"a:\"", false},
        {"fd00::1", "[V6] for IPv6", false},
        {"a,-oProxyCommand=x", "found \"-oProxyCommand=x\"", false},
        {"a,b,a", "\"a\" stands there twice: expected a:2 for two ranks", false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct weft_host_list list;
        char error[WEFT_HOSTS_ERROR_SIZE] = "";
        char shown[256] = "";

        assert_int_equal(weft_host_list_parse(cases[i].text, &list, error), cases[i].is_fine);
        for (uint32_t k = 0; cases[i].is_fine && k < list.count; k++) {
            size_t used = strlen(shown);

            (void)snprintf(shown + used, sizeof(shown) - used, "%s%s/%u", k == 0 ? "" : " ", list.names[k],
                           list.slots[k]);
        }
        if (strstr(cases[i].is_fine ? shown : error, cases[i].expected) == NULL) {
            fail_msg("\"%s\": expected \"%s\", found \"%s\"", cases[i].text, cases[i].expected,
                     cases[i].is_fine ? shown : error);
        }
    }
}

static void test_too_many(void **state)
{
    struct weft_host_list list;
    char error[WEFT_HOSTS_ERROR_SIZE];
    char text[1024] = "h0";

    (void)state;
    for (int i = 1; i <= WEFT_HOSTS_MAX; i++) {
        assert_true(weft_host_list_parse(text, &list, error));
        (void)sprintf(text + strlen(text), ",h%d", i);
    }
    assert_false(weft_host_list_parse(text, &list, error));
}

static void test_hostfile(void **state)
{
    char path[] = "/tmp/weft-hostfile-XXXXXX";
    char text[WEFT_HOSTS_TEXT_SIZE], error[WEFT_HOSTS_ERROR_SIZE];
    struct weft_host_list list;
    int fd = mkstemp(path);
    FILE *file;

    (void)state;
    assert_true(fd >= 0);
    file = fdopen(fd, "w");
    fputs("# two racks\n\nnode0 slots=2 max_slots=8\n  root@node1\tmax_slots=3 slots=4 # here\nfd00::7\nnode2:3\n"
          "[fd00::8]:5\nnode3 slots=x",
          file);
    fclose(file);
    assert_true(weft_hostfile_read(path, text, sizeof(text), error));
    assert_string_equal(text, "node0:2,root@node1:4,[fd00::7]:1,node2:3,[fd00::8]:5,node3:x");
    assert_false(weft_host_list_parse(text, &list, error)); /* and says which */
    assert_false(weft_hostfile_read(path, text, 20, error));
    assert_non_null(strstr(error, "too many hosts"));
    file = fopen(path, "w");
    fputs("# nobody\n", file);
    fclose(file);
    assert_false(weft_hostfile_read(path, text, sizeof(text), error));
    assert_non_null(strstr(error, "no host in it"));
    unlink(path);
    assert_false(weft_hostfile_read(path, text, sizeof(text), error));
    assert_non_null(strstr(error, "No such file"));
}

static void test_who_runs_where(void **state)
{
    struct weft_host_list list;
    char error[WEFT_HOSTS_ERROR_SIZE];

    (void)state;
    assert_true(weft_host_list_parse("a:2,b,c:3", &list, error));
    assert_int_equal(list.rank_count, 6);
    for (uint32_t rank = 0; rank < 6; rank++) {
        assert_string_equal(weft_host_list_of(&list, rank), rank < 2 ? "a" : rank == 2 ? "b" : "c");
    }
}

/* The texts of an invitation, one a line, without the folder and whatever this test's environment has. */
static void shown(const char *invitation, size_t size, char *out)
{
    size_t used = 0;

    for (size_t at = 0; at < size; at += strlen(invitation + at) + 1) {
        const char *text = invitation + at;

        if (text[0] != 'D' && (text[0] != 'V' || strncmp(text, "VWEFT_", 6) == 0)) {
            used += (size_t)sprintf(out + used, "%s\n", text);
        }
    }
}

static void test_invitation(void **state)
{
    static char invitation[WEFT_JOIN_SIZE];
    static char text[WEFT_JOIN_SIZE];
    char *arguments[] = {"--hosts", "a:2,b,c:3", "--model", "x y"};
    const struct weft_settings settings = {.command = "serve", .arguments = arguments, .argument_count = 4};
    struct weft_host_list list;
    struct weft_hosts_args args = {
        .list = &list, .settings = &settings, .leader_host = "a", .leader_port = 5000, .secret = "s3"};
    char error[WEFT_HOSTS_ERROR_SIZE];
    size_t size;

    (void)state;
    assert_true(weft_host_list_parse(arguments[1], &list, error));
    clearenv();
    setenv("WEFT_CONTEXT", "512", 1);
    setenv("WEFT_SECRET", "other", 1); /* this and the next: the leader's own */
    setenv("WEFT_HOSTS", "z", 1);
    setenv("WEFT_RANK", "7", 1);
    setenv("HOME", "/", 1);
    size = weft_hosts_invitation(&args, 2, invitation);
    assert_int_equal(invitation[size - 1], 0);
    shown(invitation, size, text);
    assert_string_equal(text, "weft-join\n1.2.3\nVWEFT_CONTEXT=512\nVWEFT_SECRET=s3\nAserve\nA--leader\nAa:5000\n"
                              "A--rank=3\nA--ranks=6\nA--local-ranks=3\nA--hosts\nAa:2,b,c:3\nA--model\nAx y\n\n");
    args.leader_host = "fd00::1";
    size = weft_hosts_invitation(&args, 1, invitation);
    shown(invitation, size, text);
    assert_non_null(strstr(text, "A[fd00::1]:5000\nA--rank=2\nA--ranks=6\nA--hosts"));
    arguments[3] = calloc(1, WEFT_JOIN_SIZE);
    memset(arguments[3], 'x', WEFT_JOIN_SIZE - 1);
    assert_int_equal(weft_hosts_invitation(&args, 1, invitation), 0);
    free(arguments[3]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lists),          cmocka_unit_test(test_too_many),   cmocka_unit_test(test_hostfile),
        cmocka_unit_test(test_who_runs_where), cmocka_unit_test(test_invitation),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
