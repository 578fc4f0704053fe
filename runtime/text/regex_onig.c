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
#include <strings.h>

#include "regex.h"
#include "utf8.h"
#include "weft/log.h"

enum { GROUP_DEPTH_MAX = 200 };

/* Unicode White_Space, its complement, and Oniguruma's word: contents of a bracket. */
#define SPACE_SET                                                                                                      \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define NOT_SPACE_SET                                                                                                  \
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}"                    \
    "\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"
#define WORD_SET                                                                                                       \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}"                   \
    "\\x{1f170}-\\x{1f189}"
/* \w outside of brackets takes Latin-1's superscripts and fractions for word characters too. */
#define WORD_LATIN      "\\xb2\\xb3\\xb9\\xbc-\\xbe"
#define WORD_CATEGORIES "L M Nd Nl Pc"
#define HEX_SET         "0-9a-fA-F"

struct translator {
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
    } groups[GROUP_DEPTH_MAX + 1];
};

static enum weft_status refuse(const struct translator *t, const char *what)
{
    weft_log(WEFT_LOG_ERROR, "text/regex", "%s: regular expression at byte %zu of %.200s: %s is not supported", t->path,
             t->at, t->in, what);
    return WEFT_ERR_UNSUPPORTED;
}

static enum weft_status emit(struct translator *t, const char *text)
{
    return weft_bytes_append(t->out, text, strlen(text));
}

/* The character `ahead` bytes on, NUL behind the end. */
static char peek(const struct translator *t, size_t ahead)
{
    return ahead < t->size - t->at ? t->in[t->at + ahead] : '\0';
}

static enum weft_status begin_atom(struct translator *t)
{
    t->atom = t->out->size;
    t->is_quantified = false;
    return WEFT_OK;
}

/* Copies one character, escaped when it could mean something to PCRE2. */
static enum weft_status emit_literal(struct translator *t)
{
    char c = t->in[t->at];
    size_t length = weft_utf8_length((unsigned char)c);

    if (c != '\0' && strchr("\\^$.[]|()?*+{}-&#/\"'<>=!,:~`@%; ", c) != NULL) {
        WEFT_TRY(emit(t, "\\"));
    }
    WEFT_TRY(weft_bytes_append(t->out, t->in + t->at, length));
    t->at += length;
    return WEFT_OK;
}

static enum weft_status emit_code(struct translator *t, unsigned code)
{
    char text[16];

    snprintf(text, sizeof(text), "\\x{%x}", code);
    return emit(t, text);
}

static int hex_value(char c)
{
    const char *digits = "0123456789abcdef";
    const char *found = c == '\0' ? NULL : strchr(digits, c >= 'A' && c <= 'F' ? c + 32 : c);

    return found == NULL ? -1 : (int)(found - digits);
}

/* \xHH, \x{H...}, \uHHHH; `at` stands on the letter. */
static enum weft_status translate_hex(struct translator *t)
{
    bool is_byte = t->in[t->at] == 'x' && peek(t, 1) != '{', is_braced = t->in[t->at] == 'x' && !is_byte;
    size_t digit_max = is_byte ? 2 : is_braced ? 6 : 4, count = 0;
    unsigned code = 0;

    t->at += is_braced ? 2 : 1;
    while (count < digit_max && hex_value(peek(t, count)) >= 0) {
        code = code * 16 + (unsigned)hex_value(peek(t, count));
        count++;
    }
    t->at += count;
    if (count == 0 || (is_braced && peek(t, 0) != '}') || (is_byte && code > 0x7F) || code > 0x10FFFF ||
        (code >= 0xD800 && code <= 0xDFFF)) {
        return refuse(t, "this \\x or \\u");
    }
    t->at += is_braced;
    return emit_code(t, code);
}

static bool is_wanted(const char *category, const char *wanted)
{
    char first[2] = {category[0], '\0'}; /* "N" wants Nd, Nl, No */

    for (const char *word = wanted; word != NULL && *word != '\0'; word = strchr(word, ' ')) {
        word += *word == ' ';
        size_t length = strcspn(word, " ");
        if (strncmp(word, length == 1 ? first : category, length) == 0 && length > 0) {
            return true;
        }
    }
    return false;
}

