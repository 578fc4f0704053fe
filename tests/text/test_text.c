/* Unit tests of the tokenizer: lookups, encode, decode, streaming, long words, configuration. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tiny.h"
#include "utf8.h"
#include "weft/log.h"

static void check_ids(const struct weft_tokenizer *tokenizer, const char *text, unsigned flags, const int32_t *expected,
                      size_t expected_count)
{
    int32_t *ids = NULL;
    size_t count = 0;

    assert_int_equal(weft_tokenizer_encode(tokenizer, text, strlen(text), flags, &ids, &count), WEFT_OK);
    assert_non_null(ids);
    assert_int_equal(count, expected_count);
    assert_memory_equal(ids, expected, count * sizeof(ids[0]));
    free(ids);
}

#define CHECK_IDS(tokenizer, text, flags, ...)                                                                         \
    check_ids(tokenizer, text, flags, (const int32_t[]){__VA_ARGS__},                                                  \
              sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static void check_text(const struct weft_tokenizer *tokenizer, const int32_t *ids, size_t count, bool is_skipped,
                       const char *expected)
{
    char *text = NULL;
    size_t size = 0;

    assert_int_equal(weft_tokenizer_decode(tokenizer, ids, count, is_skipped, &text, &size), WEFT_OK);
    assert_int_equal(size, strlen(expected));
    assert_string_equal(text, expected);
    free(text);
}

#define CHECK_TEXT(tokenizer, is_skipped, expected, ...)                                                               \
    check_text(tokenizer, (const int32_t[]){__VA_ARGS__}, sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t),    \
               is_skipped, expected)

static void test_sentencepiece(void **state)
{
    struct weft_tokenizer *tokenizer = tiny_open(tiny_sentencepiece);

    (void)state;
    CHECK_IDS(tokenizer, "a", 0, 265);
    CHECK_IDS(tokenizer, "a", WEFT_ENCODE_ADD_SPECIAL, 1, 265);
    CHECK_IDS(tokenizer, "ba", 0, 259, 261, 260);
    CHECK_IDS(tokenizer, "aab", 0, 259, 262, 261);
    CHECK_IDS(tokenizer, "\xC3\xA9x", 0, 259, 267, 3 + 'x');
    CHECK_IDS(tokenizer, "\xE2\x82\xAC", 0, 259, 3 + 0xE2, 3 + 0x82, 3 + 0xAC);
    CHECK_IDS(tokenizer, "b</s>b", 0, 259, 261, 2, 259, 261);
    CHECK_IDS(tokenizer, "\xFF", 0, 259, 3 + 0xEF, 3 + 0xBF, 3 + 0xBD);
    check_ids(tokenizer, "", 0, NULL, 0);
    CHECK_IDS(tokenizer, "", WEFT_ENCODE_ADD_SPECIAL, 1);
    CHECK_TEXT(tokenizer, true, "a b", 1, 265, 259, 261, 2);
    CHECK_TEXT(tokenizer, false, "<s> a</s>", 1, 265, 2);
    CHECK_TEXT(tokenizer, true, "\xE2\x82\xAC", 3 + 0xE2, 3 + 0x82, 3 + 0xAC);
    CHECK_TEXT(tokenizer, true,
               "\xEF\xBF\xBD\xEF\xBF\xBD"
               "a",
               3 + 0xE2, 3 + 0x82, 260);
    CHECK_TEXT(tokenizer, true, "b", 100000, -1, 261, INT32_MIN, INT32_MAX);
    check_text(tokenizer, NULL, 0, true, "");
    weft_tokenizer_close(&tokenizer);
    assert_null(tokenizer);
    weft_tokenizer_close(&tokenizer);
}

static void test_byte_level(void **state)
{
    struct weft_tokenizer *tokenizer = tiny_open(tiny_byte_level);

    (void)state;
    CHECK_IDS(tokenizer, "a a", 0, 'a', 259);
    CHECK_IDS(tokenizer, "aaa ab", 0, 256, 'a', 259, 'b');
    CHECK_IDS(tokenizer, "e\xCC\x81", 0, 0xC3, 0xA9); /* NFC */
    CHECK_IDS(tokenizer, "x<|end|>x", 0, 'x', 261, 'x');
    CHECK_TEXT(tokenizer, true, "x \xC3\xA9", 'x', ' ', 0xC3, 0xA9, 261);
    CHECK_TEXT(tokenizer, false, "x<|end|>", 'x', 261);
    CHECK_TEXT(tokenizer, true, "\xEF\xBF\xBDx", 0xE2, 0x82, 'x'); /* one for a cut character */
    weft_tokenizer_close(&tokenizer);
}

