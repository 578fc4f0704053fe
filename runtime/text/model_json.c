/* Cutting the large members out, and a strict JSON reader for them. */
#include "model_json.h"

#include <string.h>

#include "utf8.h"
#include "weft/log.h"

/* ---- finding: trusts nothing, checks nothing ---- */

struct finder {
    const char *text;
    size_t size;
    size_t at;
};

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static char skip_space(struct finder *finder)
{
    while (finder->at < finder->size && is_space(finder->text[finder->at])) {
        finder->at++;
    }
    return finder->at < finder->size ? finder->text[finder->at] : '\0';
}

/* `at` stands on the opening quote; moves behind the closing one. */
static void skip_string(struct finder *finder)
{
    for (finder->at++; finder->at < finder->size && finder->text[finder->at] != '"'; finder->at++) {
        finder->at += finder->text[finder->at] == '\\';
    }
    finder->at = finder->at < finder->size ? finder->at + 1 : finder->size;
}

static void skip_value(struct finder *finder)
{
    size_t depth = 0;

    (void)skip_space(finder);
    while (finder->at < finder->size) {
        char c = finder->text[finder->at];
        if (c == '"') {
            skip_string(finder);
        } else if (depth == 0 && (c == ',' || c == '}' || c == ']')) {
            return;
        } else {
            depth += c == '{' || c == '[';
            depth -= c == '}' || c == ']';
            finder->at++;
        }
        if (depth == 0 && (c == '"' || c == '}' || c == ']')) {
            return;
        }
    }
}

/* Consumes one "key": of an object; false when there is none. */
static bool next_key(struct finder *finder, struct weft_json_span *key_out)
{
    if (skip_space(finder) == ',') {
        finder->at++;
    }
    if (skip_space(finder) != '"') {
        return false;
    }
    size_t begin = finder->at;
    skip_string(finder);
    *key_out = (struct weft_json_span){finder->text + begin, finder->at - begin};
    if (skip_space(finder) != ':') {
        return false;
    }
    finder->at++;
    return true;
}

static bool is_key(struct weft_json_span key, const char *quoted)
{
    return key.size == strlen(quoted) && memcmp(key.data, quoted, key.size) == 0;
}

/* Inside the object "model": the last of equal keys counts, as it does for jansson. */
static void find_in_model(struct finder *finder, struct weft_model_json *out)
{
    struct weft_json_span key;

    finder->at++;
    while (next_key(finder, &key)) {
        char first = skip_space(finder);
        size_t begin = finder->at;
        skip_value(finder);
        struct weft_json_span value = {finder->text + begin, finder->at - begin};
        if (is_key(key, "\"vocab\"") && first == '{') {
            out->vocab = value;
        } else if (is_key(key, "\"merges\"") && first == '[') {
            out->merges = value;
        }
    }
}

/* Appends the text from *at_io to the span, an empty list or object in place of the span, and its line breaks. */
static enum weft_status append_without(struct weft_bytes *rest, const char *text, size_t *at_io,
                                       struct weft_json_span span)
{
    size_t begin = (size_t)(span.data - text);
    const char *end = span.data + span.size, *line;

    WEFT_TRY(weft_bytes_append(rest, text + *at_io, begin - *at_io));
    WEFT_TRY(weft_bytes_append(rest, span.data, 1));
    for (const char *from = span.data; (line = memchr(from, '\n', (size_t)(end - from))) != NULL; from = line + 1) {
        WEFT_TRY(weft_bytes_append(rest, "\n", 1));
    }
    *at_io = begin + span.size;
    return weft_bytes_append(rest, span.data[0] == '{' ? "}" : "]", 1);
}

enum weft_status weft_model_json_cut(const char *text, size_t size, struct weft_model_json *out,
                                     struct weft_bytes *rest)
{
    struct finder finder = {text, size, 0};
    struct weft_json_span key, spans[2];
    size_t at = 0;

    *out = (struct weft_model_json){0};
    if (skip_space(&finder) == '{') {
        finder.at++;
        while (next_key(&finder, &key)) {
            if (is_key(key, "\"model\"") && skip_space(&finder) == '{') {
                struct finder inner = finder;
                *out = (struct weft_model_json){0};
                find_in_model(&inner, out);
            }
            skip_value(&finder);
        }
    }
    bool is_vocab_first = out->vocab.data < out->merges.data;
    spans[0] = is_vocab_first ? out->vocab : out->merges;
    spans[1] = is_vocab_first ? out->merges : out->vocab;
    for (int i = 0; i < 2; i++) {
        if (spans[i].data != NULL) {
            WEFT_TRY(append_without(rest, text, &at, spans[i]));
        }
    }
    return weft_bytes_append(rest, text + at, size - at);
}

/* ---- reading: strict ---- */

static enum weft_status refuse(const struct weft_json_reader *reader, const char *expected)
{
    weft_log(WEFT_LOG_ERROR, "text/tokenizer", "%s: not valid at its byte %zu: expected %s", reader->path, reader->at,
             expected);
    return WEFT_ERR_FORMAT;
}