/* The characters that PCRE2 is too old to know: bracket contents, all ranges of the categories in `wanted` ("L Nd"). */
static enum weft_status emit_new(struct translator *t, const char *wanted)
{
    struct weft_char_range range, run = {0};
    char text[48];

    for (size_t i = 0;; i++) {
        bool has_range = weft_char_new_range(i, &range);
        if (has_range && !is_wanted(range.category, wanted)) {
            continue;
        }
        if (has_range && run.last + 1 == range.first) {
            run.last = range.last;
            continue;
        }
        if (run.last != 0) {
            snprintf(text, sizeof(text), "\\x{%x}-\\x{%x}", (unsigned)run.first, (unsigned)run.last);
            WEFT_TRY(emit(t, text));
        }
        if (!has_range) {
            return WEFT_OK;
        }
        run = range;
    }
}

/* Named sets, as bracket contents: in [:name:], \p{name} and behind the letter escapes. */
struct named_set {
    const char *name;
    const char *set;
    const char *categories; /* whose new characters belong to it */
};

static const struct named_set named_sets[] = {
    {"alnum", "\\p{Alphabetic}\\p{Nd}", "L Nl Nd"},
    {"alpha", "\\p{Alphabetic}", "L Nl"},
    {"ascii", "\\x{0}-\\x{7f}", ""},
    {"blank", "\\p{Zs}\\x{9}", ""},
    {"cntrl", "\\p{Cc}", ""},
    {"digit", "\\p{Nd}", "Nd"},
    {"lower", "\\p{Lowercase}", "Ll"},
    {"punct", "\\p{P}\\p{S}", "P S"},
    {"space", SPACE_SET, ""},
    {"upper", "\\p{Uppercase}", "Lu"},
    {"xdigit", HEX_SET, ""},
    {"word", WORD_SET, WORD_CATEGORIES},
    {"whitespace", SPACE_SET, ""},
    {"letter", "\\p{L}", "L"},
    {"mark", "\\p{M}", "M"},
    {"number", "\\p{N}", "N"},
    {"punctuation", "\\p{P}", "P"},
    {"symbol", "\\p{S}", "S"},
    {"separator", "\\p{Z}", "Z"},
    {"alphabetic", "\\p{Alphabetic}", "L Nl"},
    {"uppercase", "\\p{Uppercase}", "Lu"},
    {"lowercase", "\\p{Lowercase}", "Ll"},
    {"any", "\\x{0}-\\x{10ffff}", ""},
    {"han", "\\p{sc:Han}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}", ""},
};

static const struct named_set *find_set(const char *name)
{
    for (size_t i = 0; i < sizeof(named_sets) / sizeof(named_sets[0]); i++) {
        if (strcasecmp(named_sets[i].name, name) == 0) {
            return &named_sets[i];
        }
    }
    return NULL;
}

static enum weft_status emit_set(struct translator *t, const struct named_set *set)
{
    WEFT_TRY(emit(t, set->set));
    return emit_new(t, set->categories);
}

/* \p{Name}, \P{Name}, \p{^Name}; `at` stands on the letter. */
static enum weft_status translate_property(struct translator *t, bool is_in_class)
{
    bool is_negated = t->in[t->at] == 'P';
    char name[48], text[64];
    size_t count = 0;

    t->at++;
    if (peek(t, 0) != '{') {
        return refuse(t, "\\p without braces");
    }
    t->at++;
    if (peek(t, 0) == '^') {
        is_negated = !is_negated;
        t->at++;
    }
    while (count + 1 < sizeof(name) && peek(t, 0) != '}' && peek(t, 0) != '\0') {
        name[count++] = t->in[t->at++];
    }
    name[count] = '\0';
    if (count == 0 || peek(t, 0) != '}') {
        return refuse(t, "this property");
    }
    t->at++;
    const struct named_set *named = find_set(name);
    struct named_set set = named != NULL ? *named : (struct named_set){name, text, count > 2 ? "" : name};
    if (named == NULL) {
        /* One or two letters are a general category; a longer name is a script (PCRE2 alone would take extensions). */
        snprintf(text, sizeof(text), "\\p{%s%s}", count > 2 ? "sc:" : "", name);
    }
    if (is_in_class && is_negated) {
        if (named != NULL) {
            return refuse(t, "a negated property set inside [...]");
        }
        text[1] = 'P'; /* without the new characters: a bracket cannot take some away again */
        return emit(t, text);
    }
    WEFT_TRY(emit(t, is_in_class ? "" : is_negated ? "[^" : "["));
    WEFT_TRY(emit_set(t, &set));
    return emit(t, is_in_class ? "" : "]");
}

