/* What a damaged or unsupported tokenizer.json says: one line each, never a crash. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tiny.h"
#include "weft/log.h"

static int line_count;

static void count_lines(void *context, enum weft_log_level level, const char *line)
{
    (void)context;
    (void)line;
    line_count += level == WEFT_LOG_ERROR;
}

/* A tiny tokenizer.json with the first `from` in it replaced by `to`. */
static char *damaged(char *(*make)(void), const char *from, const char *to)
{
    char *text = make();
    char *found = strstr(text, from);
    char *result = malloc(strlen(text) + strlen(to) + 1);

    assert_non_null(found);
    assert_non_null(result);
    *found = '\0';
    sprintf(result, "%s%s%s", text, to, found + strlen(from));
    free(text);
    return result;
}

struct damage {
    char *(*make)(void);
    const char *from;
    const char *to;
    enum weft_status status;
    const char *line; /* part of the error line */
};

static const struct damage damages[] = {
    {tiny_sentencepiece, "\"1.0\"", "\"2.0\"", WEFT_ERR_UNSUPPORTED, "version \"2.0\" is not supported"},
    {tiny_sentencepiece, "\"model\": {", "\"model\": [", WEFT_ERR_FORMAT, "not valid JSON"},
    {tiny_sentencepiece, "\"BPE\"", "\"Unigram\"", WEFT_ERR_UNSUPPORTED, "model: Unigram is not supported"},
    {tiny_sentencepiece, "\"BPE\"", "7", WEFT_ERR_FORMAT, "model: type: expected a string"},
    {tiny_sentencepiece, "\"vocab\"", "\"vocab_\"", WEFT_ERR_FORMAT, "vocab: expected an object"},
    {tiny_sentencepiece, "\"merges\"", "\"merges_\"", WEFT_ERR_FORMAT, "merges: expected a list"},
    {tiny_sentencepiece, "\"a\": 260", "\"a\": -1", WEFT_ERR_FORMAT, "vocab: not valid at its byte"},
    {tiny_sentencepiece, "\"a\": 260", "\"a\": 99999999", WEFT_ERR_FORMAT, "an id of at most 16777215"},
    {tiny_sentencepiece, "\"a\": 260", "\"a\": 300.5", WEFT_ERR_FORMAT, "a comma or the end"},
    {tiny_sentencepiece, "\"a\": 260", "\"a\": 261", WEFT_ERR_FORMAT, "the token or the id is there already"},
    {tiny_sentencepiece, "\"a\": 260", "\"b\": 260", WEFT_ERR_FORMAT, "the token or the id is there already"},
    {tiny_sentencepiece, "\"a\": 260", "\"\\ud800\": 260", WEFT_ERR_FORMAT, "surrogate"},
    {tiny_sentencepiece, "\"a\": 260", "\"\\q\": 260", WEFT_ERR_FORMAT, "an escape of JSON"},
    {tiny_sentencepiece, "\"a\": 260", "\"\xFF\": 260", WEFT_ERR_FORMAT, "valid UTF-8"},
    {tiny_sentencepiece, "\"a\": 260", "\"a\" 260", WEFT_ERR_FORMAT, "expected ':'"},
    {tiny_sentencepiece, "\"a a\"", "\"a a a\"", WEFT_ERR_FORMAT, "entry 0: expected \"left right\""},
    {tiny_sentencepiece, "\"a a\"", "[\"a\"]", WEFT_ERR_FORMAT, "merges: not valid at its byte"},
    {tiny_sentencepiece, "\"a a\"", "\"b b\"", WEFT_ERR_FORMAT, "needs \"bb\", which is not in the vocabulary"},
    {tiny_sentencepiece, "\"fuse_unk\"", "\"dropout\": 0.1, \"fuse_unk\"", WEFT_ERR_UNSUPPORTED, "dropout 0.1"},
    {tiny_sentencepiece, "\"fuse_unk\": true", "\"fuse_unk\": 1", WEFT_ERR_FORMAT, "fuse_unk: expected true or false"},
    {tiny_sentencepiece, "\"Prepend\"", "\"Precompiled\"", WEFT_ERR_UNSUPPORTED,
     "normalizer: Precompiled is not supported (supported: Prepend"},
    {tiny_sentencepiece, "\"prepend\"", "\"prepand\"", WEFT_ERR_FORMAT, "prepend: expected a string, found nothing"},
    {tiny_sentencepiece, "{\"String\": \" \"}", "{\"Text\": \" \"}", WEFT_ERR_FORMAT, "String: expected a string"},
    {tiny_sentencepiece, "{\"String\": \" \"}", "{\"Regex\": \"a(\"}", WEFT_ERR_UNSUPPORTED, "a ( without its )"},
    {tiny_sentencepiece, "{\"String\": \" \"}", "{\"Regex\": \"*\"}", WEFT_ERR_FORMAT, "regular expression at byte"},
    {tiny_sentencepiece, "{\"String\": \" \"}", "{\"Regex\": \"[a[^b]]\"}", WEFT_ERR_UNSUPPORTED,
     "such a class inside"},
    {tiny_sentencepiece, "{\"String\": \" \"}", "{\"Regex\": \"[a&&b]\"}", WEFT_ERR_UNSUPPORTED, "&& inside"},
    {tiny_sentencepiece, "{\"String\": \" \"}", "{\"Regex\": \"\\\\p{Nonsense}\"}", WEFT_ERR_FORMAT, "Nonsense"},
    {tiny_sentencepiece, "\"normalizers\"", "\"items\"", WEFT_ERR_FORMAT, "normalizers: expected a list"},
    {tiny_sentencepiece, "\"TemplateProcessing\"", "\"Other\"", WEFT_ERR_UNSUPPORTED, "post_processor: Other"},
    {tiny_sentencepiece, "{\"ids\": [1]}", "{\"ids\": 1}", WEFT_ERR_FORMAT, "special_tokens has no ids for \"<s>\""},
    {tiny_sentencepiece, "{\"id\": \"A\"}", "{\"id\": \"B\"}", WEFT_ERR_FORMAT, "the sequence A exactly once"},
    {tiny_sentencepiece, "\"ByteFallback\"", "\"CTC\"", WEFT_ERR_UNSUPPORTED, "decoder: CTC is not supported"},
    {tiny_sentencepiece, "\"start\": 1", "\"start\": -1", WEFT_ERR_FORMAT, "start: expected an integer"},
    {tiny_sentencepiece, "\"content\": \" \", \"start", "\"content\": \"\", \"start", WEFT_ERR_FORMAT,
     "exactly one character"},
    {tiny_sentencepiece, "\"added_tokens\": [", "\"added_tokens\": [7, ", WEFT_ERR_FORMAT, "content: expected"},
    {tiny_sentencepiece, "\"content\": \"<unk>\"", "\"content\": null", WEFT_ERR_FORMAT, "content: expected a string"},
    {tiny_byte_level, "\"ByteLevel\", \"add", "\"UnicodeScripts\", \"add", WEFT_ERR_UNSUPPORTED,
     "pre_tokenizer: UnicodeScripts is not supported"},
    {tiny_byte_level, "{\"type\": \"ByteLevel\", \"add_prefix_space\": false}", "[]", WEFT_ERR_FORMAT,
     "pre_tokenizer: expected an object with a \"type\""},
    {tiny_byte_level, "{\"type\": \"ByteLevel\", \"add_prefix_space\": false}",
     "{\"type\": \"Split\", \"pattern\": {\"String\": \"a\"}, \"behavior\": \"Sideways\", \"invert\": false}",
     WEFT_ERR_FORMAT, "behavior: expected Removed"},
    {tiny_byte_level, "{\"type\": \"ByteLevel\", \"add_prefix_space\": false}",
     "{\"type\": \"Metaspace\", \"replacement\": \"_\", \"prepend_scheme\": \"last\"}", WEFT_ERR_FORMAT,
     "prepend_scheme: expected always, first or never"},
    {tiny_byte_level, "\"NFC\"", "\"BertNormalizer\"", WEFT_ERR_UNSUPPORTED, "normalizer: BertNormalizer"},
};

