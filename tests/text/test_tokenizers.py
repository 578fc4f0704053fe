"""Differential tests of runtime/text against the `tokenizers` package, which is what models were trained with."""

import json
import os
import pathlib
import random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers

import corpus
import differential
import make_tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOL = pathlib.Path(os.environ.get("WEFT_BUILD", ROOT / "build")) / "tokenize_tool"
SHARED = ROOT.parent / "shared" / "data"


def open_both(tokenizer, path):
    tokenizer.save(str(path))
    return differential.Tool(TOOL, path), tokenizer


def special_of(tokenizer):
    return [token.content for token in tokenizer.get_added_tokens_decoder().values()][:20] or ["<s>"]


def compare_all(tool, package, count, seed):
    data = list(corpus.texts(count, special_of(package), seed))
    differential.compare_encode(tool, package, data)
    differential.compare_decode(tool, package, list(differential.random_ids(package, count, seed)))
    differential.compare_vocabulary(tool, package)


@pytest.mark.parametrize("name", ["story-model", "llama-2", "qwen2"])
def test_real_tokenizer(name, tmp_path):
    """10,000 texts and 10,000 random id lists for every tokenizer of a real model."""
    folder = SHARED / "story-model" if name == "story-model" else SHARED / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: the tokenizer of a real model is not compared")
    path = folder / "tokenizer.json"
    if name == "qwen2":
        path = tmp_path / "tokenizer.json"
        make_tokenizers.real_qwen2(folder).save(str(path))
    compare_all(differential.Tool(TOOL, path), Tokenizer.from_file(str(path)), 10000, seed=1)


def test_demo_model():
    path = ROOT / "launch" / "demo-model" / "tokenizer.json"
    compare_all(differential.Tool(TOOL, path), Tokenizer.from_file(str(path)), 2000, seed=8)


@pytest.mark.parametrize("name", sorted(make_tokenizers.FAMILIES))
def test_family(name, tmp_path):
    tool, package = open_both(make_tokenizers.family(name), tmp_path / "tokenizer.json")
    compare_all(tool, package, 2000, seed=2)


@pytest.mark.parametrize("form", ["strings", "no type"])
def test_older_forms_of_the_file(form, tmp_path):
    """Merges as "left right" instead of pairs; a model without its type."""
    path = tmp_path / "tokenizer.json"
    root = json.loads(make_tokenizers.family("gpt2").to_str())
    root["model"]["merges"] = [" ".join(merge) for merge in root["model"]["merges"]]
    if form == "no type":
        del root["model"]["type"]
    path.write_text(json.dumps(root))
    compare_all(differential.Tool(TOOL, path), Tokenizer.from_file(str(path)), 300, seed=3)


# ---- components, one at a time: over the model that shows every cut ----

TABLES = ROOT / "runtime" / "text" / "unicode_tables.inc"


def unicode_texts():
    """Every character of the first plane, some of the second, and those that our libraries are too old to know."""
    codes = [code for code in range(1, 0x10000) if not (0xD800 <= code <= 0xDFFF or 0xAC80 <= code <= 0xD700)]
    codes += [*range(0x10000, 0x12000), *range(0x1D400, 0x1D800), *range(0x1F000, 0x1FB00)]
    for line in TABLES.read_text().splitlines():
        if line.startswith("{"):
            first, last = (int(word, 16) for word in line.strip("{},").split(",")[:2])
            codes += [first - 1, first, last, last + 1]
    codes = [code for code in codes if not 0xD800 <= code <= 0xDFFF]
    return ["".join(map(chr, codes[begin : begin + 1000])).encode() for begin in range(0, len(codes), 1000)]


NORMALIZERS = {
    "NFC": normalizers.NFC(),
    "NFD": normalizers.NFD(),
    "NFKC": normalizers.NFKC(),
    "NFKD": normalizers.NFKD(),
    "Lowercase": normalizers.Lowercase(),
    "StripAccents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "Strip": normalizers.Strip(),
    "Strip left": normalizers.Strip(left=True, right=False),
    "Strip right": normalizers.Strip(left=False, right=True),
    "Nmt": normalizers.Nmt(),
    "ByteLevel": normalizers.ByteLevel(),
    "Prepend": normalizers.Prepend("\u2581\u2581"),
    "Replace": normalizers.Replace("ab", "<>"),
    "Replace regex": normalizers.Replace(Regex(r"\s+|'"), " "),
    "Replace empty": normalizers.Replace(Regex(r"x*"), "-"),
    "Sequence": normalizers.Sequence([normalizers.Prepend(" "), normalizers.Strip(), normalizers.Replace("a", "")]),
}