/* Escapes that mean one character, inside and outside of brackets; *done_out false when it is none of them. */
static enum weft_status translate_char_escape(struct translator *t, bool *done_out)
{
    static const char names[] = "ntrfvae";
    static const unsigned char codes[] = {'\n', '\t', '\r', '\f', 0x0B, 0x07, 0x1B};
    char c = t->in[t->at];
    const char *found = c == '\0' ? NULL : strchr(names, c);

    *done_out = true;
    if (found != NULL) {
        t->at++;
        return emit_code(t, codes[found - names]);
    }
    if (c == 'x' || c == 'u') {
        return translate_hex(t);
    }
    if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
        *done_out = false;
        return WEFT_OK;
    }
    return emit_literal(t);
}

/* ---- brackets ---- */

static enum weft_status translate_posix(struct translator *t)
{
    char name[16];
    size_t count = 0;

    t->at += 2;
    while (count + 1 < sizeof(name) && peek(t, 0) >= 'a' && peek(t, 0) <= 'z') {
        name[count++] = t->in[t->at++];
    }
    name[count] = '\0';
    const struct named_set *set = find_set(name);
    if (set == NULL || peek(t, 0) != ':' || peek(t, 1) != ']') {
        return refuse(t, "this POSIX bracket");
    }
    t->at += 2;
    return emit_set(t, set);
}

/* An escape inside [...]; *is_set_out true for more than one character. `at` stands behind the backslash. */
static enum weft_status translate_class_escape(struct translator *t, bool *is_set_out)
{
    char c = peek(t, 0);
    bool is_done;

    *is_set_out = true;
    switch (c) {
    case 's': t->at++; return emit_set(t, find_set("space"));
    case 'S': t->at++; return emit(t, NOT_SPACE_SET);
    case 'w': t->at++; return emit_set(t, find_set("word"));
    case 'd': t->at++; return emit_set(t, find_set("digit"));
    case 'D': t->at++; return emit(t, "\\P{Nd}");
    case 'h': t->at++; return emit_set(t, find_set("xdigit"));
    case 'p':
    case 'P': return translate_property(t, true);
    default: break;
    }
    *is_set_out = false;
    if (c == 'b') {
        t->at++;
        return emit_code(t, 0x08);
    }
    WEFT_TRY(translate_char_escape(t, &is_done));
    return is_done ? WEFT_OK : refuse(t, "this escape inside [...]");
}

/* One '-': part of a range only between two single characters. */
static enum weft_status translate_hyphen(struct translator *t, bool can_begin_range, bool *is_range_out)
{
    char next = peek(t, 1);
    char escaped = next == '\\' ? peek(t, 2) : 'x';

    *is_range_out = can_begin_range && next != ']' && next != '[' && next != '\0' && escaped != '\0' &&
                    strchr("sSwWdDhHpP", escaped) == NULL;
    t->at++;
    return emit(t, *is_range_out ? "-" : "\\-");
}

static enum weft_status translate_class(struct translator *t)
{
    /* can_begin_range: the last thing was a single character that does not end a range itself. */
    bool can_begin_range = false, is_range = false, is_set;
    size_t depth = 0;

