/*
 * The translation of Oniguruma patterns in progress: shared by regex_onig.c (groups, quantifiers) and regex_onig_set.c
 * (characters, sets, brackets). Every function reads from `at` on and appends to `out`.
 */
#ifndef WEFT_TEXT_REGEX_ONIG_H
#define WEFT_TEXT_REGEX_ONIG_H

#include <stdbool.h>
#include <stddef.h>

#include "buffer.h"

enum { WEFT_ONIG_DEPTH_MAX = 200 };

struct weft_onig {
    const char *path;
    const char *in;
    size_t size;
    size_t at;
    struct weft_bytes *out;
    size_t atom;        /* where in out the last quantifiable thing begins */
    bool is_quantified; /* it already has a quantifier */
    size_t depth;
    struct {
        size_t begin;  /* of the group in out */
        size_t opened; /* groups that isolated options opened inside it */
    } groups[WEFT_ONIG_DEPTH_MAX + 1];
};

/* The character `ahead` bytes on, NUL behind the end. */
static inline char weft_onig_peek(const struct weft_onig *t, size_t ahead)
{
    return ahead < t->size - t->at ? t->in[t->at + ahead] : '\0';
}

/* ERR_UNSUPPORTED: "regular expression at byte ...: WHAT is not supported". */
WEFT_MUST_CHECK enum weft_status weft_onig_refuse(const struct weft_onig *t, const char *what);

WEFT_MUST_CHECK enum weft_status weft_onig_emit(struct weft_onig *t, const char *text);

/* Copies one character, escaped when it could mean something to PCRE2. */
WEFT_MUST_CHECK enum weft_status weft_onig_literal(struct weft_onig *t);

/* An escape that means one character, inside and outside of brackets; `at` stands behind the backslash. *done_out false
 * when it is none of them. */
WEFT_MUST_CHECK enum weft_status weft_onig_char_escape(struct weft_onig *t, bool *done_out);

/* Bracket contents of a set by its name: "space", "digit", "xdigit", "word". */
WEFT_MUST_CHECK enum weft_status weft_onig_set(struct weft_onig *t, const char *name);

/* \p{Name}, \P{Name}, \p{^Name}; `at` stands on the letter. */
WEFT_MUST_CHECK enum weft_status weft_onig_property(struct weft_onig *t, bool is_in_class);

/* [...]; `at` stands on the bracket. */
WEFT_MUST_CHECK enum weft_status weft_onig_class(struct weft_onig *t);

#endif