static enum weft_status parse(const char *text, size_t size)
{
    struct weft_tokenizer *tokenizer = NULL;
    enum weft_status status = weft_tokenizer_parse("tokenizer.json", text, size, NULL, 0, &tokenizer);

    assert_true((tokenizer != NULL) == (status == WEFT_OK));
    weft_tokenizer_close(&tokenizer);
    return status;
}

static void test_damages_give_one_clear_line(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
        char *text = damaged(damages[i].make, damages[i].from, damages[i].to);
        line_count = 0;
        enum weft_status status = parse(text, strlen(text));
        if (status != damages[i].status || line_count != 1 || strstr(weft_log_last_error(), damages[i].line) == NULL) {
            fail_msg("%s -> %s: status %d, expected %d; %d lines, the last is \"%s\", expected \"%s\"", damages[i].from,
                     damages[i].to, (int)status, (int)damages[i].status, line_count, weft_log_last_error(),
                     damages[i].line);
        }
        assert_non_null(strstr(weft_log_last_error(), "tokenizer.json"));
        free(text);
    }
}

/* A file cut anywhere is refused: no prefix of a tokenizer.json is one. */
static void test_every_prefix_is_refused(void **state)
{
    char *text = tiny_sentencepiece();
    size_t size = strlen(text);

    (void)state;
    for (size_t i = 0; i < size; i++) {
        /* A copy of its own, so that a sanitizer sees every byte read behind the end. */
        char *part = malloc(i + 1);
        assert_non_null(part);
        memcpy(part, text, i);
        assert_int_equal(parse(part, i), WEFT_ERR_FORMAT);
        free(part);
    }
    assert_int_equal(parse(text, size), WEFT_OK);
    free(text);
}

