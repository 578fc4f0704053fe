/* UTF-8, character classes over utf8proc, the byte-level alphabet. */
#include "utf8.h"

#include <string.h>
#include <utf8proc.h>

size_t weft_utf8_write(uint32_t code, char *out)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xC0 | code >> 6);
        out[1] = (char)(0x80 | (code & 0x3F));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xE0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 0x3F));
        out[2] = (char)(0x80 | (code & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 0x3F));
    out[2] = (char)(0x80 | (code >> 6 & 0x3F));
    out[3] = (char)(0x80 | (code & 0x3F));
    return 4;
}

size_t weft_utf8_check(const char *text, size_t size, size_t *bad_out, bool *is_cut_out)
{
    const unsigned char *p = (const unsigned char *)text;
    unsigned char low = 0x80, high = 0xBF;
    size_t need;

    *bad_out = 1;
    *is_cut_out = false;
    if (p[0] < 0x80) {
        return 1;
    }
    if (p[0] < 0xC2 || p[0] > 0xF4) {
        return 0;
    }
    need = weft_utf8_length(p[0]);
    /* The second byte alone excludes overlong forms, surrogates and what lies beyond U+10FFFF. */
    switch (p[0]) {
    case 0xE0: low = 0xA0; break;
    case 0xED: high = 0x9F; break;
    case 0xF0: low = 0x90; break;
    case 0xF4: high = 0x8F; break;
    default: break;
    }
    for (size_t i = 1; i < need; i++) {
        *bad_out = i;
        if (i >= size) {
            *is_cut_out = true;
            return 0;
        }
        if (p[i] < low || p[i] > high) {
            return 0;
        }
        low = 0x80;
        high = 0xBF;
    }
    return need;
}

size_t weft_utf8_valid_size(const char *text, size_t size)
{
    size_t done = 0, bad;
    bool is_cut;

    while (done < size) {
        uint64_t eight;
        /* Most text is ASCII: eight bytes at a time. */
        while (size - done >= 8 && (memcpy(&eight, text + done, 8), (eight & 0x8080808080808080u) == 0)) {
            done += 8;
        }
        if (done == size) {
            break;
        }
        size_t length = weft_utf8_check(text + done, size - done, &bad, &is_cut);
        if (length == 0) {
            break;
        }
        done += length;
    }
    return done;
}

enum weft_status weft_utf8_append_lossy(struct weft_bytes *out, const char *text, size_t size)
{
    size_t done = 0, bad;
    bool is_cut;

    while (done < size) {
        size_t valid = weft_utf8_valid_size(text + done, size - done);
        WEFT_TRY(weft_bytes_append(out, text + done, valid));
        done += valid;
        if (done < size) {
            (void)weft_utf8_check(text + done, size - done, &bad, &is_cut);
            WEFT_TRY(weft_bytes_append(out, WEFT_UTF8_REPLACEMENT, 3));
            done += bad;
        }
    }
    return WEFT_OK;
}

bool weft_char_is_space(uint32_t code)
{
    return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 ||
           (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
           code == 0x3000;
}

/* Made by make_unicode_tables.py: ascending ranges. */
#include "unicode_tables.inc"

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static const struct weft_char_range *find_range(const struct weft_char_range *ranges, size_t count, uint32_t code)
{
    size_t begin = 0, end = count;

    while (begin < end) {
        size_t middle = begin + (end - begin) / 2;
        if (code < ranges[middle].first) {
            end = middle;
        } else if (code > ranges[middle].last) {
            begin = middle + 1;
        } else {
            return &ranges[middle];
        }
    }
    return NULL;
}

bool weft_char_new_range(size_t index, struct weft_char_range *out)
{
    if (index >= COUNT_OF(new_ranges)) {
        return false;
    }
    *out = new_ranges[index];
    return true;
}

bool weft_char_is_numeric(uint32_t code)
{
    return code < 0x80 ? code >= '0' && code <= '9'
                       : find_range(numeric_ranges, COUNT_OF(numeric_ranges), code) != NULL;
}

bool weft_char_is_punctuation(uint32_t code)
{
    if (code < 0x80) {
        return (code >= 0x21 && code <= 0x2F) || (code >= 0x3A && code <= 0x40) || (code >= 0x5B && code <= 0x60) ||
               (code >= 0x7B && code <= 0x7E);
    }
    return find_range(punctuation_ranges, COUNT_OF(punctuation_ranges), code) != NULL;
}

bool weft_char_is_mark(uint32_t code)
{
    return code >= 0x80 && find_range(mark_ranges, COUNT_OF(mark_ranges), code) != NULL;
}

bool weft_char_is_normalizable(uint32_t code)
{
    return code >= 0x80 && find_range(normalizable_ranges, COUNT_OF(normalizable_ranges), code) != NULL;
}

uint32_t weft_char_lower(uint32_t code)
{
    for (size_t i = 0; i < COUNT_OF(new_lower) && code >= new_lower[0][0]; i++) {
        if (new_lower[i][0] == code) {
            return new_lower[i][1];
        }
    }
    return (uint32_t)utf8proc_tolower((utf8proc_int32_t)code);
}

/* General category, two letters. */
static const char *category_of(uint32_t code)
{
    const char *known = utf8proc_category_string((utf8proc_int32_t)code);
    const struct weft_char_range *range = find_range(new_ranges, COUNT_OF(new_ranges), code);

    return range != NULL ? range->category : known;
}

bool weft_char_is_word(uint32_t code)
{
    const char *category = category_of(code);

    if (category[0] == 'L' || category[0] == 'M' || strcmp(category, "Nd") == 0 || strcmp(category, "Nl") == 0 ||
        strcmp(category, "Pc") == 0) {
        return true;
    }
    /* Other_Alphabetic outside M: circled, squared and parenthesized Latin letters; then the two joiners. */
    return (code >= 0x24B6 && code <= 0x24E9) || (code >= 0x1F130 && code <= 0x1F149) ||
           (code >= 0x1F150 && code <= 0x1F169) || (code >= 0x1F170 && code <= 0x1F189) || code == 0x200C ||
           code == 0x200D;
}

/* Printable Latin-1 stands for itself; the other 68 bytes follow from U+0100, in order. */
uint32_t weft_byte_char(unsigned char byte)
{
    if (byte <= 0x20) {
        return 0x100u + byte;
    }
    if (byte >= 0x7F && byte <= 0xA0) {
        return 0x121u + (byte - 0x7Fu);
    }
    return byte == 0xAD ? 0x143 : byte;
}

int weft_byte_of_char(uint32_t code)
{
    if (code >= 0x100 && code <= 0x120) {
        return (int)(code - 0x100);
    }
    if (code >= 0x121 && code <= 0x142) {
        return (int)(code - 0x121 + 0x7F);
    }
    if (code == 0x143) {
        return 0xAD;
    }
    if ((code >= 0x21 && code <= 0x7E) || (code >= 0xA1 && code <= 0xFF && code != 0xAD)) {
        return (int)code;
    }
    return -1;
}
