/* Characters, sets and brackets of Oniguruma patterns; regex_onig.c says what differs from PCRE2. */
#include "regex_onig.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "utf8.h"
#include "weft/log.h"

/* Unicode White_Space, its complement, and Oniguruma's word: contents of a bracket. */
#define SPACE_SET                                                                                                      \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define NOT_SPACE_SET                                                                                                  \
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}"                    \
    "\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"
#define WORD_SET                                                                                                       \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}"                   \
    "\\x{1f170}-\\x{1f189}"
#define WORD_CATEGORIES "L M Nd Nl Pc"
#define HEX_SET         "0-9a-fA-F"

enum weft_status weft_onig_refuse(const struct weft_onig *t, const char *what)
{
    weft_log(WEFT_LOG_ERROR, "text/regex", "%s: regular expression at byte %zu of %.200s: %s is not supported", t->path,
             t->at, t->in, what);
    return WEFT_ERR_UNSUPPORTED;
}

enum weft_status weft_onig_emit(struct weft_onig *t, const char *text)
{
    return weft_bytes_append(t->out, text, strlen(text));
}

/* Copies one character, escaped when it could mean something to PCRE2. */
enum weft_status weft_onig_literal(struct weft_onig *t)
{
    char c = t->in[t->at];
    size_t length = weft_utf8_length((unsigned char)c);

    if (c != '\0' && strchr("\\^$.[]|()?*+{}-&#/\"'<>=!,:~`@%; ", c) != NULL) {
        WEFT_TRY(weft_onig_emit(t, "\\"));
    }
    WEFT_TRY(weft_bytes_append(t->out, t->in + t->at, length));
    t->at += length;
    return WEFT_OK;
}

static enum weft_status emit_code(struct weft_onig *t, unsigned code)
{
    char text[16];

    snprintf(text, sizeof(text), "\\x{%x}", code);
    return weft_onig_emit(t, text);
}

static int hex_value(char c)
{
    const char *digits = "0123456789abcdef";
    const char *found = c == '\0' ? NULL : strchr(digits, c >= 'A' && c <= 'F' ? c + 32 : c);

    return found == NULL ? -1 : (int)(found - digits);
}

/* \xHH, \x{H...}, \uHHHH; `at` stands on the letter. */
static enum weft_status translate_hex(struct weft_onig *t)
{
    bool is_byte = t->in[t->at] == 'x' && weft_onig_peek(t, 1) != '{', is_braced = t->in[t->at] == 'x' && !is_byte;
    size_t digit_max = is_byte ? 2 : is_braced ? 6 : 4, count = 0;
    unsigned code = 0;

    t->at += is_braced ? 2 : 1;
    while (count < digit_max && hex_value(weft_onig_peek(t, count)) >= 0) {
        code = code * 16 + (unsigned)hex_value(weft_onig_peek(t, count));
        count++;
    }
    t->at += count;
    if (count == 0 || (is_braced && weft_onig_peek(t, 0) != '}') || (is_byte && code > 0x7F) || code > 0x10FFFF ||
        (code >= 0xD800 && code <= 0xDFFF)) {
        return weft_onig_refuse(t, "this \\x or \\u");
    }
    t->at += is_braced;
    return emit_code(t, code);
}

/* Escapes that mean one character, inside and outside of brackets; *done_out false when it is none of them. */
enum weft_status weft_onig_char_escape(struct weft_onig *t, bool *done_out)
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
    return weft_onig_literal(t);
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
static enum weft_status emit_new(struct weft_onig *t, const char *wanted)
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
            WEFT_TRY(weft_onig_emit(t, text));
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

static enum weft_status emit_set(struct weft_onig *t, const struct named_set *set)
{
    WEFT_TRY(weft_onig_emit(t, set->set));
    return emit_new(t, set->categories);
}

/* \p{Name}, \P{Name}, \p{^Name}; `at` stands on the letter. */
enum weft_status weft_onig_property(struct weft_onig *t, bool is_in_class)
{
    bool is_negated = t->in[t->at] == 'P';
    char name[48], text[64];
    size_t count = 0;

