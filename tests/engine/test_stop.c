/* Stop strings: for every way to cut a text into pieces the answer is the same. */
#include "engine_test.h"

#include <string.h>

#include "engine/stop.h"

enum { TEXT_SIZE_MAX = 64 };

/* Feeds `text` in pieces whose ends are the set bits of `cuts`; what came out goes to shown[]. */
static bool feed(struct weft_stop *stop, const char *text, unsigned cuts, char *shown)
{
    size_t size = strlen(text);
    size_t begin = 0;
    bool is_stopped = false;
    const char *out;
    size_t out_size;

    shown[0] = '\0';
    for (size_t i = 1; i <= size && !is_stopped; i++) {
        if (i < size && (cuts >> (i - 1) & 1U) == 0) {
            continue;
        }
        assert_int_equal(weft_stop_push(stop, text + begin, i - begin, &out, &out_size, &is_stopped), WEFT_OK);
        strncat(shown, out, out_size);
        begin = i;
    }
    if (!is_stopped) {
        weft_stop_flush(stop, &out, &out_size);
        strncat(shown, out, out_size);
    }
    return is_stopped;
}

static void test_every_cut_gives_the_same_answer(void **state)
{
    static const struct {
        const char *stops[3];
        size_t count;
        const char *text;
        const char *shown;
        bool is_stopped;
    } cases[] = {
        {{"END"}, 1, "a END b", "a ", true},
        {{"END"}, 1, "a EN", "a EN", false},
        {{"END"}, 1, "EEEND", "EE", true},
        {{"aab"}, 1, "aaaab", "aa", true},
        {{"\n\n", "###"}, 2, "x\n##", "x\n##", false},
        {{"\n\n", "###"}, 2, "x\n#\n\ny", "x\n#", true},
        {{"abab"}, 1, "abaabab", "aba", true},
        {{"é"}, 1, "caf\xc3\xa9 x", "caf", true},
    };

    (void)state;
    for (size_t i = 0; i < TEST_COUNT(cases); i++) {
        for (unsigned cuts = 0; cuts < 1U << (strlen(cases[i].text) - 1); cuts++) {
            struct weft_stop stop;
            char shown[TEXT_SIZE_MAX];
            assert_int_equal(weft_stop_init(&stop, cases[i].stops, cases[i].count), WEFT_OK);
            assert_int_equal(feed(&stop, cases[i].text, cuts, shown), cases[i].is_stopped);
            assert_string_equal(shown, cases[i].shown);
            weft_stop_fini(&stop);
        }
    }
}

static void test_only_a_possible_beginning_is_held_back(void **state)
{
    const char *const stops[] = {"STOP"};
    struct weft_stop stop;
    const char *out;
    size_t size;
    bool is_stopped;

    (void)state;
    assert_int_equal(weft_stop_init(&stop, stops, 1), WEFT_OK);
    assert_int_equal(weft_stop_push(&stop, "one ST", 6, &out, &size, &is_stopped), WEFT_OK);
    assert_int_equal(size, 4);
    assert_memory_equal(out, "one ", 4);
    assert_int_equal(weft_stop_push(&stop, "AR", 2, &out, &size, &is_stopped), WEFT_OK);
    assert_int_equal(size, 4);
    assert_memory_equal(out, "STAR", 4);
    assert_false(is_stopped);
    weft_stop_fini(&stop);
}

static void test_a_complete_string_wins_over_a_longer_possible_one(void **state)
{
    const char *const stops[] = {"abcd", "bc"};
    struct weft_stop stop;
    char shown[TEXT_SIZE_MAX];

    (void)state;
    assert_int_equal(weft_stop_init(&stop, stops, 2), WEFT_OK);
    assert_true(feed(&stop, "xabcd", 0xF, shown));
    assert_string_equal(shown, "xa");
    weft_stop_fini(&stop);
}

static void test_bad_strings_are_refused(void **state)
{
    const char *many[WEFT_STOP_COUNT_MAX + 1];
    char large[WEFT_STOP_SIZE_MAX + 2];
    const char *const empty[] = {"a", ""};
    const char *const too_large[] = {large};
    struct weft_stop stop;

    (void)state;
    memset(large, 'x', sizeof(large) - 1);
    large[sizeof(large) - 1] = '\0';
    for (size_t i = 0; i < TEST_COUNT(many); i++) {
        many[i] = "s";
    }
    assert_int_equal(weft_stop_init(&stop, many, TEST_COUNT(many)), WEFT_ERR_ARGUMENT);
    assert_int_equal(weft_stop_init(&stop, empty, 2), WEFT_ERR_ARGUMENT);
    assert_int_equal(weft_stop_init(&stop, too_large, 1), WEFT_ERR_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_cut_gives_the_same_answer),
        cmocka_unit_test(test_only_a_possible_beginning_is_held_back),
        cmocka_unit_test(test_a_complete_string_wins_over_a_longer_possible_one),
        cmocka_unit_test(test_bad_strings_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