    WEFT_TRY(begin_atom(t));
    WEFT_TRY(emit(t, "["));
    t->at++;
    if (peek(t, 0) == '^') {
        WEFT_TRY(emit(t, "^"));
        t->at++;
    }
    for (bool is_first = true;; is_first = false) {
        if (t->at >= t->size) {
            return refuse(t, "a [ without its ]");
        }
        char c = t->in[t->at];
        if (c == ']' && !is_first) {
            if (depth == 0) {
                break;
            }
            depth--;
            t->at++;
            can_begin_range = is_range = false;
            continue;
        }
        if (c == '&' && peek(t, 1) == '&') {
            return refuse(t, "&& inside [...]");
        }
        if (c == '[' && peek(t, 1) != ':') {
            if (peek(t, 1) == '^' || peek(t, 1) == ']') {
                return refuse(t, "such a class inside [...]");
            }
            depth++; /* a class inside a class joins it */
            t->at++;
            can_begin_range = is_range = false;
            continue;
        }
        if (c == '-') {
            WEFT_TRY(translate_hyphen(t, can_begin_range, &is_range));
            can_begin_range = false;
            continue;
        }
        is_set = c == '[';
        if (c == '[') {
            WEFT_TRY(translate_posix(t));
        } else if (c == '\\') {
            t->at++;
            WEFT_TRY(translate_class_escape(t, &is_set));
        } else {
            WEFT_TRY(emit_literal(t));
        }
        can_begin_range = !is_set && !is_range;
        is_range = false;
    }
    t->at++;
    return emit(t, "]");
}

/* ---- outside of brackets ---- */

/* Sets by letter, negated by its capital. */
static enum weft_status translate_set_escape(struct translator *t, char c)
{
    const char *name = c == 's' || c == 'S' ? "space" : c == 'd' || c == 'D' ? "digit" : "xdigit";
    bool is_word = c == 'w' || c == 'W';

    WEFT_TRY(emit(t, c >= 'a' ? "[" : "[^"));
    WEFT_TRY(emit(t, is_word ? WORD_LATIN : ""));
    WEFT_TRY(emit_set(t, find_set(is_word ? "word" : name)));
    return emit(t, "]");
}

/* \b and \B: word characters are Oniguruma's. */
static enum weft_status translate_boundary(struct translator *t, bool is_negated)
{
    static const char *const looks[2][4] = {{"(?<=", "(?!", "(?<!", "(?="}, {"(?<=", "(?=", "(?<!", "(?!"}};

    WEFT_TRY(emit(t, "(?:"));
    for (int i = 0; i < 4; i++) {
        WEFT_TRY(emit(t, i == 2 ? "|" : ""));
        WEFT_TRY(emit(t, looks[is_negated][i]));
        WEFT_TRY(translate_set_escape(t, 'w'));
        WEFT_TRY(emit(t, ")"));
    }
    return emit(t, ")");
}

static enum weft_status translate_escape(struct translator *t)
{
    char c, text[8];
    bool is_done;

    WEFT_TRY(begin_atom(t));
    t->at++;
    if (t->at >= t->size) {
        return refuse(t, "a backslash at the end");
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
        return emit(t, text);
    }
    if (c == 'p' || c == 'P') {
        return translate_property(t, false);
    }
    if (c >= '1' && c <= '9' && !(peek(t, 1) >= '0' && peek(t, 1) <= '9')) {
        snprintf(text, sizeof(text), "\\g{%c}", c);
        t->at++;
        return emit(t, text);
    }
    WEFT_TRY(translate_char_escape(t, &is_done));
    return is_done ? WEFT_OK : refuse(t, "this escape");
}

