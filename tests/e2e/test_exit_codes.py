"""Exit codes for whoever starts processes again: 78 where that is in vain, 75 where it may be; through every launcher."""
import shutil
import socket
import subprocess

import pytest
from weft_cli import BUSY, CONFIG, HANG_S, MPIRUN, WEFT, free_port, model_folder, weft

pytestmark = pytest.mark.timeout(180)
PROMPT = ["--prompt", "x", "--max-tokens", "1", "--threads", "1"]
WRAPPERS = {"alone": ([], []), "forked": ([], ["--ranks", "2"])}
if shutil.which("mpirun"):
    WRAPPERS["mpirun"] = ([*MPIRUN, "-n", "3"], [])


@pytest.fixture(params=WRAPPERS)
def ranks(request):
    """(what stands before weft, options of it)"""
    return WRAPPERS[request.param]


def code_of(ranks, command, *arguments):
    wrapper, options = ranks
    done = weft(command, "--quiet", *arguments, *options, wrapper=wrapper)
    assert any(line.startswith("weft") for line in done.stderr.splitlines()), done.stderr
    return done.returncode


def test_no_model(ranks):
    assert code_of(ranks, "run", "--model", "/nowhere", *PROMPT) == CONFIG


def test_a_damaged_model(ranks, tmp_path):
    model = model_folder("llama3", tmp_path)
    weights = sorted(model.glob("*.safetensors"))[0]
    damaged = b"\xff" * 64 + weights.read_bytes()[64:]
    weights.unlink()
    weights.write_bytes(damaged)
    assert code_of(ranks, "run", "--model", model, *PROMPT) == CONFIG


def test_a_model_of_no_known_kind(ranks, tmp_path):
    model = model_folder("llama3", tmp_path)
    text = (model / "config.json").read_text().replace("LlamaForCausalLM", "NobodyForCausalLM")
    (model / "config.json").unlink()
    (model / "config.json").write_text(text)
    assert code_of(ranks, "run", "--model", model, *PROMPT) == CONFIG


def test_no_memory_for_it(ranks, tmp_path):
    assert code_of(ranks, "run", "--model", model_folder("llama3", tmp_path), "--memory", "64KiB", *PROMPT) == BUSY


def test_a_port_that_is_taken(ranks, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        assert code_of(ranks, "serve", "--model", model_folder("llama3", tmp_path), "--grpc", taken) == BUSY


def test_a_leader_port_that_is_taken(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = weft("run", "--model", model_folder("llama3", tmp_path), *PROMPT, "--rank", "0", "--ranks", "2", "--leader",
                    f"127.0.0.1:{other.getsockname()[1]}")
    assert done.returncode == BUSY, done.stderr


def test_a_wrong_call_stays_2(ranks):
    assert code_of(ranks, "run", "--no-such-option") == 2


def test_a_secret_that_is_not_there():
    done = weft("run", *PROMPT, "--secret-file", "/nowhere", "--leader", f"127.0.0.1:{free_port()}", "--rank", "0", "--ranks", "2")
    assert done.returncode == CONFIG, done.stderr


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun here")
@pytest.mark.parametrize("lacking", [0, 1, 2])
def test_one_rank_of_several_lacks_the_model(tmp_path, lacking):
    """Whichever rank it is, mpirun returns what a restart needs to know."""
    model = model_folder("llama3", tmp_path)
    command = [*MPIRUN]
    for rank in range(3):
        command += ["-n", "1", str(WEFT), "run", "--quiet", *PROMPT, "--model", "/nowhere" if rank == lacking else str(model), ":"]
    done = subprocess.run(command[:-1], capture_output=True, text=True, timeout=HANG_S, stdin=subprocess.DEVNULL)
    assert done.returncode == CONFIG, done.stderr
    assert "/nowhere: no such model folder" in done.stderr
