"""What is read from storage when ranks of one host load one model folder: each byte once, whoever asks for it."""
import os
import pathlib
import sys

import pytest
from weft_cli import ROOT

sys.path.insert(0, str(ROOT / "tests" / "bench"))
sys.path.insert(0, str(ROOT / "tests" / "serve"))
import random_model  # noqa: E402
from weft_server import Server  # noqa: E402

pytestmark = pytest.mark.timeout(300)
# Rows of o_proj of half a page, which all ranks read whole; 4 KV heads, of which some are with two of 3 or of 8 ranks.
SHAPE = {**random_model.CONFIG, "hidden_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 16,
         "num_key_value_heads": 4, "intermediate_size": 2816, "vocab_size": 8192}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    random_model.write_model(folder, SHAPE)
    return folder


def forget(path):
    """Out of the page cache, of this file alone."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def family(pid):
    children = [int(p) for t in pathlib.Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()]
    return [pid, *(p for child in children for p in family(child))]


def input_of(pids, what):
    """Bytes by /proc/PID/io: rchar is what programs asked for, read_bytes what storage gave."""
    lines = [line.split(": ") for pid in pids for line in pathlib.Path(f"/proc/{pid}/io").read_text().splitlines()]
    return sum(int(value) for name, value in lines if name == what)


@pytest.mark.parametrize("ranks, weights", [(1, "local"), (2, "local"), (3, "local"), (4, "local"), (8, "local"), (3, "stream")])
def test_storage_gives_every_byte_once(model, ranks, weights):
    checkpoint = model / "model.safetensors"
    size = checkpoint.stat().st_size
    forget(checkpoint)
    with Server("--model", model, "--ranks", ranks, "--threads", 1, "--context", 64, "--kv-tokens", 64,
                "--weights", weights) as server:
        pids = family(server.process.pid)
        assert len(pids) == ranks
        asked, read = input_of(pids, "rchar"), input_of(pids, "read_bytes")
    if read == 0:
        pytest.skip("the temporary folder is on no disk, or storage is not counted here")
    assert asked > 0.9 * size
    if weights == "stream":
        assert asked < 1.05 * size  # no help from the page cache
    # The tokenizer, programs' pages and read-ahead past an end are the rest; a second reader of everything would be 2.
    assert 0.9 * size < read < 1.05 * size, f"{read / size:.3f} of the checkpoint"
