"""A leader takes its ports as soon as it knows that it leads: one that is taken costs no load, and no wait for others."""
import shutil
import socket

import pytest
from weft_cli import BUSY, MPIRUN, free_port, model_folder, one_error_line, weft

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def taken():
    """An address that somebody else listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield f"127.0.0.1:{other.getsockname()[1]}"


def addresses(kind, taken):
    return ["--grpc", taken] if kind == "grpc" else ["--grpc", "127.0.0.1:0", "--http", taken]


def in_use(taken):
    return f"serve: cannot listen on {taken}: Address already in use"


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_before_the_model_is_read_by_forked_ranks(tmp_path, taken, kind):
    """Nothing but the one line: no table of memory, no progress."""
    done = weft("serve", "--ranks", "2", "--model", model_folder("llama3", tmp_path), *addresses(kind, taken))
    assert one_error_line(done, BUSY).endswith(in_use(taken))


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun here")
@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_before_the_model_is_read_under_mpirun(taken, kind):
    """There is no model, but nobody gets to look."""
    done = weft("serve", "--model", "/nowhere", *addresses(kind, taken), wrapper=[*MPIRUN, "-n", "3"])
    assert done.returncode == BUSY
    lines = [line for line in done.stderr.splitlines() if line.startswith("weft")]
    assert lines == ["weft[0]: " + in_use(taken)]


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_before_the_others_have_come(taken, kind):
    """Rank 1 is never started; without the early look the leader would wait for it."""
    done = weft("serve", "--model", "/nowhere", *addresses(kind, taken), "--rank", "0", "--ranks", "2", "--leader",
                f"127.0.0.1:{free_port()}", "--rendezvous-timeout", "1h")
    assert one_error_line(done, BUSY).endswith(in_use(taken))
