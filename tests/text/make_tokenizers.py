"""Tokenizers of the families that Weft reads, made small by the `tokenizers` package itself."""

import functools
import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import corpus

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
FALLBACK = [f"<0x{byte:02X}>" for byte in range(256)]


def training_texts():
    return [data.decode("utf-8", errors="replace") for data in corpus.texts(3000, ["x"], seed=99)]


def train(tokenizer, size, special, alphabet):
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(training_texts(), trainer)
    return tokenizer


def split_and_byte_level(pattern):
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2(add_prefix_space=False):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return train(tokenizer, 2000, ["<|endoftext|>"], ALPHABET)


def llama3():
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = split_and_byte_level(LLAMA3)
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, 2500, ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], ALPHABET)
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def qwen2():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split_and_byte_level(QWEN2)
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, 2500, [], ALPHABET)
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in ("<tool_call>", "</tool_call>")])
    return tokenizer


def real_qwen2(folder):
    """tokenizer.json from vocab.json and merges.txt, as transformers' Qwen2 tokenizer makes it."""
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    model = models.BPE.from_file(*files, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split_and_byte_level(QWEN2)
    tokenizer.decoder = decoders.ByteLevel()
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def with_fallback(tokenizer, **options):
    """The trained model again with byte tokens in front and byte fallback on, as conversions from SentencePiece are."""
    trained = tokenizer.get_vocab(with_added_tokens=False)
    words = ["<unk>", "<s>", "</s>", *FALLBACK]
    words += [word for word in sorted(trained, key=trained.get) if word not in words]
    merges = models_of(tokenizer)["merges"]
    model = models.BPE(
        vocab={word: index for index, word in enumerate(words)},
        merges=[tuple(merge) for merge in merges],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
        **options,
    )
    result = Tokenizer(model)
    result.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in ("<unk>", "<s>", "</s>")])
    result.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", result.token_to_id("<s>"))]
    )
    return result


def models_of(tokenizer):
    return json.loads(tokenizer.to_str())["model"]


def sentencepiece():
    """Llama 2: a normalizer puts the marks, the whole text is one word."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    result = with_fallback(train(trained, 2000, ["<unk>", "<s>", "</s>"], []))
    result.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    result.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return result


def mistral(scheme="first", split=False):
    """Mistral: a Metaspace pre-tokenizer."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    result = with_fallback(train(trained, 2000, ["<unk>", "<s>", "</s>"], []))
    result.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme, split=split)
    result.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return result


def clip():
    """Words end in </w>, everything is lower case, the decoder turns the suffix into spaces."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<unk>", "<pad>"], limit_alphabet=200, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    return tokenizer


def cuts(suffix="</w>"):
    """
    No merges, only bytes, and a suffix behind every word: the ids spell the normalized text with its cuts. What a
    normalizer or a pre-tokenizer does cannot hide.
    """
    vocabulary = {word: index for index, word in enumerate(FALLBACK)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, end_of_word_suffix=suffix))
    tokenizer.decoder = decoders.ByteFallback()
    return tokenizer


@functools.lru_cache(maxsize=None)
def _saved(name):
    return FAMILIES[name]().to_str()


def family(name):
    """A fresh tokenizer of a family; trained once per process."""
    return Tokenizer.from_str(_saved(name))


FAMILIES = {
    "gpt2": gpt2,
    "gpt2-prefix-space": lambda: gpt2(add_prefix_space=True),
    "llama3": llama3,
    "qwen2": qwen2,
    "sentencepiece": sentencepiece,
    "mistral": mistral,
    "mistral-always-split": lambda: mistral("always", True),
    "mistral-never": lambda: mistral("never", False),
    "clip": clip,
}
