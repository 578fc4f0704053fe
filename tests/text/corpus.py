"""Texts for the differential tests, the same on every machine: seeded, no files, no network."""

import random

WORDS = (
    "the of and to in is that for it with as was on be at by this have from or had not are but what all were when we "
    "there can an your which their said if do will each about how up out them then she many some so these would other "
    "into has more her two like him see time could no make than first been its who now people my made over did down "
    "only way find use may water long little very after words called just where most know don't we'll I'm they've "
    "you're he'd it's WON'T I'LL THEY'RE can't'"
).split()

# First and last code point of blocks whose characters are assigned nearly everywhere.
SCRIPTS = {
    "latin1": (0xA1, 0xFF),
    "latin": (0x100, 0x24F),
    "ipa": (0x250, 0x2AF),
    "greek": (0x391, 0x3C9),
    "cyrillic": (0x400, 0x45F),
    "armenian": (0x531, 0x556),
    "hebrew": (0x5D0, 0x5EA),
    "arabic": (0x620, 0x64A),
    "devanagari": (0x904, 0x939),
    "bengali": (0x985, 0x98C),
    "tamil": (0xB85, 0xB8A),
    "thai": (0xE01, 0xE3A),
    "tibetan": (0xF40, 0xF47),
    "georgian": (0x10D0, 0x10F0),
    "hangul jamo": (0x1100, 0x1112),
    "ethiopic": (0x1200, 0x1246),
    "khmer": (0x1780, 0x17B3),
    "greek extended": (0x1F00, 0x1F15),
    "hiragana": (0x3041, 0x3096),
    "katakana": (0x30A1, 0x30FA),
    "cjk": (0x4E00, 0x9FA5),
    "hangul": (0xAC00, 0xD7A3),
    "compatibility": (0xF900, 0xFA0D),
    "presentation": (0xFB50, 0xFBB1),
    "halfwidth": (0xFF01, 0xFFBE),
    "gothic": (0x10330, 0x1034A),
    "math": (0x1D400, 0x1D454),
    "cjk extension": (0x20000, 0x2A6D6),
}

MARKS = [chr(c) for c in (*range(0x300, 0x345), 0x591, 0x5B0, 0x64B, 0x651, 0x93C, 0x94D, 0xE48, 0x1AB0, 0x20D0, 0x3099)]
SPACES = [" ", " ", " ", "\t", "\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\xa0", "\u1680", "\u180e", "\u2003", "\u2028"]
SPACES += ["\u2029", "\u202f", "\u205f", "\u3000", "\u200b", "\ufeff"]
DIGITS = [chr(c) for c in (*range(0x30, 0x3A), 0xB2, 0xBD, 0x661, 0x969, 0x2167, 0x2460, 0x3007, 0x4E09, 0xFF11, 0x1D7CE)]
PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + list("\u00ab\u00bb\u2014\u2018\u2019\u201c\u2026\u3001\u3002\uff01\u20ac\u00a7\u2192\u221e\u2581\u0120\u010a")
EMOJI = ["\U0001F600", "\u2764\ufe0f", "\U0001F468\u200d\U0001F469\u200d\U0001F467\u200d\U0001F466", "\U0001F44D\U0001F3FD"]
EMOJI += ["\U0001F1E9\U0001F1EA", "\U0001F3F4\U000E0067\U000E0062\U000E0065\U000E006E\U000E0067\U000E007F", "1\ufe0f\u20e3"]
EMOJI += ["\U0001F9D1\U0001F3FF\u200d\U0001F680", "\u267b", "\U0001FAE8"]
CODE = [
    "for (int i = 0; i < n; i++) {\n\t\tsum += a[i] * b[i];\n\t}\n",
    "def f(x):\n    return {k: v for k, v in x.items() if k != 'a'}\n",
    "SELECT * FROM t WHERE id >= 10 AND name LIKE '%x%';\r\n",
    "#include <stdio.h>\nint main(void) { puts(\"hi\\n\"); return 0; }\n",
    "<div class=\"a-b\">&nbsp;</div><!-- x -->\n\n\n",
    "https://example.org/a/b?c=d&e=%20f#g",
    "x = 0xDEADBEEF + 1_000_000.5e-10 // comment\n",
]
INVALID = [b"\xff", b"\x80\x80", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"]
INVALID += [b"\xf8\x88\x80\x80\x80", b"\xe0\x80\x80", b"a\xf0\x9fb", b"\xfe\xfe"]


def _word(rng):
    word = rng.choice(WORDS)
    return rng.choice((word, word, word.capitalize(), word.upper()))


def _sentence(rng):
    return " ".join(_word(rng) for _ in range(rng.randint(1, 14))) + rng.choice(("", ".", "!", "?", "...", "\n"))


def _script(rng):
    first, last = SCRIPTS[rng.choice(sorted(SCRIPTS))]
    words = ("".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 9))) for _ in range(rng.randint(1, 6)))
    return rng.choice((" ", "", "\u3000")).join(words)