@pytest.mark.parametrize("name", NORMALIZERS)
def test_normalizer(name, tmp_path):
    tokenizer = make_tokenizers.cuts()
    tokenizer.normalizer = NORMALIZERS[name]
    tool, package = open_both(tokenizer, tmp_path / "tokenizer.json")
    data = list(corpus.texts(300, ["\u0301\u0327\u0301", "q\u0323\u0307"], seed=4))
    if not name.startswith(("Prepend", "Replace", "Sequence", "ByteLevel")):
        data += unicode_texts()
    differential.compare_ids(tool, package, data)


PRE_TOKENIZERS = {
    "ByteLevel": pre_tokenizers.ByteLevel(),
    "ByteLevel no space": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "ByteLevel no regex": pre_tokenizers.ByteLevel(use_regex=False),
    "Metaspace": pre_tokenizers.Metaspace(),
    "Metaspace _": pre_tokenizers.Metaspace("_", "first", True),
    "Digits": pre_tokenizers.Digits(False),
    "Digits one by one": pre_tokenizers.Digits(True),
    "Whitespace": pre_tokenizers.Whitespace(),
    "WhitespaceSplit": pre_tokenizers.WhitespaceSplit(),
    "Punctuation": pre_tokenizers.Punctuation(),
    "Punctuation merged": pre_tokenizers.Punctuation("merged_with_previous"),
    "CharDelimiterSplit": pre_tokenizers.CharDelimiterSplit("a"),
    "Sequence": pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed"), pre_tokenizers.Metaspace(prepend_scheme="first")]
    ),
}
BEHAVIORS = ["removed", "isolated", "contiguous", "merged_with_previous", "merged_with_next"]
for behavior in BEHAVIORS:
    for inverted in (False, True):
        PRE_TOKENIZERS[f"Split {behavior} {inverted}"] = pre_tokenizers.Split(Regex(r"\d|[^\w\s]"), behavior, inverted)
        PRE_TOKENIZERS[f"Split text {behavior} {inverted}"] = pre_tokenizers.Split("a", behavior, inverted)
        PRE_TOKENIZERS[f"Split empty {behavior} {inverted}"] = pre_tokenizers.Split(Regex("e*"), behavior, inverted)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_pre_tokenizer(name, tmp_path):
    tokenizer = make_tokenizers.cuts()
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[name]
    tool, package = open_both(tokenizer, tmp_path / "tokenizer.json")
    data = list(corpus.texts(300, ["aa", "\u2581", "_"], seed=5))
    if not name.startswith(("Split", "Char", "Metaspace")):
        data += unicode_texts()
    differential.compare_ids(tool, package, data)


# Expressions of real models, and every construct where Oniguruma and PCRE2 differ.
EXPRESSIONS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": make_tokenizers.LLAMA3,
    "qwen2": make_tokenizers.QWEN2,
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "deepseek": "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    "deepseek cjk": "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "interval possessive": r"\p{N}{1,3}+|[a-c]{2}+x",
    "interval lazy": r"[a-z]{2,4}?|\d{2}?",
    "interval from nothing": r"e{,2}t",
    "not an interval": r"a{,}|{x}|\{",
    "chained": r"(?:ab?)+*|o?+",
    "multiline": r"^.|.$",
    "dot matches newline": r"(?m:a.)|(?m)b.",
    "isolated option": r"x(?i)a|THE",
    "isolated option in a group": r"(?:t(?i)h|N)e|\)",
    "word boundary": r"\b\w|\B\d",
    "words": r"\w+|\W",
    "class escapes": r"[\s\d\-x]+|[a\S]",
    "hyphens": r"[a-c\d-]+|[_a-]|[]a]|[+--]",
    "classes in a class": r"[a[b-d]e]+|[^(\s|[.,!?])]",
    "bloom": " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+",
    "hex digits": r"\h+|\H",
    "vertical tab": r"\v|[\v\f]",
    "code points": r"\x41|\x{4e00}|\u0301|[\u0391-\u03a9\x61]",
    "properties": r"\p{^L}\P{Lu}|\p{Han}+|\P{^Nd}|\p{Letter}",
    "brackets": r"[[:space:][:digit:]]+|[^[:punct:]]|[[:xdigit:]]",
    "lookaround": r"(?<=a)b|(?<!t)h(?=e)|(?>a+)n",
    "reference": r"(\w)\1",
    "comment": r"a(?#comment)n|\/",
    "empty": r"",
    "unicode space": r"\s",
    "case": r"(?i:k|\u03c3|\u0444)",
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expression(name, tmp_path):
    tokenizer = make_tokenizers.cuts()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(EXPRESSIONS[name]), "isolated")
    tool, package = open_both(tokenizer, tmp_path / "tokenizer.json")
    words = ["aab", "abab)", "A{,}", "{x}", "THE the nE xa xA", "\n a\nb\n", "12345678", "a-z]", "STRASSE", "\x0b", "banann/"]
    data = [*corpus.texts(300, words, seed=6), *unicode_texts()]
    differential.compare_ids(tool, package, data)


