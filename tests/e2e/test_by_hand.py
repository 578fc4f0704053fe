"""Ranks started one by one with --leader, as Slurm, LeaderWorkerSet or a person would."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess

import pytest
from weft_cli import CONFIG, PROMPT, ROOT, WEFT, answer, free_port, group_of, is_alive, model_folder, one_error_line, until, weft

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_folder("mistral", tmp_path_factory.mktemp("mistral"))


def secret_file(model, text):
    path = model.parent / text
    path.write_text(text)
    return str(path)


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


@pytest.mark.parametrize("environment, arguments, line", [
    ({"RANK": "1"}, [], "RANK is set but WORLD_SIZE is not: expected both (or unset RANK)"),
    ({"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "5", "LWS_LEADER_ADDRESS": "x"}, [],
     "LWS_WORKER_INDEX: expected a rank below LWS_GROUP_SIZE, which is 2, found 5"),
    ({"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1", "LWS_LEADER_ADDRESS": "x", "WEFT_RANKS": "3"}, [],
     "WEFT_RANKS is 3, but LeaderWorkerSet has 2 ranks by LWS_GROUP_SIZE: leave the one or unset the other"),
    ({"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1", "LWS_LEADER_ADDRESS": "x"}, ["--hosts", "localhost,b"],
     "--hosts: starts the ranks itself, but LeaderWorkerSet has already started this one (LWS_WORKER_INDEX)"),
    ({}, ["--hosts", "localhost,b", "--leader", "localhost:1"],
     "--hosts: ranks are numbered along the list: leave out --leader"),
    ({"WEFT_SECRET": "x"}, ["--secret-file", "/y"], "--secret-file and WEFT_SECRET are both set: expected only one of them"),
])
def test_half_set_environments(environment, arguments, line):
    assert one_error_line(weft("run", "--prompt", "x", *arguments, environment=environment), 2) == f"weft run: {line}"


@pytest.mark.parametrize("by", ["options", "lws", "torchrun"])
def test_two_ranks_of_each_process(model, by):
    """--local-ranks: two processes, as on two hosts, with two ranks each."""
    wanted = answer("--model", model, "--prompt", PROMPT, "--max-tokens", 20, "--threads", 1)
    port = free_port()
    processes = []
    for index in (1, 0):
        arguments = ["--local-ranks", "2"]
        variables = {"WEFT_SECRET": "warp"}
        if by == "options":
            arguments += ["--leader", f"127.0.0.1:{port}", "--rank", str(2 * index), "--ranks", "4"]
        elif by == "lws":
            arguments += ["--leader-port", str(port)]
            variables |= {"LWS_LEADER_ADDRESS": "localhost", "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": str(index)}
        else:
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(index)}
        processes.insert(0, start(model, port, index, *arguments, environment=variables))
    out, errors = processes[0].communicate(timeout=90)
    assert processes[0].returncode == 0, errors
    got = json.loads(out)
    assert (got["token_ids"], got["logits_sha256"]) == (wanted["token_ids"], wanted["logits_sha256"])
    assert processes[1].communicate(timeout=60) == ("", "") and processes[1].returncode == 0


@pytest.mark.parametrize("victim", ["leader's process", "leader's child", "worker's process", "worker's child"])
def test_a_killed_rank_of_several_in_a_process(model, victim):
    port = free_port()
    processes = []
    for index in range(2):
        command = [str(WEFT), "serve", "--model", str(model), "--threads", "1", "--grpc", "127.0.0.1:0", "--local-ranks", "2",
                   "--leader-port", str(port)]
        variables = {"LWS_LEADER_ADDRESS": "localhost", "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": str(index),
                     "WEFT_SECRET": "warp"}
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables}))
    for line in processes[0].stderr:
        if "gRPC on" in line:
            break
    everybody = [group_of(process.pid) for process in processes]
    assert [len(group) for group in everybody] == [2, 2]
    at = 0 if victim.startswith("leader") else 1
    os.kill(processes[at].pid if victim.endswith("process") else max(everybody[at] - {processes[at].pid}), signal.SIGKILL)
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode != 0
    assert until(lambda: not any(map(is_alive, everybody[0] | everybody[1])))


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


def test_who_is_missing_may_have_another_secret(model):
    """The line that says who is missing says that somebody was refused, too, with --quiet as well."""
    port = free_port()
    leader = start(model, port, 0, "--quiet", "--rendezvous-timeout", "9s", "--secret-file", secret_file(model, "right"))
    for _ in range(2):
        stranger = start(model, port, 1, "--secret-file", secret_file(model, "wrong"))
        assert "the secret differs" in stranger.communicate(timeout=60)[1]
    _, errors = leader.communicate(timeout=60)
    assert leader.returncode == 1
    assert re.fullmatch(r"weft\[0\]: comm/bootstrap: rank 1 failed: did not come within 9000 ms \(missing: 1, 2; 2 refused for "
                        r"another secret, the last from 127.0.0.1:\d+ as rank 1 on \S+\)\n", errors), errors


def test_another_model_is_refused_on_both_sides(model):
    port = free_port()
    demo = ROOT / "launch" / "demo-model"
    for process in [start(demo if rank == 1 else model, port, rank) for rank in range(3)]:
        out, errors = process.communicate(timeout=90)
        assert process.returncode == CONFIG and out == ""
        assert re.search(r"rank 1 on \S+ has other model files: fingerprint \w+, the leader's is \w+", errors), errors


@pytest.mark.parametrize("trouble, arguments", [
    ("engine/identity: /nowhere: no such model folder", ["--model", "/nowhere"]),
    ("engine: 3 ranks, but the model is cut into 2 leaves", ["--leaves", "2"]),
    ("base/json: DAMAGED/config.json: not valid JSON", ["--model", "DAMAGED"]),
])
def test_a_rank_that_cannot_take_part_says_so_while_another_is_missing(model, tmp_path, trouble, arguments):
    """Rank 1 never comes, and nobody waits for it: the leader has one line with rank, host and the rank's own reason."""
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "config.json").unlink()
    (tmp_path / "model" / "config.json").write_text("{")
    arguments = [a.replace("DAMAGED", str(tmp_path / "model")) for a in arguments]
    trouble = trouble.replace("DAMAGED", str(tmp_path / "model"))
    port = free_port()
    secret = {"WEFT_SECRET": "warp"}
    processes = {}
    for rank, more in [(0, ["--quiet"]), (2, arguments)]:
        command = [str(WEFT), "run", "--prompt", PROMPT, "--threads", "1", "--leader", f"127.0.0.1:{port}", "--rank", str(rank),
                   "--ranks", "3", "--rendezvous-timeout", "10m", *(more if "--model" in more else ["--model", str(model), *more])]
        processes[rank] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                           env={**os.environ, **secret})
    lines = {}
    for rank, process in processes.items():
        out, errors = process.communicate(timeout=90)
        assert (process.returncode, out, len(errors.splitlines())) == (CONFIG, "", 1), errors
        lines[rank] = errors
    name = re.escape(socket.gethostname())
    assert re.match(rf"weft\[0\]: comm/bootstrap: rank 2 on {name} failed: cannot take part: " + re.escape(trouble), lines[0])
    assert lines[2].startswith(f"weft[2]: {trouble}")