    t->at++;
    if (weft_onig_peek(t, 0) != '{') {
        return weft_onig_refuse(t, "\\p without braces");
    }
    t->at++;
    if (weft_onig_peek(t, 0) == '^') {
        is_negated = !is_negated;
        t->at++;
    }
    while (count + 1 < sizeof(name) && weft_onig_peek(t, 0) != '}' && weft_onig_peek(t, 0) != '\0') {
        name[count++] = t->in[t->at++];
    }
    name[count] = '\0';
    if (count == 0 || weft_onig_peek(t, 0) != '}') {
        return weft_onig_refuse(t, "this property");
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
            return weft_onig_refuse(t, "a negated property set inside [...]");
        }
        text[1] = 'P'; /* without the new characters: a bracket cannot take some away again */
        return weft_onig_emit(t, text);
    }
    WEFT_TRY(weft_onig_emit(t, is_in_class ? "" : is_negated ? "[^" : "["));
    WEFT_TRY(emit_set(t, &set));
    return weft_onig_emit(t, is_in_class ? "" : "]");
}

/* The set of a name that is known to be there. */
enum weft_status weft_onig_set(struct weft_onig *t, const char *name)
{
    const struct named_set *set = find_set(name);

    return set == NULL ? weft_onig_refuse(t, name) : emit_set(t, set);
}

/* ---- brackets ---- */

static enum weft_status translate_posix(struct weft_onig *t)
{
    char name[16];
    size_t count = 0;

    t->at += 2;
    while (count + 1 < sizeof(name) && weft_onig_peek(t, 0) >= 'a' && weft_onig_peek(t, 0) <= 'z') {
        name[count++] = t->in[t->at++];
    }
    name[count] = '\0';
    const struct named_set *set = find_set(name);
    if (set == NULL || weft_onig_peek(t, 0) != ':' || weft_onig_peek(t, 1) != ']') {
        return weft_onig_refuse(t, "this POSIX bracket");
    }
    t->at += 2;
    return emit_set(t, set);
}

/* An escape inside [...]; *is_set_out true for more than one character. `at` stands behind the backslash. */
static enum weft_status translate_class_escape(struct weft_onig *t, bool *is_set_out)
{
    char c = weft_onig_peek(t, 0);
    bool is_done;

    *is_set_out = true;
    switch (c) {
    case 's': t->at++; return weft_onig_set(t, "space");
    case 'S': t->at++; return weft_onig_emit(t, NOT_SPACE_SET);
    case 'w': t->at++; return weft_onig_set(t, "word");
    case 'd': t->at++; return weft_onig_set(t, "digit");
    case 'D': t->at++; return weft_onig_emit(t, "\\P{Nd}");
    case 'h': t->at++; return weft_onig_set(t, "xdigit");
    case 'p':
    case 'P': return weft_onig_property(t, true);
    default: break;
    }
    *is_set_out = false;
    if (c == 'b') {
        t->at++;
        return emit_code(t, 0x08);
    }
    WEFT_TRY(weft_onig_char_escape(t, &is_done));
    return is_done ? WEFT_OK : weft_onig_refuse(t, "this escape inside [...]");
}

/* One '-': part of a range only between two single characters. */
static enum weft_status translate_hyphen(struct weft_onig *t, bool can_begin_range, bool *is_range_out)
{
    char next = weft_onig_peek(t, 1);
    char escaped = next == '\\' ? weft_onig_peek(t, 2) : 'x';

    *is_range_out = can_begin_range && next != ']' && next != '[' && next != '\0' && escaped != '\0' &&
                    strchr("sSwWdDhHpP", escaped) == NULL;
    t->at++;
    return weft_onig_emit(t, *is_range_out ? "-" : "\\-");
}

enum weft_status weft_onig_class(struct weft_onig *t)
{
    /* can_begin_range: the last thing was a single character that does not end a range itself. */
    bool can_begin_range = false, is_range = false, is_set;
    size_t depth = 0;

    WEFT_TRY(weft_onig_emit(t, "["));
    t->at++;
    if (weft_onig_peek(t, 0) == '^') {
        WEFT_TRY(weft_onig_emit(t, "^"));
        t->at++;
    }
    for (bool is_first = true;; is_first = false) {
        if (t->at >= t->size) {
            return weft_onig_refuse(t, "a [ without its ]");
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
        if (c == '&' && weft_onig_peek(t, 1) == '&') {
            return weft_onig_refuse(t, "&& inside [...]");
        }
        if (c == '[' && weft_onig_peek(t, 1) != ':') {
            if (weft_onig_peek(t, 1) == '^' || weft_onig_peek(t, 1) == ']') {
                return weft_onig_refuse(t, "such a class inside [...]");
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
            WEFT_TRY(weft_onig_literal(t));
        }
        can_begin_range = !is_set && !is_range;
        is_range = false;
    }
    t->at++;
    return weft_onig_emit(t, "]");
}
