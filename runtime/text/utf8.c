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

bool weft_char_is_numeric(uint32_t code)
{
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);

    return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL || category == UTF8PROC_CATEGORY_NO;
}

bool weft_char_is_punctuation(uint32_t code)
{
    if (code < 0x80) {
        return (code >= 0x21 && code <= 0x2F) || (code >= 0x3A && code <= 0x40) || (code >= 0x5B && code <= 0x60) ||
               (code >= 0x7B && code <= 0x7E);
    }
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);
    return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

bool weft_char_is_mark(uint32_t code)
{
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);

    return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_MC || category == UTF8PROC_CATEGORY_ME;
}

bool weft_char_is_word(uint32_t code)
{
    switch (utf8proc_category((utf8proc_int32_t)code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: break;
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
