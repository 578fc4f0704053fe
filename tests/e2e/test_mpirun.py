"""Ranks started by mpirun: the same bits as one rank, one voice, and clean ends."""
import os
import re
import shutil
import signal
import subprocess

import pytest
from weft_cli import HANG_S, MPIRUN, PROMPT, WEFT, answer, group_of, is_alive, model_folder, mpi_ranks, shm_left_behind, shm_mapped, until, weft

pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun here")]
COMMON = ["--prompt", PROMPT, "--max-tokens", "20", "--temperature", "0", "--threads", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_folder("llama3", tmp_path_factory.mktemp("llama3"))


@pytest.mark.parametrize("count, more", [(1, []), (2, []), (4, []), (8, []), (2, ["--shares", "3,1"])])
def test_same_bits_as_one_rank(model, count, more):
    wanted = answer("--model", model, *COMMON, "--ranks", 1)
    got = answer("--model", model, *COMMON, *more, wrapper=[*MPIRUN, "-n", str(count)])
    for key in ("token_ids", "text", "finish_reason", "prompt_token_count", "logits_sha256"):
        assert got[key] == wanted[key], key


def test_one_voice(model):
    """Only the leader prints: one answer, one memory table, one summary."""
    done = weft("run", "--model", model, *COMMON, wrapper=[*MPIRUN, "-n", "3"])
    assert done.returncode == 0, done.stderr
    assert done.stdout == answer("--model", model, *COMMON)["text"] + "\n"
    assert done.stderr.count("first token after") == 1
    assert done.stderr.lower().count("weights") <= 10


def test_prompt_from_stdin(model):
    got = answer("--model", model, *COMMON[2:], wrapper=[*MPIRUN, "-n", "2"], stdin=PROMPT)
    assert got["logits_sha256"] == answer("--model", model, *COMMON)["logits_sha256"]


def test_a_mistake_is_said_once(model):
    for _ in range(5):
        done = weft("run", "--quiet", "--model", "/nowhere", *COMMON, wrapper=[*MPIRUN, "-n", "3"])
        assert done.returncode != 0
        assert done.stdout == ""
        lines = [line for line in done.stderr.splitlines() if line.startswith("weft")]
        assert len(lines) == 1 and "/nowhere: no such model folder" in lines[0], lines


def test_one_rank_lacks_the_model(model):
    common = [str(WEFT), "run", "--quiet", *COMMON, "--model"]
    done = subprocess.run([*MPIRUN, "-n", "2", *common, str(model), ":", "-n", "1", *common, "/nowhere"],
                          capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("weft")]
    assert len(lines) == 1, lines
    assert re.fullmatch(r"weft\[0\]: engine/group: rank 2 on \S+ cannot take part: engine/identity: /nowhere: no such model folder",
                        lines[0])


def test_ranks_must_be_what_mpirun_started(model):
    assert answer("--model", model, *COMMON, "--ranks", "2", wrapper=[*MPIRUN, "-n", "2"])
    done = weft("run", "--quiet", "--model", model, *COMMON, "--ranks", "4", wrapper=[*MPIRUN, "-n", "2"])
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("weft")] == \
        ["weft[0]: engine: 4 ranks asked for, but mpi started 2"]


def serve(model, count, *arguments):
    process = subprocess.Popen([*MPIRUN, "-n", str(count), str(WEFT), "serve", "--model", str(model), "--threads", "1",
                                "--grpc", "127.0.0.1:0", *arguments], stderr=subprocess.PIPE, text=True)
    log = []
    for line in process.stderr:
        log.append(line)
        if "gRPC on" in line:
            return process, log
    raise AssertionError("".join(log))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_mpirun(model, number):
    before = shm_left_behind()
    process, _ = serve(model, 3)
    ranks = group_of(process.pid)
    process.send_signal(number)
    process.communicate(timeout=HANG_S)
    assert until(lambda: not any(map(is_alive, ranks)))
    assert until(lambda: shm_left_behind() <= before), shm_left_behind() - before


@pytest.mark.parametrize("comm", ["auto", "ucx", "mpi"])
@pytest.mark.parametrize("victim", range(3))
def test_kill_of_a_rank(model, victim, comm):
    process, log = serve(model, 3, "--comm", comm)
    by_rank = mpi_ranks(process.pid)
    # Open MPI and UCX have named files of their own; those of this group are what its processes have mapped.
    shared = set().union(*map(shm_mapped, by_rank.values()))
    os.kill(by_rank[victim], signal.SIGKILL)
    assert until(lambda: not any(is_alive(p) for p in by_rank.values()))
    log += process.communicate(timeout=HANG_S)[1].splitlines(keepends=True)
    assert process.returncode != 0
    assert any(f"rank {victim}" in line for line in log if line.startswith("weft")), "".join(log)
    assert until(lambda: not any(map(os.path.exists, shared))), shared