DECODERS = {
    "none": None,
    "ByteLevel": decoders.ByteLevel(),
    "Metaspace": decoders.Metaspace(),
    "Metaspace never": decoders.Metaspace(prepend_scheme="never"),
    "BPEDecoder": decoders.BPEDecoder("e"),
    "Replace": decoders.Replace("th", "_"),
    "Replace regex": decoders.Replace(Regex("[aeiou]+"), "\u00e9"),
    "Strip": decoders.Strip("e", 1, 0),
    "Fuse, Replace": decoders.Sequence([decoders.Fuse(), decoders.Replace("th", "_")]),
    "Fuse, Replace regex": decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex("e+"), "<>")]),
    "Fuse, ByteFallback": decoders.Sequence([decoders.Fuse(), decoders.ByteFallback()]),
    "ByteFallback, Metaspace": decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("e")]),
    "ByteFallback, Fuse, Strip": decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip("e", 2, 0)]),
    "ByteLevel, Strip": decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 3, 0)]),
}


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
@pytest.mark.parametrize("name", DECODERS)
def test_decoder(family, name, tmp_path):
    tokenizer = make_tokenizers.family(family)
    tokenizer.decoder = DECODERS[name]
    tool, package = open_both(tokenizer, tmp_path / "tokenizer.json")
    lists = [ids for ids in differential.random_ids(package, 1500, seed=7) if ids or name != "BPEDecoder"]
    differential.compare_decode(tool, package, lists)


# ---- added tokens ----


def random_added(rng):
    word = rng.choice(["the", "<a>", " x", "x ", "ab", "\u2581the", "\u00e9", "A", "a", "<a>b", "12", "\n", "  ", "in", "\u0301"])
    flags = {flag: rng.random() < 0.4 for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    return AddedToken(word, **flags)


@pytest.mark.parametrize("seed", range(40))
def test_added_tokens_and_random_pipelines(seed, tmp_path):
    """Random flags of added tokens, under random normalizers and pre-tokenizers."""
    rng = random.Random(seed)
    tokenizer = make_tokenizers.cuts()
    if rng.random() < 0.7:
        names = [rng.choice([n for n in NORMALIZERS if n != "Replace empty"]) for _ in range(rng.randint(1, 2))]
        tokenizer.normalizer = normalizers.Sequence([NORMALIZERS[name] for name in names])
    if rng.random() < 0.7:
        # ByteLevel only at the end, as everywhere in the wild.
        names = [rng.choice(sorted(n for n in PRE_TOKENIZERS if "ByteLevel" not in n)) for _ in range(rng.randint(1, 2))]
        names += rng.choice(([], ["ByteLevel"], ["ByteLevel no regex"]))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([PRE_TOKENIZERS[name] for name in names])
    for _ in range(rng.randint(1, 6)):
        token = random_added(rng)
        if token.normalized and tokenizer.normalizer and not tokenizer.normalizer.normalize_str(token.content):
            continue  # the package then finds the token in every empty text
        try:
            tokenizer.add_tokens([token])
        except Exception:  # two spellings that normalize to the same: the package refuses them
            break
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    try:
        package = Tokenizer.from_file(str(path))
    except Exception:
        return
    words = ["the the", " x  x ", "ab.ab", "x <a>b y", "\u00e9a\u0301", "in12in 12", "  \n  ", "thethe", "<a> the", "A a"]
    data = list(corpus.texts(250, words, seed))
    assert differential.compare_where_package_lives(differential.Tool(TOOL, path), package, data) > 0
