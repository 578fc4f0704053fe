"""Running build/weft, and model folders to run it on; shared by the tests of this folder."""
import json
import os
import pathlib
import random
import re
import socket
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("WEFT_BUILD", ROOT / "build")).resolve()
WEFT = BUILD / "weft"
GOLDEN = ROOT / "tests" / "model" / "golden"
# Of everything that should end by itself: generous, the machine may be slow or busy.
HANG_S = 60
# Exit codes (launch/options.h): it failed; a port or memory is not to be had; it cannot run as it was asked to.
FAILED, BUSY, CONFIG = 1, 75, 78
PROMPT = "Once upon a time, a weaver crossed the river."
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]


def families():
    return sorted(p.name for p in GOLDEN.iterdir() if (p / "config.json").is_file())


def byte_alphabet():
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in plain}
    for n, byte in enumerate(b for b in range(256) if b not in table):
        table[byte] = chr(256 + n)
    return table


def model_folder(family, folder, context=None):
    """A golden model with a tokenizer of single bytes: ASCII first, as many bytes as its vocabulary holds.

    With a `context` far longer than its own, answers last as long as a test likes, however quick the machine is.
    """
    config = json.loads((GOLDEN / family / "config.json").read_text())
    for file in (GOLDEN / family).iterdir():
        if file.name != "golden.safetensors":
            (folder / file.name).symlink_to(file)
    if context is not None:
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": context}))
    specials = ["<unk>", "<s>", "</s>"]
    vocab = {token: i for i, token in enumerate(specials)}
    alphabet = byte_alphabet()
    for byte in sorted(alphabet, key=lambda b: (not 32 <= b < 127, b)):
        if len(vocab) < config["vocab_size"]:
            vocab[alphabet[byte]] = len(vocab)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": level,
        "post_processor": None, "decoder": level,
        "added_tokens": [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for i, t in enumerate(specials)],
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def weft(*arguments, wrapper=(), timeout=120, stdin="", environment=None):
    """Runs weft to its end; .stdout and .stderr are text."""
    command = [*wrapper, str(WEFT), *map(str, arguments)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WEFT_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, input=stdin,
                          env={**clean, **(environment or {})})


def answer(*arguments, **keywords):
    """The object that `weft run --output json` prints."""
    done = weft("run", "--output", "json", *arguments, **keywords)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def one_error_line(done, code):
    """The line on standard error of a call that had to fail with this exit code and print nothing else."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def group_of(pid):
    """Ids of the process and everything it started."""
    found, todo = set(), [pid]
    while todo:
        parent = todo.pop()
        found.add(parent)
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                todo += [int(c) for c in open(f"/proc/{parent}/task/{task}/children").read().split()]
        except OSError:
            pass
    return found


def mpi_ranks(pid):
    """{rank: pid} of what mpirun started below this process."""
    found = {}
    for child in group_of(pid):
        try:
            environment = open(f"/proc/{child}/environ", "rb").read().split(b"\0")
        except OSError:
            continue
        for variable in environment:
            if variable.startswith(b"OMPI_COMM_WORLD_RANK="):
                found[int(variable.split(b"=")[1])] = child
    return found


def is_alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


_reserved = []


def free_port():
    """A port for a listener that is started later, nobody else's until this process ends.

    Not one of those that the kernel gives to sockets without a wish, any of which may be taken a moment later. A UDP socket
    on the same number keeps other tests off it: they ask the same way (tests/comm/place.h too).
    """
    while True:
        port = random.SystemRandom().randrange(10000, 32000)
        mark = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            mark.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            mark.close()
            continue
        _reserved.append(mark)
        return port


def shm_mapped(pid):
    """The files of /dev/shm that a process has mapped."""
    return set(re.findall(r"/dev/shm/\S+", open(f"/proc/{pid}/maps").read()))


def shm_left_behind():
    """What lies in /dev/shm and no process has mapped. What others have there, the tests beside this one too, is theirs."""
    entries = {f"/dev/shm/{name}" for name in os.listdir("/dev/shm")}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            entries -= shm_mapped(pid)
        except OSError:
            pass  # it has just ended
    return entries


def until(condition, timeout=HANG_S):
    """Waits for condition() to hold; False when it does not in time."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return bool(condition())