static void test_lookups(void **state)
{
    struct weft_tokenizer *tokenizer = tiny_open(tiny_sentencepiece);
    size_t size = 0;

    (void)state;
    assert_int_equal(weft_tokenizer_count(tokenizer), 268);
    assert_string_equal(weft_tokenizer_token(tokenizer, 265, &size), "\xE2\x96\x81"
                                                                     "a");
    assert_int_equal(size, 4);
    assert_string_equal(weft_tokenizer_bytes(tokenizer, 265, &size), " a");
    assert_string_equal(weft_tokenizer_bytes(tokenizer, 3 + '\n', &size), "\n");
    assert_memory_equal(weft_tokenizer_bytes(tokenizer, 3, &size), "\0", 1);
    assert_int_equal(size, 1);
    assert_memory_equal(weft_tokenizer_bytes(tokenizer, 3 + 0xE2, &size), "\xE2", 1);
    assert_null(weft_tokenizer_token(tokenizer, 268, NULL));
    assert_null(weft_tokenizer_bytes(tokenizer, -1, NULL));
    assert_int_equal(weft_tokenizer_id(tokenizer, "</s>", 4), 2);
    assert_int_equal(weft_tokenizer_id(tokenizer, "ab", 2), 266);
    assert_int_equal(weft_tokenizer_id(tokenizer, "abc", 3), -1);
    assert_true(weft_tokenizer_is_special(tokenizer, 1));
    assert_false(weft_tokenizer_is_special(tokenizer, 260));
    assert_false(weft_tokenizer_is_special(tokenizer, 100000));
    assert_string_equal(weft_tokenizer_role(tokenizer, WEFT_TOKEN_UNK), "<unk>");
    assert_int_equal(weft_tokenizer_role_id(tokenizer, WEFT_TOKEN_UNK), 0);
    assert_null(weft_tokenizer_role(tokenizer, WEFT_TOKEN_BOS));
    assert_int_equal(weft_tokenizer_role_id(tokenizer, WEFT_TOKEN_BOS), -1);
    assert_null(weft_tokenizer_chat_template(tokenizer));
    weft_tokenizer_close(&tokenizer);
}

/* ---- streaming ---- */

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

static void check_stream(const struct weft_tokenizer *tokenizer, struct weft_detokenizer *stream, const int32_t *ids,
                         size_t count)
{
    struct weft_bytes all = {0};
    const char *piece;
    char *whole = NULL;
    size_t size = 0;

    for (size_t i = 0; i <= count; i++) {
        assert_int_equal(i < count ? weft_detokenizer_push(stream, ids[i], &piece, &size)
                                   : weft_detokenizer_flush(stream, &piece, &size),
                         WEFT_OK);
        assert_int_equal(piece[size], '\0');
        assert_int_equal(weft_utf8_valid_size(piece, size), size);
        assert_int_equal(weft_bytes_append(&all, piece, size), WEFT_OK);
    }
    assert_int_equal(weft_tokenizer_decode(tokenizer, ids, count, true, &whole, &size), WEFT_OK);
    assert_int_equal(all.size, size);
    assert_memory_equal(all.data, whole, size);
    free(whole);
    weft_bytes_fini(&all);
}

static void stream_random(char *(*make)(void))
{
    struct weft_tokenizer *tokenizer = tiny_open(make);
    struct weft_detokenizer *stream = NULL;
    uint32_t seed = 1;
    int32_t ids[40];

    assert_int_equal(weft_detokenizer_open(tokenizer, true, &stream), WEFT_OK);
    for (int round = 0; round < 5000; round++) {
        size_t count = next_random(&seed) % 40;
        /* Half of the rounds only byte tokens of long characters: where cutting hurts. */
        uint32_t low = round % 2 == 0 ? 0 : 0x80, span = round % 2 == 0 ? 280 : 0x80;
        for (size_t i = 0; i < count; i++) {
            ids[i] = (int32_t)(low + next_random(&seed) % span);
        }
        check_stream(tokenizer, stream, ids, count);
    }
    weft_detokenizer_close(&stream);
    assert_null(stream);
    weft_detokenizer_close(&stream);
    weft_tokenizer_close(&tokenizer);
}

static void test_stream_equals_decode(void **state)
{
    (void)state;
    stream_random(tiny_sentencepiece);
    stream_random(tiny_byte_level);
}

static void test_stream_holds_back_only_what_it_must(void **state)
{
    struct weft_tokenizer *tokenizer = tiny_open(tiny_byte_level);
    struct weft_detokenizer *stream = NULL;
    const char *piece;
    size_t size;

    (void)state;
    assert_int_equal(weft_detokenizer_open(tokenizer, true, &stream), WEFT_OK);
    assert_int_equal(weft_detokenizer_push(stream, 'x', &piece, &size), WEFT_OK);
    assert_string_equal(piece, "x");
    assert_int_equal(weft_detokenizer_push(stream, 0xC3, &piece, &size), WEFT_OK);
    assert_string_equal(piece, "");
    assert_int_equal(weft_detokenizer_push(stream, 0xA9, &piece, &size), WEFT_OK);
    assert_string_equal(piece, "\xC3\xA9");
    assert_int_equal(weft_detokenizer_push(stream, 0xE2, &piece, &size), WEFT_OK);
    weft_detokenizer_reset(stream);
    assert_int_equal(weft_detokenizer_flush(stream, &piece, &size), WEFT_OK);
    assert_string_equal(piece, "");
    weft_detokenizer_close(&stream);
    weft_tokenizer_close(&tokenizer);
}