def _marks(rng):
    base = rng.choice("aeinouAEOcC \u0915\u05d0\u0627\uac00\u3046\u1100")
    return base + "".join(rng.choice(MARKS) for _ in range(rng.randint(1, 5)))


def _bidi(rng):
    return "\u202b" + "\u05e9\u05dc\u05d5\u05dd " + _word(rng) + " \u0645\u0631\u062d\u0628\u0627\u200f\u202c" + rng.choice(DIGITS)


def _any(rng):
    """Any code point that is assigned in Unicode 13 or not at all: no surrogates, few enough to be odd."""
    code = rng.choice((rng.randint(0, 0x7FF), rng.randint(0x800, 0xD7FF), rng.randint(0xE000, 0xFFFF), rng.randint(0x10000, 0x1F9FF)))
    return chr(code)


def _long(rng):
    return rng.choice((_word(rng), rng.choice("aZ0_ \u00e9\u4e00\U0001F600"), _script(rng))) * rng.randint(20, 400)


def _pieces(rng, special):
    return [
        lambda: _sentence(rng),
        lambda: _sentence(rng),
        lambda: _script(rng),
        lambda: _marks(rng),
        lambda: _bidi(rng),
        lambda: "".join(rng.choice(SPACES) for _ in range(rng.randint(1, 9))),
        lambda: rng.choice((" ", "\n", "\t")) * rng.randint(1, 40),
        lambda: "".join(rng.choice(DIGITS) for _ in range(rng.randint(1, 12))),
        lambda: str(rng.randint(0, 10**rng.randint(1, 15))),
        lambda: "".join(rng.choice(PUNCTUATION) for _ in range(rng.randint(1, 6))),
        lambda: rng.choice(EMOJI),
        lambda: rng.choice(CODE),
        lambda: rng.choice(special),
        lambda: " " + rng.choice(special) + " ",
        lambda: "".join(_any(rng) for _ in range(rng.randint(1, 4))),
        lambda: rng.choice("\u0130\u0131\u00df\u017f\u212a\u01c5\ufb01\u0345\u03c2") + rng.choice(("", "s", "'\u017f", "'S", "'LL")),
    ]


def texts(count, special, seed):
    """`count` byte strings; `special` are spellings to strew in."""
    rng = random.Random(seed)
    pieces = _pieces(rng, special)
    yield b""
    yield b" "
    yield b"\n"
    yield b"\0a\0"
    for word in special:
        yield word.encode()
        yield (" " + word + "x").encode()
        yield ("x" + word + word + "\n").encode()
    for index in range(count):
        if index % 100 == 0:
            text = _long(rng)
        else:
            text = "".join(rng.choice(("", "", " ")) + rng.choice(pieces)() for _ in range(rng.randint(1, 8)))
        data = text.encode()
        if index % 9 == 0:
            for _ in range(rng.randint(1, 3)):
                at = rng.randint(0, len(data))
                data = data[:at] + rng.choice(INVALID) + data[at:]
        yield data
