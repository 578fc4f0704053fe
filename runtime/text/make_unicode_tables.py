"""Writes unicode_tables.inc: what the `tokenizers` package knows of characters, where our libraries know more or less.

The package's parts were built with different versions of Unicode (normalization 9, punctuation 8, Oniguruma 16, Rust 17);
PCRE2 10.42 has 14, utf8proc 2.8 has 15. Run with Python 3.11 (Unicode 14) and `tokenizers` 0.23:

    python make_unicode_tables.py > unicode_tables.inc
"""

import sys
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cf".split()
CODES = [code for code in range(0x80, 0x110000) if not 0xD800 <= code < 0xE000]


def matches(pre_tokenizer, codes):
    return {ord(piece) for piece, _ in pre_tokenizer.pre_tokenize_str("".join(map(chr, codes))) if len(piece) == 1}


def write_ranges(name, comment, codes, suffix=lambda code: ""):
    ranges = []
    for code in sorted(codes):
        if ranges and ranges[-1][1] == code - 1 and ranges[-1][2] == suffix(code):
            ranges[-1][1] = code
        else:
            ranges.append([code, code, suffix(code)])
    sys.stdout.write(f"/* {comment} */\nstatic const struct weft_char_range {name}[] = {{\n")
    for first, last, text in ranges:
        sys.stdout.write("{0x%X, 0x%X, \"%s\"},\n" % (first, last, text))
    sys.stdout.write("};\n")


def new_categories():
    unassigned = [code for code in CODES if unicodedata.category(chr(code)) == "Cn"]
    found = {}
    for category in CATEGORIES:
        split = pre_tokenizers.Split(Regex(r"\p{%s}" % category), "removed", invert=True)
        found.update({code: category for code in matches(split, unassigned)})
    return found


def is_normalizable(nfd, nfkd, code):
    """It decomposes, or its combining class is not 0: then it changes places with a mark of another class."""
    char = chr(code)
    return nfkd.normalize_str(char) != char or any(
        nfd.normalize_str(text) != text for text in (f"x{char}\u0334", f"x\u0301{char}")
    )


def main():
    assert unicodedata.unidata_version == "14.0.0", unicodedata.unidata_version
    new = new_categories()
    write_ranges("new_ranges", "Unicode 15 and 16, as Oniguruma has them.", new, new.get)
    nfd, nfkd = normalizers.NFD(), normalizers.NFKD()
    write_ranges(
        "normalizable_ranges",
        "Decomposes or has a combining class, as the normalization forms have it.",
        [code for code in CODES if is_normalizable(nfd, nfkd, code)],
    )
    accents = normalizers.StripAccents()
    write_ranges("mark_ranges", "StripAccents.", [code for code in CODES if not accents.normalize_str(chr(code))])
    isolated = pre_tokenizers.Punctuation("isolated")
    spaced = "".join(f"a{chr(code)}" for code in CODES)
    write_ranges(
        "punctuation_ranges",
        "Punctuation beyond ASCII.",
        [ord(piece) for piece, _ in isolated.pre_tokenize_str(spaced) if len(piece) == 1 and piece != "a"],
    )
    digits = pre_tokenizers.Digits(True)
    write_ranges(
        "numeric_ranges",
        "Digits beyond ASCII.",
        [ord(piece) for piece, _ in digits.pre_tokenize_str(spaced) if len(piece) == 1 and piece != "a"],
    )
    lower = normalizers.Lowercase()
    pairs = [(code, lower.normalize_str(chr(code))) for code in CODES]
    sys.stdout.write("/* Lower case that Unicode 14 has not: from, to. */\nstatic const uint32_t new_lower[][2] = {\n")
    for code, text in pairs:
        if len(text) == 1 and text != chr(code).lower():
            sys.stdout.write("{0x%X, 0x%X},\n" % (code, ord(text)))
    sys.stdout.write("};\n")


main()