/* ---- size ---- */

/* One word of a megabyte: with anything quadratic this takes hours, and the test's own limit ends it. */
static void encode_long(char *(*make)(void), const char *unit, size_t id_count)
{
    struct weft_tokenizer *tokenizer = tiny_open(make);
    size_t size = 1 << 20, unit_size = strlen(unit), count = 0;
    char *text = malloc(size);
    int32_t *ids = NULL;

    assert_non_null(text);
    for (size_t i = 0; i < size; i++) {
        text[i] = unit[i % unit_size];
    }
    assert_int_equal(weft_tokenizer_encode(tokenizer, text, size / unit_size * unit_size, 0, &ids, &count), WEFT_OK);
    assert_int_equal(count, id_count);
    free(ids);
    free(text);
    weft_tokenizer_close(&tokenizer);
}

static void test_megabyte_of_one_letter(void **state)
{
    (void)state;
    encode_long(tiny_sentencepiece, "a", 1 + (1 << 20) / 8);
    encode_long(tiny_byte_level, "a", (1 << 20) / 8);
    encode_long(tiny_byte_level, " ", 1 << 20);
    encode_long(tiny_byte_level, "ab", 1 << 20 >> 1);
}

/* Combining marks in the worst order: canonical ordering must not be an insertion sort. */
static void test_megabyte_of_combining_marks(void **state)
{
    (void)state;
    encode_long(tiny_byte_level, "\xCC\x81\xCC\xA7", (1 << 20));
}

/* ---- folders ---- */

static void write_file(const char *folder, const char *name, const char *text)
{
    char path[256];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    assert_int_equal(fclose(file), 0);
}

static void remove_folder(const char *folder)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"};
    char path[256];

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
        (void)unlink(path);
    }
    assert_int_equal(rmdir(folder), 0);
}

static void test_folder(void **state)
{
    char folder[] = "/tmp/weft-text-XXXXXX";
    struct weft_tokenizer *tokenizer = NULL;
    char *text = tiny_sentencepiece();

    (void)state;
    assert_non_null(mkdtemp(folder));
    assert_int_equal(weft_tokenizer_open(folder, &tokenizer), WEFT_ERR_MISSING);
    assert_null(tokenizer);
    write_file(folder, "tokenizer.json", text);
    write_file(
        folder, "tokenizer_config.json",
        "{\"bos_token\": {\"content\": \"<s>\", \"lstrip\": false}, \"eos_token\": \"</s>\", \"pad_token\": null,"
        "\"unk_token\": \"<none>\", \"chat_template\": [{\"name\": \"tool\", \"template\": \"no\"},"
        "{\"name\": \"default\", \"template\": \"yes\"}]}");
    assert_int_equal(weft_tokenizer_open(folder, &tokenizer), WEFT_OK);
    assert_int_equal(weft_tokenizer_role_id(tokenizer, WEFT_TOKEN_BOS), 1);
    assert_int_equal(weft_tokenizer_role_id(tokenizer, WEFT_TOKEN_EOS), 2);
    assert_string_equal(weft_tokenizer_role(tokenizer, WEFT_TOKEN_UNK), "<none>");
    assert_int_equal(weft_tokenizer_role_id(tokenizer, WEFT_TOKEN_UNK), -1);
    assert_null(weft_tokenizer_role(tokenizer, WEFT_TOKEN_PAD));
    assert_string_equal(weft_tokenizer_chat_template(tokenizer), "yes");
    weft_tokenizer_close(&tokenizer);
    write_file(folder, "chat_template.jinja", "from the file");
    assert_int_equal(weft_tokenizer_open(folder, &tokenizer), WEFT_OK);
    assert_string_equal(weft_tokenizer_chat_template(tokenizer), "from the file");
    weft_tokenizer_close(&tokenizer);
    write_file(folder, "tokenizer_config.json", "{\"bos_token\": 7}");
    assert_int_equal(weft_tokenizer_open(folder, &tokenizer), WEFT_ERR_FORMAT);
    assert_non_null(strstr(weft_log_last_error(), "bos_token: expected a string"));
    free(text);
    remove_folder(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sentencepiece),
        cmocka_unit_test(test_byte_level),
        cmocka_unit_test(test_lookups),
        cmocka_unit_test(test_stream_equals_decode),
        cmocka_unit_test(test_stream_holds_back_only_what_it_must),
        cmocka_unit_test(test_megabyte_of_one_letter),
        cmocka_unit_test(test_megabyte_of_combining_marks),
        cmocka_unit_test(test_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
