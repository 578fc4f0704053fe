/* Compiling and matching with PCRE2. The translation from Oniguruma is in regex_onig.c. */
#include "regex.h"

#include <stdint.h>
#include <stdlib.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "utf8.h"
#include "weft/log.h"

static const char where[] = "text/regex";

enum {
    JIT_STACK_START = 64 * 1024,
    JIT_STACK_MAX = 64 * 1024 * 1024,
    /* Steps of one match, as Oniguruma's own default: a moment, not hours, for one that backtracks without end. */
    MATCH_LIMIT = 10 * 1000 * 1000,
    HEAP_LIMIT_KIB = 256 * 1024,
};

struct weft_regex {
    pcre2_code *code;
    bool has_jit;
};

static enum weft_status compile(const char *path, const char *text, size_t size, uint32_t options, pcre2_code **out)
{
    PCRE2_UCHAR message[128];
    PCRE2_SIZE at;
    int error;

    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (context == NULL || pcre2_set_newline(context, PCRE2_NEWLINE_LF) != 0) {
        pcre2_compile_context_free(context);
        weft_log(WEFT_LOG_ERROR, where, "%s: out of memory", path);
        return WEFT_ERR_MEMORY;
    }
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)text, size, options, &error, &at, context);
    pcre2_compile_context_free(context);
    if (code == NULL) {
        (void)pcre2_get_error_message(error, message, sizeof(message));
        weft_log(WEFT_LOG_ERROR, where, "%s: regular expression at byte %zu of %.200s: %s", path, (size_t)at, text,
                 (const char *)message);
        return WEFT_ERR_FORMAT;
    }
    *out = code;
    return WEFT_OK;
}

enum weft_status weft_regex_open(const char *path, const char *pattern, size_t size, bool is_regex,
                                 struct weft_regex **out)
{
    struct weft_bytes translated = {0};
    /* Oniguruma's ^ and $ always match at lines. Our own text is checked once, not at every match. */
    uint32_t options = PCRE2_UTF | PCRE2_NO_UTF_CHECK | (is_regex ? PCRE2_UCP | PCRE2_MULTILINE : PCRE2_LITERAL);
    enum weft_status status;

    struct weft_regex *regex = calloc(1, sizeof(*regex));
    if (regex == NULL) {
        weft_log(WEFT_LOG_ERROR, where, "%s: out of memory", path);
        return WEFT_ERR_MEMORY;
    }
    status = is_regex ? weft_regex_translate(path, pattern, size, &translated)
                      : weft_bytes_append(&translated, pattern, size);
    if (status == WEFT_OK) {
        status = weft_bytes_append(&translated, "", 1); /* NUL, for the error line */
    }
    if (status == WEFT_OK) {
        status = compile(path, translated.data, translated.size - 1, options, &regex->code);
    }
    weft_bytes_fini(&translated);
    if (status != WEFT_OK) {
        free(regex);
        return status;
    }
    regex->has_jit = pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE) == 0;
    *out = regex;
    return WEFT_OK;
}

void weft_regex_close(struct weft_regex **regex)
{
    if (*regex != NULL) {
        pcre2_code_free((*regex)->code);
        free(*regex);
        *regex = NULL;
    }
}

void weft_regex_scratch_fini(struct weft_regex_scratch *scratch)
{
    pcre2_match_data_free(scratch->match);
    pcre2_match_context_free(scratch->context);
    pcre2_jit_stack_free(scratch->stack);
    *scratch = (struct weft_regex_scratch){0};
}

static enum weft_status prepare(struct weft_regex_scratch *scratch)
{
    if (scratch->match == NULL) {
        scratch->match = pcre2_match_data_create(1, NULL);
    }
    if (scratch->context == NULL) {
        scratch->context = pcre2_match_context_create(NULL);
    }
    if (scratch->match == NULL || scratch->context == NULL) {
        weft_log(WEFT_LOG_ERROR, where, "out of memory");
        return WEFT_ERR_MEMORY;
    }
    (void)pcre2_set_match_limit(scratch->context, MATCH_LIMIT);
    (void)pcre2_set_heap_limit(scratch->context, HEAP_LIMIT_KIB);
    return WEFT_OK;
}

static int run_match(const struct weft_regex *regex, const struct weft_regex_scratch *scratch, const char *text,
                     size_t size, size_t at)
{
    return regex->has_jit
               ? pcre2_jit_match(regex->code, (PCRE2_SPTR)text, size, at, 0, scratch->match, scratch->context)
               : pcre2_match(regex->code, (PCRE2_SPTR)text, size, at, PCRE2_NO_UTF_CHECK, scratch->match,
                             scratch->context);
}

/* One search from `at`. The machine stack's 32 KiB do nearly always; a stack of our own only when they did not. */
static enum weft_status search(const struct weft_regex *regex, struct weft_regex_scratch *scratch, const char *text,
                               size_t size, size_t at, bool *found_out)
{
    PCRE2_UCHAR message[128];

    if (scratch->context == NULL) {
        WEFT_TRY(prepare(scratch));
    }
    int result = run_match(regex, scratch, text, size, at);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT && scratch->stack == NULL) {
        scratch->stack = pcre2_jit_stack_create(JIT_STACK_START, JIT_STACK_MAX, NULL);
        if (scratch->stack == NULL) {
            weft_log(WEFT_LOG_ERROR, where, "out of memory for the stack of a regular expression");
            return WEFT_ERR_MEMORY;
        }
        pcre2_jit_stack_assign(scratch->context, NULL, scratch->stack);
        result = run_match(regex, scratch, text, size, at);
    }
    if (result < 0 && result != PCRE2_ERROR_NOMATCH) {
        (void)pcre2_get_error_message(result, message, sizeof(message));
        weft_log(WEFT_LOG_ERROR, where, "a regular expression gave up at byte %zu of %zu: %s", at, size,
                 (const char *)message);
        return result == PCRE2_ERROR_NOMEMORY ? WEFT_ERR_MEMORY : WEFT_ERR_LIMIT;
    }
    *found_out = result >= 0;
    return WEFT_OK;
}

void weft_regex_begin(struct weft_regex_iter *iter, const struct weft_regex *regex, struct weft_regex_scratch *scratch,
                      const char *text, size_t size)
{
    *iter = (struct weft_regex_iter){
        .regex = regex, .scratch = scratch, .text = text, .size = size, .at = 0, .last_end = SIZE_MAX};
}

enum weft_status weft_regex_next(struct weft_regex_iter *iter, bool *found_out, size_t *begin_out, size_t *end_out)
{
    *found_out = false;
    while (iter->at <= iter->size) {
        bool found;
        WEFT_TRY(search(iter->regex, iter->scratch, iter->text, iter->size, iter->at, &found));
        if (!found) {
            iter->at = iter->size + 1;
            break;
        }
        const PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(iter->scratch->match);
        if (bounds[0] == bounds[1] && bounds[1] == iter->last_end) {
            iter->at += iter->at < iter->size ? weft_utf8_length((unsigned char)iter->text[iter->at]) : 1;
            continue;
        }
        iter->at = iter->last_end = bounds[1];
        *begin_out = bounds[0];
        *end_out = bounds[1];
        *found_out = true;
        break;
    }
    return WEFT_OK;
}
