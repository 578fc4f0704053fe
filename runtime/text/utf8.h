/*
 * UTF-8 and the few character classes that tokenizers need. Code points come from valid UTF-8 unless said otherwise:
 * weft_utf8_append_lossy() is the gate through which all outside text passes first.
 */
#ifndef WEFT_TEXT_UTF8_H
#define WEFT_TEXT_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "buffer.h"

/* Bytes of the character that begins with `lead`, in valid UTF-8. */
static inline size_t weft_utf8_length(unsigned char lead)
{
    return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

/* Code point at text, valid UTF-8; *length_out its bytes. */
static inline uint32_t weft_utf8_read(const char *text, size_t *length_out)
{
    const unsigned char *p = (const unsigned char *)text;

    *length_out = weft_utf8_length(p[0]);
    switch (*length_out) {
    case 1: return p[0];
    case 2: return (p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu);
    case 3: return (p[0] & 0x0Fu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
    default: return (p[0] & 0x07u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
    }
}

/* Writes `code` (a Unicode scalar value) to out[4]; returns its length. */
size_t weft_utf8_write(uint32_t code, char *out);

/*
 * Length of the valid character at text[size], size > 0; 0 when it is not one, then *bad_out is the length of the
 * maximal invalid part (Unicode chapter 3, "U+FFFD substitution of maximal subparts"), and *is_cut_out whether the
 * text merely ends too early.
 */
size_t weft_utf8_check(const char *text, size_t size, size_t *bad_out, bool *is_cut_out);

/* Length of the longest prefix of text[size] that is valid UTF-8. */
size_t weft_utf8_valid_size(const char *text, size_t size);

/* Appends text[size] with every maximal invalid part replaced by U+FFFD. */
WEFT_MUST_CHECK enum weft_status weft_utf8_append_lossy(struct weft_bytes *out, const char *text, size_t size);

#define WEFT_UTF8_REPLACEMENT "\xEF\xBF\xBD"

/* Unicode White_Space. */
bool weft_char_is_space(uint32_t code);
/* Numbers, punctuation and marks as the package's Digits, Punctuation and StripAccents see them: about N, P and M. */
bool weft_char_is_numeric(uint32_t code);
bool weft_char_is_punctuation(uint32_t code);
bool weft_char_is_mark(uint32_t code);
/* False: the normalization forms leave it alone, whatever utf8proc knows of it. */
bool weft_char_is_normalizable(uint32_t code);
/* Lower case, for the one exception see Lowercase. */
uint32_t weft_char_lower(uint32_t code);
/* \w of Unicode regular expressions (UTS 18): Alphabetic, M, Nd, Pc and the joiners. */
bool weft_char_is_word(uint32_t code);

/*
 * Characters newer than the Unicode of PCRE2 10.42 (14) but known to the package's Oniguruma (16): range number `index`
 * in ascending order and its general category ("Lo"); false behind the last.
 */
struct weft_char_range {
    uint32_t first;
    uint32_t last;
    char category[3];
};
bool weft_char_new_range(size_t index, struct weft_char_range *out);

/*
 * The byte-level alphabet of GPT-2: every byte as one printable character. Code point of `byte`, at most U+0143; and
 * back: the byte of `code`, -1 when it stands for none.
 */
uint32_t weft_byte_char(unsigned char byte);
int weft_byte_of_char(uint32_t code);

#endif
