"""Ranks started one by one with --leader, as Slurm, LeaderWorkerSet or a person would."""
import json
import os
import socket
import subprocess

import pytest
from weft_cli import PROMPT, WEFT, answer, model_folder

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_folder("mistral", tmp_path_factory.mktemp("mistral"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(model, port, rank, *arguments, environment=None):
    command = [str(WEFT), "run", "--model", str(model), "--prompt", PROMPT, "--max-tokens", "20", "--threads", "1",
               "--output", "json", *arguments]
    if environment is None:
        command += ["--leader", f"127.0.0.1:{port}", "--rank", str(rank), "--ranks", "3"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, **(environment or {})})


@pytest.mark.parametrize("is_by_environment", [False, True])
def test_same_bits(model, tmp_path, is_by_environment):
    secret = tmp_path / "secret"
    secret.write_text("a thread between warps\n")
    wanted = answer("--model", model, "--prompt", PROMPT, "--max-tokens", 20, "--threads", 1)
    port = free_port()
    processes = []
    for rank in (2, 0, 1):
        environment = {"WEFT_LEADER": f"127.0.0.1:{port}", "WEFT_RANK": str(rank), "WEFT_RANK_COUNT": "3"}
        processes.append((rank, start(model, port, rank, "--secret-file", str(secret), "--shares", "2,1,1",
                                      environment=environment if is_by_environment else None)))
    for rank, process in processes:
        out, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors
        if rank == 0:
            got = json.loads(out)
            assert (got["token_ids"], got["logits_sha256"]) == (wanted["token_ids"], wanted["logits_sha256"])
        else:
            assert (out, errors) == ("", "")


def test_a_stranger_is_refused(model, tmp_path):
    files = []
    for name in ("right", "wrong"):
        (tmp_path / name).write_text(name)
        files.append(str(tmp_path / name))
    port = free_port()
    leader = start(model, port, 0, "--secret-file", files[0])
    stranger = start(model, port, 1, "--secret-file", files[1])
    out, errors = stranger.communicate(timeout=90)
    assert stranger.returncode == 1
    assert out == "" and "secret" in errors and "wrong" not in errors
    assert leader.poll() is None, "a stranger ended the group"
    leader.kill()
    leader.communicate()


def test_who_is_missing_is_said_after_the_rendezvous_timeout(model):
    process = start(model, free_port(), 0, "--quiet", "--rendezvous-timeout", "1s")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == "weft[0]: comm/bootstrap: rank 1 failed: did not come within 1000 ms (missing: 1, 2)\n"
