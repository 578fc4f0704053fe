/* Tests of runtime/base: status names, log filter and sink, arena, JSON members and files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/json.h"
#include "weft/log.h"

struct capture {
    char line[1100];
    int count;
};

static void capture_sink(void *context, enum weft_log_level level, const char *line)
{
    struct capture *capture = context;

    (void)level;
    snprintf(capture->line, sizeof(capture->line), "%s", line);
    capture->count++;
}

static int capture_begin(void **state)
{
    static struct capture capture;

    capture = (struct capture){0};
    *state = &capture;
    weft_log_configure(WEFT_LOG_INFO, capture_sink, &capture);
    return 0;
}

static int capture_end(void **state)
{
    (void)state;
    weft_log_configure(WEFT_LOG_INFO, NULL, NULL);
    return 0;
}

static void test_status_names_are_distinct(void **state)
{
    (void)state;
    for (int a = 0; a >= WEFT_ERR_STATE; a--) {
        for (int b = a - 1; b >= WEFT_ERR_STATE; b--) {
            assert_string_not_equal(weft_status_name((enum weft_status)a), weft_status_name((enum weft_status)b));
        }
    }
    assert_string_equal(weft_status_name((enum weft_status)77), "unknown status");
}

static void test_log_filters_and_remembers_errors(void **state)
{
    struct capture *capture = *state;
    char text[3000];

    weft_log(WEFT_LOG_DEBUG, "a/b", "dropped");
    assert_int_equal(capture->count, 0);
    weft_log(WEFT_LOG_INFO, "a/b", "kept %d", 7);
    assert_string_equal(capture->line, "a/b: kept 7");
    assert_string_not_equal(weft_log_last_error(), "a/b: kept 7");
    weft_log(WEFT_LOG_ERROR, "c", "broken");
    assert_string_equal(weft_log_last_error(), "c: broken");
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    weft_log(WEFT_LOG_ERROR, "c", "%s", text);
    assert_int_equal(strlen(capture->line), 1023);
}

static void test_arena_aligns_zeroes_and_refuses_overflow(void **state)
{
    struct weft_arena arena = {0};

    (void)state;
    for (size_t size = 0; size < 300000; size = size * 3 + 1) {
        unsigned char *bytes = weft_arena_alloc(&arena, size, 1);
        assert_non_null(bytes);
        assert_int_equal((uintptr_t)bytes % 64, 0);
        for (size_t i = 0; i < size; i++) {
            assert_int_equal(bytes[i], 0);
        }
        memset(bytes, 0xff, size);
    }
    assert_null(weft_arena_alloc(&arena, SIZE_MAX / 2, 3));
    assert_null(weft_arena_alloc(&arena, SIZE_MAX, 1));
    assert_string_equal(weft_arena_text(&arena, "weft and warp", 4), "weft");
    weft_arena_fini(&arena);
    assert_null(arena.blocks);
    assert_int_equal(arena.size, 0);
}

static json_t *parse(const char *text)
{
    json_t *root = NULL;

    assert_int_equal(weft_json_parse("t.json", text, strlen(text), &root), WEFT_OK);
    return root;
}

static void test_json_int_checks_type_range_and_presence(void **state)
{
    struct capture *capture = *state;
    json_t *root = parse("{\"a\": 5, \"b\": \"x\", \"c\": 4096.0, \"d\": 1.5, \"e\": null, \"f\": 1e300}");
    struct weft_json_int_args args = {.name = "t.json", .key = "a", .min = 1, .max = 5000};
    int64_t value = -1;

    assert_int_equal(weft_json_int(root, &args, &value), WEFT_OK);
    assert_int_equal(value, 5);
    args.key = "c";
    assert_int_equal(weft_json_int(root, &args, &value), WEFT_OK);
    assert_int_equal(value, 4096);
    args.max = 4095;
    assert_int_equal(weft_json_int(root, &args, &value), WEFT_ERR_FORMAT);
    assert_string_equal(capture->line, "base/json: t.json: c: expected an integer in [1, 4095], found 4096.0");
    static const char *const wrong[] = {"b", "d", "e", "f", "missing"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        args.key = wrong[i];
        assert_int_equal(weft_json_int(root, &args, &value), WEFT_ERR_FORMAT);
        assert_int_equal(value, 4096);
    }
    args.has_fallback = true;
    args.fallback = 42;
    assert_int_equal(weft_json_int(root, &args, &value), WEFT_OK);
    assert_int_equal(value, 42);
    args.key = "b";
    assert_int_equal(weft_json_int(root, &args, &value), WEFT_ERR_FORMAT);
    json_decref(root);
}

static void test_json_real_and_bool(void **state)
{
    json_t *root = parse("{\"a\": 0.5, \"b\": true, \"c\": 3, \"d\": \"0.5\"}");
    double fallback = 2.0, real = 0.0;
    bool flag = false;

    (void)state;
    assert_int_equal(weft_json_real(root, "t", "a", NULL, &real), WEFT_OK);
    assert_true(real == 0.5);
    assert_int_equal(weft_json_real(root, "t", "c", NULL, &real), WEFT_OK);
    assert_true(real == 3.0);
    assert_int_equal(weft_json_real(root, "t", "z", &fallback, &real), WEFT_OK);
    assert_true(real == 2.0);
    assert_int_equal(weft_json_real(root, "t", "z", NULL, &real), WEFT_ERR_FORMAT);
    assert_int_equal(weft_json_real(root, "t", "d", &fallback, &real), WEFT_ERR_FORMAT);
    assert_int_equal(weft_json_bool(root, "t", "b", false, &flag), WEFT_OK);
    assert_true(flag);
    assert_int_equal(weft_json_bool(root, "t", "z", true, &flag), WEFT_OK);
    assert_true(flag);
    assert_int_equal(weft_json_bool(root, "t", "a", true, &flag), WEFT_ERR_FORMAT);
    json_decref(root);
}

static void test_files_and_damaged_json(void **state)
{
    struct capture *capture = *state;
    char path[] = "/tmp/weft-test-base-XXXXXX";
    int fd = mkstemp(path);
    json_t *root = NULL;
    char *text;
    size_t size;

    assert_true(fd >= 0);
    assert_int_equal(write(fd, "{\"a\": [1, 2}", 12), 12);
    close(fd);
    assert_int_equal(weft_json_read(path, 1000, &root), WEFT_ERR_FORMAT);
    assert_non_null(strstr(capture->line, "not valid JSON at line 1"));
    assert_null(root);
    assert_int_equal(weft_file_read(path, 11, &text, &size), WEFT_ERR_LIMIT);
    assert_int_equal(weft_file_read(path, 12, &text, &size), WEFT_OK);
    assert_int_equal(size, 12);
    assert_int_equal(text[12], '\0');
    free(text);
    assert_int_equal(weft_file_read("/tmp", 100, &text, &size), WEFT_ERR_MISSING);
    unlink(path);
    assert_int_equal(weft_file_read(path, 100, &text, &size), WEFT_ERR_MISSING);
    assert_non_null(strstr(capture->line, "No such file"));
    char *deep = malloc(200001);
    assert_non_null(deep);
    memset(deep, '[', 200000);
    deep[200000] = '\0';
    assert_int_equal(weft_json_parse("deep", deep, 200000, &root), WEFT_ERR_FORMAT);
    free(deep);
}

static void test_kept_error_is_not_emitted(void **state)
{
    struct capture *capture = *state;

    weft_log_keep_error("prompt of %d tokens", 7);
    assert_string_equal(weft_log_last_error(), "prompt of 7 tokens");
    weft_log_keep_error("again: %s", weft_log_last_error());
    assert_string_equal(weft_log_last_error(), "again: prompt of 7 tokens");
    weft_log_set_quiet(true);
    weft_log(WEFT_LOG_ERROR, "test", "unheard");
    weft_log_set_quiet(false);
    assert_string_equal(weft_log_last_error(), "test: unheard");
    assert_int_equal(capture->count, 0);
}

static void test_json_integers_beyond_64_bits(void **state)
{
    const char *text = "{\"model_max_length\": 1000000000000000019884624838656, \"n\": 7}";
    const struct weft_json_int_args args = {.name = "t", .key = "n", .min = 0, .max = 10};
    int64_t number;
    json_t *root;

    (void)state;
    assert_int_equal(weft_json_parse("t", text, strlen(text), &root), WEFT_OK);
    assert_int_equal(weft_json_int(root, &args, &number), WEFT_OK);
    assert_int_equal(number, 7);
    json_decref(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_status_names_are_distinct),
        cmocka_unit_test_setup_teardown(test_log_filters_and_remembers_errors, capture_begin, capture_end),
        cmocka_unit_test_setup_teardown(test_kept_error_is_not_emitted, capture_begin, capture_end),
        cmocka_unit_test_setup_teardown(test_arena_aligns_zeroes_and_refuses_overflow, capture_begin, capture_end),
        cmocka_unit_test_setup_teardown(test_json_int_checks_type_range_and_presence, capture_begin, capture_end),
        cmocka_unit_test_setup_teardown(test_json_real_and_bool, capture_begin, capture_end),
        cmocka_unit_test_setup_teardown(test_json_integers_beyond_64_bits, capture_begin, capture_end),
        cmocka_unit_test_setup_teardown(test_files_and_damaged_json, capture_begin, capture_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
