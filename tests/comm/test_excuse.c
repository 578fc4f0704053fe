/* Ranks that meet only to say that they cannot take part (weft_bootstrap_tcp_options.trouble). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "opener.h"

enum { RANK_COUNT = 4 };

static struct place free_place(void)
{
    static int mark = -1;

    return place_take(&mark);
}

static uint32_t count_in(const char *text, const char *what)
{
    uint32_t count = 0;

    for (; (text = strstr(text, what)) != NULL; text++) {
        count++;
    }
    return count;
}

static void check_error(const struct opener *opener, const char *end)
{
    size_t size = strlen(opener->error);

    if (size < strlen(end) || strcmp(opener->error + size - strlen(end), end) != 0) {
        fail_msg("expected \"...%s\", found \"%s\"", end, opener->error);
    }
}

/* Rank 2 has trouble; come: how many ranks come at all. */
static void check_worker(uint32_t come)
{
    static const char reason[] = " failed: cannot take part: its disk is full";
    struct opener openers[RANK_COUNT] = {{.status = WEFT_OK}};
    struct place place = free_place();
    struct listener listener = {.text = ""};

    listen_to_the_log(&listener);
    for (uint32_t i = 0; i < come; i++) {
        openers[i].options.secret = "a";
        openers[i].options.trouble = i == 2 ? "its disk is full" : NULL;
        openers[i].options.trouble_status = i == 2 ? WEFT_ERR_LIMIT : WEFT_OK;
        start(&openers[i], &place, i, RANK_COUNT);
    }
    for (uint32_t i = 0; i < come; i++) {
        pthread_join(openers[i].thread, NULL);
        assert_int_equal(openers[i].status, i == 2 ? WEFT_ERR_STATE : i == 0 ? WEFT_ERR_LIMIT : WEFT_ERR_PEER);
        assert_null(openers[i].bootstrap);
    }
    weft_log_configure(WEFT_LOG_INFO, NULL, NULL);
    assert_non_null(strstr(openers[0].error, "comm/bootstrap: rank 2 on "));
    check_error(&openers[0], reason);
    assert_non_null(strstr(openers[1].error, reason));
    /* Once by the leader, once by each of the others; nothing by the rank itself, and nobody was said to be missing. */
    assert_int_equal(count_in(listener.text, "cannot take part"), come - 1);
    assert_int_equal(count_in(listener.text, "\n"), come - 1);
}

static void test_a_worker_cannot_take_part(void **state)
{
    (void)state;
    check_worker(RANK_COUNT);
}

/* Nobody waits for who has not come. */
static void test_others_are_missing(void **state)
{
    (void)state;
    check_worker(RANK_COUNT - 1);
}

static void test_a_worker_without_a_number_cannot_take_part(void **state)
{
    struct opener openers[2] = {{.status = WEFT_OK}};
    struct place place = free_place();

    (void)state;
    openers[1].options.trouble = "no GPU";
    start(&openers[0], &place, 0, 3);
    start(&openers[1], &place, WEFT_BOOTSTRAP_RANK_ANY, 3);
    finish(&openers[1], 1, WEFT_ERR_STATE);
    finish(&openers[0], 1, WEFT_ERR_PEER);
    assert_non_null(strstr(openers[0].error, "comm/bootstrap: rank 1 on "));
    check_error(&openers[0], " failed: cannot take part: no GPU");
}

/* The leader has it itself; whatever a worker has besides is not told of. */
static void test_the_leader_cannot_take_part(void **state)
{
    struct opener openers[RANK_COUNT] = {{.status = WEFT_OK}};
    struct place place = free_place();

    (void)state;
    openers[0].options.trouble = "no such model";
    openers[3].options.trouble = "no such model here either";
    for (uint32_t i = 0; i < RANK_COUNT; i++) {
        start(&openers[i], &place, i, RANK_COUNT);
    }
    for (uint32_t i = 0; i < RANK_COUNT; i++) {
        pthread_join(openers[i].thread, NULL);
        assert_int_equal(openers[i].status, i % 3 == 0 ? WEFT_ERR_STATE : WEFT_ERR_PEER);
        if (i % 3 != 0) {
            assert_non_null(strstr(openers[i].error, "comm/bootstrap: rank 0 on "));
            check_error(&openers[i], " failed: cannot take part: no such model");
        }
    }
}

/* Who does not know the secret has no say in it. */
static void test_a_stranger_ends_nothing(void **state)
{
    struct opener stranger = {.options = {.secret = "b", .trouble = "I say so"}};
    struct opener openers[3] = {{.status = WEFT_OK}};
    struct place place = free_place();

    (void)state;
    for (uint32_t i = 0; i < 3; i++) {
        openers[i].options.secret = "a";
    }
    start(&openers[0], &place, 0, 3);
    start(&stranger, &place, 1, 3);
    pthread_join(stranger.thread, NULL);
    assert_int_equal(stranger.status, WEFT_ERR_PEER);
    assert_non_null(strstr(stranger.error, "the secret differs"));
    start(&openers[1], &place, 1, 3);
    start(&openers[2], &place, 2, 3);
    finish(openers, 3, WEFT_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_worker_cannot_take_part),
        cmocka_unit_test(test_others_are_missing),
        cmocka_unit_test(test_a_worker_without_a_number_cannot_take_part),
        cmocka_unit_test(test_the_leader_cannot_take_part),
        cmocka_unit_test(test_a_stranger_ends_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
