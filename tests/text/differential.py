"""Compares build/tokenize_tool with the `tokenizers` package: ids and decoded text, string by string."""

import os
import random
import subprocess

import pytest

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a panic in one of its threads hangs the package


class Tool:
    """One tokenize_tool process; ask() sends all commands at once and returns the answers."""

    def __init__(self, binary, path):
        self.command = [str(binary), str(path)]

    def ask(self, lines):
        done = subprocess.run(self.command, input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        answers = done.stdout.split("\n")[:-1]
        assert len(answers) == len(lines), f"{len(answers)} answers to {len(lines)} commands: {done.stderr}"
        return answers


def ids_of(answer):
    return [int(word) for word in answer.split()]


def spelled(ids):
    return " ".join(map(str, ids))


def compare_where_package_lives(tool, package, data):
    """compare_ids(), less the texts at which the package itself panics. Returns how many were compared."""
    living = []
    for item in data:
        try:
            package.encode(item.decode("utf-8", errors="replace"))
        except BaseException as error:  # a Rust panic is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
        else:
            living.append(item)
    compare_ids(tool, package, living)
    return len(living)


def compare_ids(tool, package, data, is_special=False):
    """The ids of every text; returns them."""
    letter = "E" if is_special else "e"
    strings = [item.decode("utf-8", errors="replace") for item in data]
    answers = tool.ask([f"{letter} {item.hex()}" for item in data])
    expected = [encoding.ids for encoding in package.encode_batch(strings, add_special_tokens=is_special)]
    for item, answer, ids in zip(data, answers, expected):
        if answer != spelled(ids):
            fail(package, f"{letter} {item[:400]!r}", ids, ids_of(answer))
    return expected


def fail(package, what, expected, found):
    """Shows the tokens around the first difference: a whole list may be a million."""
    at = next((i for i, (a, b) in enumerate(zip(expected, found)) if a != b), min(len(expected), len(found)))
    show = [[package.id_to_token(i) for i in ids[max(0, at - 8) : at + 8]] for ids in (expected, found)]
    pytest.fail(f"{what}\nat {at} expected {show[0]}\nfound {show[1]}", pytrace=False)


def compare_encode(tool, package, data):
    """Ids with and without special tokens, then every id list decoded in both ways and as a stream."""
    compare_ids(tool, package, data)
    compare_decode(tool, package, compare_ids(tool, package, data, is_special=True))


def compare_decode(tool, package, lists):
    kept = package.decode_batch(lists, skip_special_tokens=False)
    skipped = package.decode_batch(lists, skip_special_tokens=True)
    for letter, expected in (("d", kept), ("D", skipped), ("s", skipped)):
        answers = tool.ask([f"{letter} {spelled(ids)}" for ids in lists])
        for ids, answer, text in zip(lists, answers, expected):
            found = bytes.fromhex(answer)
            if found != text.encode():
                pytest.fail(f"{letter} {ids[:400]}\nexpected {text[:400]!r}\nfound {found[:400]!r}", pytrace=False)


def random_ids(package, count, seed):
    """Id lists that no text encodes to: cut characters, runs of byte tokens, ids outside of the vocabulary."""
    rng = random.Random(seed)
    size = package.get_vocab_size()
    fallback = [i for i in (package.token_to_id(f"<0x{byte:02X}>") for byte in range(256)) if i is not None]
    for _ in range(count):
        ids = []
        for _ in range(rng.randint(0, 12)):
            kind = rng.randint(0, 9)
            if kind < 6 or (kind == 6 and not fallback):
                ids.append(rng.randrange(size))
            elif kind == 6:
                ids.extend(rng.choice(fallback) for _ in range(rng.randint(1, 6)))
            elif kind == 7:
                ids.extend(i for i in (package.token_to_id(f"<0x{b:02X}>") for b in "\u20ac\u4e00".encode()) if i is not None)
            elif kind == 8:
                ids.append(rng.randrange(min(size, 8)))
            else:
                ids.append(size + rng.randrange(1000))
        yield ids


def compare_vocabulary(tool, package):
    """Every spelling finds its id, every id its spelling."""
    vocabulary = package.get_vocab(with_added_tokens=True)
    words = sorted(vocabulary)
    answers = tool.ask([f"i {word.encode().hex()}" for word in words if word])
    for word, answer in zip((word for word in words if word), answers):
        assert int(answer) == vocabulary[word], word