/* "{n}", "{n,}", "{,m}", "{n,m}" at `at`; its length, 0 when it is none. *text_out is PCRE2's form. */
static size_t read_interval(const struct translator *t, char text_out[32], bool *is_exact_out)
{
    size_t at = 1, first = 0, second = 0;
    unsigned low = 0, high = 0;

    for (; first < 5 && peek(t, at) >= '0' && peek(t, at) <= '9'; first++, at++) {
        low = low * 10 + (unsigned)(peek(t, at) - '0');
    }
    *is_exact_out = peek(t, at) == '}';
    if (!*is_exact_out) {
        if (peek(t, at) != ',') {
            return 0;
        }
        at++;
        for (; second < 5 && peek(t, at) >= '0' && peek(t, at) <= '9'; second++, at++) {
            high = high * 10 + (unsigned)(peek(t, at) - '0');
        }
    }
    if (peek(t, at) != '}' || (first == 0 && second == 0)) {
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
static enum weft_status wrap_atom(struct translator *t)
{
    WEFT_TRY(weft_bytes_reserve(t->out, 4));
    memmove(t->out->data + t->atom + 3, t->out->data + t->atom, t->out->size - t->atom);
    memcpy(t->out->data + t->atom, "(?:", 3);
    t->out->size += 3;
    return emit(t, ")");
}

static enum weft_status translate_quantifier(struct translator *t)
{
    char text[32] = {t->in[t->at], '\0'};
    bool is_interval = t->in[t->at] == '{', is_exact = false;
    size_t length = is_interval ? read_interval(t, text, &is_exact) : 1;

    if (length == 0) {
        WEFT_TRY(begin_atom(t));
        return emit_literal(t);
    }
    if (t->is_quantified) {
        WEFT_TRY(wrap_atom(t));
    }
    t->at += length;
    WEFT_TRY(emit(t, text));
    t->is_quantified = true;
    char next = peek(t, 0);
    if ((next == '?' && !is_exact) || (next == '+' && !is_interval)) {
        WEFT_TRY(emit(t, next == '?' ? "?" : "+"));
        t->at++;
    }
    return WEFT_OK;
}

/* (?imx-imx) and (?imx-imx:...); `at` stands behind "(?". */
static enum weft_status translate_options(struct translator *t)
{
    char text[32] = "(?";
    size_t count = 2;

    for (char c; (c = peek(t, 0)) == 'i' || c == 'm' || c == '-'; t->at++) {
        if (count + 3 > sizeof(text)) {
            return refuse(t, "this option");
        }
        text[count++] = c == 'm' ? 's' : c;
    }
    char end = peek(t, 0);
    if (count == 2 || (end != ')' && end != ':')) {
        return refuse(t, "this (? group or option");
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
    return emit(t, text);
}

/* Length of "(", "(?:", "(?=", "(?<name>" ... at `at`, to be copied; 0 when it is something else. */
static size_t read_group(const struct translator *t)
{
    if (peek(t, 1) != '?') {
        return 1;
    }
    char c = peek(t, 2), d = peek(t, 3);
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
        d = peek(t, i);
        if (d == '>' && i > 3) {
            return i + 1;
        }
        if (!((d >= 'a' && d <= 'z') || (d >= 'A' && d <= 'Z') || d == '_' || (i > 3 && d >= '0' && d <= '9'))) {
            return 0;
        }
    }
    return 0;
}

static enum weft_status translate_group(struct translator *t)
{
    size_t length = read_group(t);

    if (t->depth == GROUP_DEPTH_MAX) {
        return refuse(t, "such deep nesting");
    }
    if (peek(t, 1) == '?' && peek(t, 2) == '#') {
        const char *end = memchr(t->in + t->at, ')', t->size - t->at);
        if (end == NULL) {
            return refuse(t, "an open comment");
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

static enum weft_status close_groups(struct translator *t)
{
    for (; t->groups[t->depth].opened > 0; t->groups[t->depth].opened--) {
        WEFT_TRY(emit(t, ")"));
    }
    return WEFT_OK;
}

static enum weft_status translate_close(struct translator *t)
{
    if (t->depth == 0) {
        return refuse(t, "a ) without its (");
    }
    WEFT_TRY(close_groups(t));
    WEFT_TRY(emit(t, ")"));
    t->atom = t->groups[t->depth].begin;
    t->is_quantified = false;
    t->depth--;
    t->at++;
    return WEFT_OK;
}

static enum weft_status translate_one(struct translator *t)
{
    char c = t->in[t->at];

    switch (c) {
    case '\\': return translate_escape(t);
    case '[': return translate_class(t);
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
        return emit(t, text);
    }
    default: WEFT_TRY(begin_atom(t)); return emit_literal(t);
    }
}

enum weft_status weft_regex_translate(const char *path, const char *pattern, size_t size, struct weft_bytes *out)
{
    struct translator t = {.path = path, .in = pattern, .size = size, .out = out};

    t.atom = out->size;
    while (t.at < t.size) {
        WEFT_TRY(translate_one(&t));
    }
    if (t.depth > 0) {
        return refuse(&t, "a ( without its )");
    }
    return close_groups(&t);
}
