/*
 * Oniguruma patterns (its Ruby-like default syntax, as the package compiles them) to PCRE2 patterns.
 *
 * What differs and is rewritten: \s \w \d \b \h (Unicode in Oniguruma, other sets in PCRE2), (?m) is PCRE2's (?s),
 * an isolated (?i) reaches to the end of its group across alternatives, {,n}, {n}? and {n,m}+ (a second quantifier,
 * not lazy and not possessive), \v, \uHHHH, property names (scripts, not script extensions), POSIX brackets. What has
 * no equal is refused: negated classes in classes, intersections, absent operators, subexpression calls, bytes above
 * 7F.
 */
#include <stdio.h>
#include <string.h>

#include "regex.h"
#include "regex_onig.h"

/* \w outside of brackets takes Latin-1's superscripts and fractions for word characters too. */
#define WORD_LATIN "\\xb2\\xb3\\xb9\\xbc-\\xbe"

static enum weft_status begin_atom(struct weft_onig *t)
{
    t->atom = t->out->size;
    t->is_quantified = false;
    return WEFT_OK;
}

/* Sets by letter, negated by its capital. */
static enum weft_status translate_set_escape(struct weft_onig *t, char c)
{
    const char *name = c == 's' || c == 'S' ? "space" : c == 'd' || c == 'D' ? "digit" : "xdigit";
    bool is_word = c == 'w' || c == 'W';

    WEFT_TRY(weft_onig_emit(t, c >= 'a' ? "[" : "[^"));
    WEFT_TRY(weft_onig_emit(t, is_word ? WORD_LATIN : ""));
    WEFT_TRY(weft_onig_set(t, is_word ? "word" : name));
    return weft_onig_emit(t, "]");
}

/* \b and \B: word characters are Oniguruma's. */
static enum weft_status translate_boundary(struct weft_onig *t, bool is_negated)
{
    static const char *const looks[2][4] = {{"(?<=", "(?!", "(?<!", "(?="}, {"(?<=", "(?=", "(?<!", "(?!"}};

    WEFT_TRY(weft_onig_emit(t, "(?:"));
    for (int i = 0; i < 4; i++) {
        WEFT_TRY(weft_onig_emit(t, i == 2 ? "|" : ""));
        WEFT_TRY(weft_onig_emit(t, looks[is_negated][i]));
        WEFT_TRY(translate_set_escape(t, 'w'));
        WEFT_TRY(weft_onig_emit(t, ")"));
    }
    return weft_onig_emit(t, ")");
}

static enum weft_status translate_escape(struct weft_onig *t)
{
    char c, text[8];
    bool is_done;

    WEFT_TRY(begin_atom(t));
    t->at++;
    if (t->at >= t->size) {
        return weft_onig_refuse(t, "a backslash at the end");
    }
    c = t->in[t->at];
    if (c != '\0' && strchr("sSwWdDhH", c) != NULL) {
        t->at++;
        return translate_set_escape(t, c);
    }
    if (c == 'b' || c == 'B') {
        t->at++;
        return translate_boundary(t, c == 'B');
    }
    if (c != '\0' && strchr("AzZRN", c) != NULL) {
        snprintf(text, sizeof(text), "\\%c", c);
        t->at++;
        return weft_onig_emit(t, text);
    }
    if (c == 'p' || c == 'P') {
        return weft_onig_property(t, false);
    }
    if (c >= '1' && c <= '9' && !(weft_onig_peek(t, 1) >= '0' && weft_onig_peek(t, 1) <= '9')) {
        snprintf(text, sizeof(text), "\\g{%c}", c);
        t->at++;
        return weft_onig_emit(t, text);
    }
    WEFT_TRY(weft_onig_char_escape(t, &is_done));
    return is_done ? WEFT_OK : weft_onig_refuse(t, "this escape");
}

/* "{n}", "{n,}", "{,m}", "{n,m}" at `at`; its length, 0 when it is none. *text_out is PCRE2's form. */
static size_t read_interval(const struct weft_onig *t, char text_out[32], bool *is_exact_out)
{
    size_t at = 1, first = 0, second = 0;
    unsigned low = 0, high = 0;

    for (; first < 5 && weft_onig_peek(t, at) >= '0' && weft_onig_peek(t, at) <= '9'; first++, at++) {
        low = low * 10 + (unsigned)(weft_onig_peek(t, at) - '0');
    }
    *is_exact_out = weft_onig_peek(t, at) == '}';
    if (!*is_exact_out) {
        if (weft_onig_peek(t, at) != ',') {
            return 0;
        }
        at++;
        for (; second < 5 && weft_onig_peek(t, at) >= '0' && weft_onig_peek(t, at) <= '9'; second++, at++) {
            high = high * 10 + (unsigned)(weft_onig_peek(t, at) - '0');
        }
    }
    if (weft_onig_peek(t, at) != '}' || (first == 0 && second == 0)) {
        return 0;
    }
    if (*is_exact_out) {
        snprintf(text_out, 32, "{%u}", low);
    } else if (second == 0) {
        snprintf(text_out, 32, "{%u,}", low);
    } else {
        snprintf(text_out, 32, "{%u,%u}", low, high);
    }
    return at + 1;
}

/* A quantifier on something quantified applies to the whole of it: wrap that. */
static enum weft_status wrap_atom(struct weft_onig *t)
{
    WEFT_TRY(weft_bytes_reserve(t->out, 4));
    memmove(t->out->data + t->atom + 3, t->out->data + t->atom, t->out->size - t->atom);
    memcpy(t->out->data + t->atom, "(?:", 3);
    t->out->size += 3;
    return weft_onig_emit(t, ")");
}