/* One byte changed anywhere: whatever comes, comes without a crash. */
static void test_changed_bytes_do_no_harm(void **state)
{
    static const char bytes[] = "\"{}[],:\\0x \xFF";
    char *text = tiny_sentencepiece();
    size_t size = strlen(text), refused = 0;

    (void)state;
    for (size_t i = 0; i < size; i++) {
        char old = text[i];
        text[i] = bytes[i % (sizeof(bytes) - 1)];
        refused += parse(text, size) != WEFT_OK;
        text[i] = old;
    }
    assert_true(refused > size / 4);
    free(text);
}

static void test_deep_nesting_is_refused(void **state)
{
    enum { DEPTH = 500 };
    char text[64 * DEPTH] = "{\"normalizer\": ";

    (void)state;
    for (int i = 0; i < DEPTH; i++) {
        strcat(text, "{\"type\": \"Sequence\", \"normalizers\": [");
    }
    for (int i = 0; i < DEPTH; i++) {
        strcat(text, "]}");
    }
    strcat(text, ", \"model\": {\"type\": \"BPE\", \"vocab\": {}, \"merges\": []}}");
    assert_int_equal(parse(text, strlen(text)), WEFT_ERR_LIMIT);
}

static enum weft_status encode_count(const char *json, const char *text, size_t *count_out)
{
    struct weft_tokenizer *tokenizer = NULL;
    int32_t *ids = NULL;

    assert_int_equal(weft_tokenizer_parse("tokenizer.json", json, strlen(json), NULL, 0, &tokenizer), WEFT_OK);
    enum weft_status status = weft_tokenizer_encode(tokenizer, text, strlen(text), 0, &ids, count_out);
    free(ids);
    weft_tokenizer_close(&tokenizer);
    return status;
}

/* Unknown characters vanish without an unk_token; with one that is no token, encoding says so. */
static void test_unknown_characters(void **state)
{
    size_t count = 7;

    (void)state;
    assert_int_equal(encode_count("{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": []}}", "xax", &count), WEFT_OK);
    assert_int_equal(count, 1);
    assert_int_equal(
        encode_count("{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [], \"unk_token\": \"u\"}}", "xax", &count),
        WEFT_ERR_FORMAT);
    assert_non_null(strstr(weft_log_last_error(), "unknown token \"u\""));
}

/* An expression that backtracks without end gives up instead of hanging. */
static void test_hopeless_expression(void **state)
{
    size_t count;

    (void)state;
    assert_int_equal(encode_count("{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": "
                                  "\"(?:a|[ab])+[cd]\"}, \"behavior\": \"Isolated\"},"
                                  "\"model\": {\"vocab\": {\"a\": 0}, \"merges\": []}}",
                                  "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", &count),
                     WEFT_ERR_LIMIT);
    assert_non_null(strstr(weft_log_last_error(), "gave up"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_damages_give_one_clear_line), cmocka_unit_test(test_every_prefix_is_refused),
        cmocka_unit_test(test_changed_bytes_do_no_harm),    cmocka_unit_test(test_deep_nesting_is_refused),
        cmocka_unit_test(test_unknown_characters),          cmocka_unit_test(test_hopeless_expression),
    };
    weft_log_configure(WEFT_LOG_ERROR, count_lines, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