char weft_json_reader_peek(struct weft_json_reader *reader)
{
    while (reader->at < reader->span.size && is_space(reader->span.data[reader->at])) {
        reader->at++;
    }
    return reader->at < reader->span.size ? reader->span.data[reader->at] : '\0';
}

enum weft_status weft_json_reader_expect(struct weft_json_reader *reader, char c)
{
    char expected[4] = {'\'', c, '\'', '\0'};

    if (weft_json_reader_peek(reader) != c) {
        return refuse(reader, expected);
    }
    reader->at++;
    return WEFT_OK;
}

/* Four hex digits; false when they are not. */
static bool read_hex4(const struct weft_json_reader *reader, size_t at, uint32_t *code_out)
{
    uint32_t code = 0;

    if (reader->span.size - at < 4) {
        return false;
    }
    for (size_t i = 0; i < 4; i++) {
        char c = reader->span.data[at + i];
        bool is_digit = c >= '0' && c <= '9', is_letter = (c | 0x20) >= 'a' && (c | 0x20) <= 'f';
        if (!is_digit && !is_letter) {
            return false;
        }
        code = code * 16 + (uint32_t)(is_digit ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    *code_out = code;
    return true;
}

/* \uXXXX, or a pair of them for a character beyond U+FFFF; `at` stands behind "\u". */
static enum weft_status read_unicode(struct weft_json_reader *reader, struct weft_bytes *out)
{
    const char *text = reader->span.data;
    uint32_t code, low;

    if (!read_hex4(reader, reader->at, &code)) {
        return refuse(reader, "four hex digits");
    }
    reader->at += 4;
    if (code >= 0xD800 && code <= 0xDBFF) {
        bool has_low = reader->span.size - reader->at >= 6 && text[reader->at] == '\\' && text[reader->at + 1] == 'u' &&
                       read_hex4(reader, reader->at + 2, &low);
        if (!has_low || low < 0xDC00 || low > 0xDFFF) {
            return refuse(reader, "the second half of a surrogate pair");
        }
        code = 0x10000 + ((code - 0xD800) << 10 | (low - 0xDC00));
        reader->at += 6;
    } else if (code >= 0xDC00 && code <= 0xDFFF) {
        return refuse(reader, "the first half of a surrogate pair");
    }
    WEFT_TRY(weft_bytes_reserve(out, 4));
    out->size += weft_utf8_write(code, out->data + out->size);
    return WEFT_OK;
}

/* `at` stands behind the backslash. */
static enum weft_status read_escape(struct weft_json_reader *reader, struct weft_bytes *out)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    char c = reader->at < reader->span.size ? reader->span.data[reader->at] : '\0';
    const char *found = c == '\0' ? NULL : strchr(names, c);

    reader->at++;
    if (found != NULL) {
        return weft_bytes_append(out, &values[found - names], 1);
    }
    if (c == 'u') {
        return read_unicode(reader, out);
    }
    reader->at--;
    return refuse(reader, "an escape of JSON");
}

enum weft_status weft_json_reader_string(struct weft_json_reader *reader, struct weft_bytes *out)
{
    const char *text = reader->span.data;
    size_t size = reader->span.size, begin;

    if (weft_json_reader_peek(reader) != '"') {
        return refuse(reader, "a string");
    }
    reader->at++;
    for (;;) {
        begin = reader->at;
        while (reader->at < size && text[reader->at] != '"' && text[reader->at] != '\\' &&
               (unsigned char)text[reader->at] >= 0x20) {
            reader->at++;
        }
        if (weft_utf8_valid_size(text + begin, reader->at - begin) != reader->at - begin) {
            return refuse(reader, "valid UTF-8 before it");
        }
        WEFT_TRY(weft_bytes_append(out, text + begin, reader->at - begin));
        if (reader->at >= size || (unsigned char)text[reader->at] < 0x20) {
            return refuse(reader, "the end of a string");
        }
        if (text[reader->at++] == '"') {
            return WEFT_OK;
        }
        WEFT_TRY(read_escape(reader, out));
    }
}

enum weft_status weft_json_reader_uint(struct weft_json_reader *reader, uint32_t max, uint32_t *value_out)
{
    uint64_t value = 0;
    char c = weft_json_reader_peek(reader);

    if (c < '0' || c > '9') {
        return refuse(reader, "an id, not negative");
    }
    for (; reader->at < reader->span.size; reader->at++) {
        c = reader->span.data[reader->at];
        if (c < '0' || c > '9') {
            break;
        }
        value = value * 10 + (uint64_t)(c - '0');
        if (value > max) {
            return refuse(reader, "an id of at most 16777215");
        }
    }
    *value_out = (uint32_t)value;
    return WEFT_OK;
}

enum weft_status weft_json_reader_next(struct weft_json_reader *reader, char close, bool *more_out)
{
    char c = weft_json_reader_peek(reader);

    if (c != ',' && c != close) {
        return refuse(reader, "a comma or the end");
    }
    reader->at++;
    *more_out = c == ',';
    return WEFT_OK;
}