def test_a_leader_that_cannot_take_part_tells_the_others():
    port = free_port()
    processes = [start("/nowhere", port, rank) for rank in range(3)]
    for rank, process in enumerate(processes):
        out, errors = process.communicate(timeout=90)
        assert (process.returncode, out) == (CONFIG, "")
        assert errors == f"weft[{rank}]: engine/identity: /nowhere: no such model folder\n"


def test_kserve_workers_get_their_number_from_the_leader(model):
    """RAY_NODE_COUNT everywhere, HEAD_SVC in workers; the second worker comes when the head has already waited."""
    wanted = answer("--model", model, "--prompt", PROMPT, "--max-tokens", 20, "--threads", 1)
    port = free_port()
    common = {"RAY_NODE_COUNT": "3", "WEFT_SECRET": "warp", "WEFT_LEADER_PORT": str(port)}
    worker = {**common, "HEAD_SVC": "localhost"}
    processes = [start(model, port, 0, environment=e) for e in (common, worker, worker)]
    out, errors = processes[0].communicate(timeout=90)
    assert processes[0].returncode == 0, errors
    assert json.loads(out)["logits_sha256"] == wanted["logits_sha256"]
    for process in processes[1:]:
        assert process.communicate(timeout=60) == ("", "") and process.returncode == 0


def test_who_is_missing_is_said_while_the_leader_waits(tmp_path):
    done = weft("doctor", "--rendezvous-timeout", "9s", "--leader-port", free_port(),
                environment={"LWS_LEADER_ADDRESS": "w-1.w.space", "LWS_GROUP_SIZE": "3", "LWS_WORKER_INDEX": "0",
                             "WEFT_SECRET": "x"})
    assert done.returncode == 1
    # After 5 s, or later on a busy machine.
    assert [re.sub(r"after \d s", "after N s", line) for line in done.stderr.splitlines()] == [
        "weft[0]: comm/bootstrap_tcp: 1 of 3 ranks are here after N s, waiting for rank 1 on w-1-1, 2 on w-1-2",
        "weft[0]: comm/bootstrap: rank 1 on w-1-1 failed: did not come within 9000 ms (missing: 1 on w-1-1, 2 on w-1-2)"]


def test_who_is_missing_is_said_after_the_rendezvous_timeout(model):
    process = start(model, free_port(), 0, "--quiet", "--rendezvous-timeout", "1s")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == "weft[0]: comm/bootstrap: rank 1 failed: did not come within 1000 ms (missing: 1, 2)\n"