static enum weft_status translate_quantifier(struct weft_onig *t)
{
    char text[32] = {t->in[t->at], '\0'};
    bool is_interval = t->in[t->at] == '{', is_exact = false;
    size_t length = is_interval ? read_interval(t, text, &is_exact) : 1;

    if (length == 0) {
        WEFT_TRY(begin_atom(t));
        return weft_onig_literal(t);
    }
    if (t->is_quantified) {
        WEFT_TRY(wrap_atom(t));
    }
    t->at += length;
    WEFT_TRY(weft_onig_emit(t, text));
    t->is_quantified = true;
    char next = weft_onig_peek(t, 0);
    if ((next == '?' && !is_exact) || (next == '+' && !is_interval)) {
        WEFT_TRY(weft_onig_emit(t, next == '?' ? "?" : "+"));
        t->at++;
    }
    return WEFT_OK;
}

/* (?imx-imx) and (?imx-imx:...); `at` stands behind "(?". */
static enum weft_status translate_options(struct weft_onig *t)
{
    char text[32] = "(?";
    size_t count = 2;

    for (char c; (c = weft_onig_peek(t, 0)) == 'i' || c == 'm' || c == '-'; t->at++) {
        if (count + 3 > sizeof(text)) {
            return weft_onig_refuse(t, "this option");
        }
        text[count++] = c == 'm' ? 's' : c;
    }
    char end = weft_onig_peek(t, 0);
    if (count == 2 || (end != ')' && end != ':')) {
        return weft_onig_refuse(t, "this (? group or option");
    }
    text[count++] = ':';
    text[count] = '\0';
    t->at++;
    if (end == ')') {
        t->groups[t->depth].opened++;
    } else {
        t->depth++;
        t->groups[t->depth].begin = t->out->size;
        t->groups[t->depth].opened = 0;
    }
    return weft_onig_emit(t, text);
}

/* Length of "(", "(?:", "(?=", "(?<name>" ... at `at`, to be copied; 0 when it is something else. */
static size_t read_group(const struct weft_onig *t)
{
    if (weft_onig_peek(t, 1) != '?') {
        return 1;
    }
    char c = weft_onig_peek(t, 2), d = weft_onig_peek(t, 3);
    if (c == ':' || c == '=' || c == '!' || c == '>') {
        return 3;
    }
    if (c == '<' && (d == '=' || d == '!')) {
        return 4;
    }
    if (c != '<') {
        return 0;
    }
    for (size_t i = 3; i < 32; i++) {
        d = weft_onig_peek(t, i);
        if (d == '>' && i > 3) {
            return i + 1;
        }
        if (!((d >= 'a' && d <= 'z') || (d >= 'A' && d <= 'Z') || d == '_' || (i > 3 && d >= '0' && d <= '9'))) {
            return 0;
        }
    }
    return 0;
}

static enum weft_status translate_group(struct weft_onig *t)
{
    size_t length = read_group(t);

    if (t->depth == WEFT_ONIG_DEPTH_MAX) {
        return weft_onig_refuse(t, "such deep nesting");
    }
    if (weft_onig_peek(t, 1) == '?' && weft_onig_peek(t, 2) == '#') {
        const char *end = memchr(t->in + t->at, ')', t->size - t->at);
        if (end == NULL) {
            return weft_onig_refuse(t, "an open comment");
        }
        t->at = (size_t)(end - t->in) + 1;
        return WEFT_OK;
    }
    if (length == 0) {
        t->at += 2;
        return translate_options(t);
    }
    t->depth++;
    t->groups[t->depth].begin = t->out->size;
    t->groups[t->depth].opened = 0;
    WEFT_TRY(weft_bytes_append(t->out, t->in + t->at, length));
    t->at += length;
    return begin_atom(t);
}

static enum weft_status close_groups(struct weft_onig *t)
{
    for (; t->groups[t->depth].opened > 0; t->groups[t->depth].opened--) {
        WEFT_TRY(weft_onig_emit(t, ")"));
    }
    return WEFT_OK;
}

static enum weft_status translate_close(struct weft_onig *t)
{
    if (t->depth == 0) {
        return weft_onig_refuse(t, "a ) without its (");
    }
    WEFT_TRY(close_groups(t));
    WEFT_TRY(weft_onig_emit(t, ")"));
    t->atom = t->groups[t->depth].begin;
    t->is_quantified = false;
    t->depth--;
    t->at++;
    return WEFT_OK;
}

static enum weft_status translate_one(struct weft_onig *t)
{
    char c = t->in[t->at];

    switch (c) {
    case '\\': return translate_escape(t);
    case '[': WEFT_TRY(begin_atom(t)); return weft_onig_class(t);
    case '(': return translate_group(t);
    case ')': return translate_close(t);
    case '*':
    case '+':
    case '?':
    case '{': return translate_quantifier(t);
    case '|':
    case '.':
    case '^':
    case '$': {
        char text[2] = {c, '\0'};
        WEFT_TRY(begin_atom(t));
        t->at++;
        return weft_onig_emit(t, text);
    }
    default: WEFT_TRY(begin_atom(t)); return weft_onig_literal(t);
    }
}

enum weft_status weft_regex_translate(const char *path, const char *pattern, size_t size, struct weft_bytes *out)
{
    struct weft_onig t = {.path = path, .in = pattern, .size = size, .out = out};

    t.atom = out->size;
    while (t.at < t.size) {
        WEFT_TRY(translate_one(&t));
    }
    if (t.depth > 0) {
        return weft_onig_refuse(&t, "a ( without its )");
    }
    return close_groups(&t);
}
