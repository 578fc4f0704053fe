"""Weft over several hosts: network namespaces with their own sshd, on one machine (lab.sh)."""
import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from hosts import BUILD, HANG, MODEL, ROOT, WEFT, Lab, finish, until

ANSWER = ["run", "--model", str(MODEL), "--prompt", "Sort: 7 3 9 1", "--max-tokens", "24", "--temperature", "0",
          "--threads", "1", "--ignore-eos", "--output", "json"]
HOST_COUNT = 4

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def lab():
    if not (MODEL / "model.safetensors").is_file():
        pytest.skip("launch/demo-model is not there")
    place = Lab(HOST_COUNT)
    yield place
    place.close()


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """Arguments of an answer that streams for longer than any test lasts: the model with a context for that."""
    folder = tmp_path_factory.mktemp("endless") / "model"
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 100_000}))
    return ["run", "--model", str(folder), "--prompt", "Once", "--max-tokens", "90000", "--temperature", "1", "--threads", "1",
            "--ignore-eos"]


@pytest.fixture(autouse=True)
def nothing_stays(lab):
    """Whatever a test started on the hosts is gone when it ends."""
    yield
    left = until(lambda: not lab.ranks())
    for pid in lab.ranks().values():
        os.kill(pid, signal.SIGKILL)
    assert left, "weft processes were left over"


@pytest.fixture(scope="module")
def wanted():
    """What one rank alone answers."""
    done = subprocess.run([WEFT, *ANSWER], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_answer(wanted, process):
    code, stdout, stderr = finish(process)
    assert code == 0, stderr
    got = json.loads(stdout)
    for key in ("token_ids", "text", "finish_reason", "prompt_token_count", "logits_sha256"):
        assert got[key] == wanted[key], key
    return stderr


def by_hand(lab, port, arguments, secret=None):
    """One process per host, told who it is: the tcp bootstrap."""
    more = ["--secret-file", secret] if secret else []
    return [lab.start(r, WEFT, *arguments, "--leader", f"node0:{port}", "--rank", r, "--rank-count", HOST_COUNT, *more)
            for r in range(HOST_COUNT)]


@pytest.mark.parametrize("comm", ["auto", "tcp", "ucx", "mpi"])
def test_mpirun_over_ssh(lab, wanted, comm):
    log = check_answer(wanted, lab.start(0, "mpirun", "-n", HOST_COUNT, WEFT, *ANSWER, "--comm", comm, "--verbose"))
    chosen = "tcp" if comm == "auto" else comm
    assert f"{chosen} for {HOST_COUNT} ranks on {HOST_COUNT} hosts" in log


def test_mpirun_two_ranks_per_host(lab, wanted):
    """Eight ranks on two cores: shared memory inside the hosts, tcp between them."""
    log = check_answer(wanted, lab.start(0, "mpirun", "--oversubscribe", "-n", 8, "--map-by", "ppr:2:node", WEFT,
                                         *ANSWER, "--verbose"))
    assert f"shm+tcp for 8 ranks on {HOST_COUNT} hosts" in log


def test_only_the_leader_has_the_model(lab, wanted):
    """Each host has a /dev/shm of its own; the model lies in that of node0 alone."""
    finish(lab.start(0, "cp", "-rL", MODEL, "/dev/shm/model"))
    arguments = [*ANSWER, "--model", "/dev/shm/model"]
    code, _, stderr = finish(lab.start(0, "mpirun", "-n", HOST_COUNT, WEFT, *arguments))
    assert code != 0 and "/dev/shm/model: no such model folder" in stderr and "rank " in stderr, stderr
    check_answer(wanted, lab.start(0, "mpirun", "--oversubscribe", "-n", 2 * HOST_COUNT, "--map-by", "ppr:2:node", WEFT,
                                   *arguments, "--weights", "stream", "--shares", "auto"))
    finish(lab.start(0, "rm", "-r", "/dev/shm/model"))


def test_doctor(lab):
    """Every pair inside a host over shared memory, and one pair per two hosts over tcp, with their clocks."""
    code, stdout, stderr = finish(lab.start(0, "mpirun", "--oversubscribe", "-n", 8, "--map-by", "ppr:2:node", WEFT,
                                            "doctor", "--model", MODEL, "--output", "json"))
    assert code in (0, 1) and stdout, stderr
    report = json.loads(stdout)
    assert [r["host"] for r in report["ranks"]] == [f"node{r // 2}" for r in range(8)]
    assert {tuple(link["ranks"]): link["transport"] for link in report["links"]} == \
        {(a, b): "shm" if b == a + 1 else "tcp" for a in range(0, 8, 2) for b in (a + 1, *range(a + 2, 8, 2))}
    for link in report["links"]:
        assert link["latency_us"] > 0 and link["bandwidth_bytes_per_s"] > 0
        if link["transport"] == "tcp":
            for way in link["mtu"]:
                assert (way["interface"], way["interface_mtu"], way["path_mtu"]) == ("eth0", 1500, 1500)
                assert not way["large_packets_vanish"]
            assert link["other"]["transport"] == "ucx" and link["other"]["latency_us"] > 0
        else:
            assert link["mtu"] == [None, None] and "other" not in link
        assert abs(link["clock_offset_us"]) <= link["clock_error_us"] + 50000  # one machine, one clock
    assert not [f for f in report["findings"] if f["severity"] == "error"]


def test_doctor_finds_another_model(lab):
    other = ROOT / "tests" / "model" / "golden" / "mistral"
    ranks = [lab.start(r, WEFT, "doctor", "--output", "json", "--leader", "node0:5003", "--rank", r, "--ranks", 3,
                       "--model", other if r == 2 else MODEL) for r in range(3)]
    code, stdout, stderr = finish(ranks[0])
    assert code == 1 and stdout, stderr
    errors = [f for f in json.loads(stdout)["findings"] if f["severity"] == "error"]
    assert [e["where"] for e in errors] == ["rank 2 on node2"] and "other model files" in errors[0]["what"]
    assert [finish(rank)[:2] for rank in ranks[1:]] == [(1, ""), (1, "")]  # every rank's exit status says so


@pytest.mark.parametrize("comm", ["tcp", "ucx"])
def test_by_hand(lab, wanted, comm, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("warp and weft\n")
    ranks = by_hand(lab, 5001, [*ANSWER, "--comm", comm, "--interface", "10.77.0.0/24"], secret)
    check_answer(wanted, ranks[0])
    for rank in ranks[1:]:
        code, stdout, stderr = finish(rank)
        assert (code, stdout) == (0, ""), stderr


def wait_for_text(lab, leader):
    """The pids of all ranks, once the first of the answer has come: all are at work."""
    assert leader.stdout.read(1) != "", leader.stderr.read()
    ranks = lab.ranks()
    assert len(ranks) == HOST_COUNT
    return ranks


@pytest.mark.parametrize("comm, victim", [("tcp", 2), ("ucx", 2), ("tcp", 0)])
def test_killed_rank_by_hand(lab, endless, comm, victim):
    """The survivors name the dead rank and end with an error."""
    processes = by_hand(lab, 5002, [*endless, "--comm", comm])
    os.kill(wait_for_text(lab, processes[0])[victim], signal.SIGKILL)
    killed = time.monotonic()
    for rank, process in enumerate(processes):
        code, stdout, stderr = finish(process)
        if rank != victim:
            assert code not in (0, -signal.SIGKILL), stderr
            assert f"rank {victim}" in stderr, stderr
    assert time.monotonic() - killed < 20


@pytest.mark.parametrize("comm", ["tcp", "ucx", "mpi"])
def test_killed_rank_under_mpirun(lab, endless, comm):
    process = lab.start(0, "mpirun", "-n", HOST_COUNT, WEFT, *endless, "--comm", comm)
    os.kill(wait_for_text(lab, process)[2], signal.SIGKILL)
    code, stdout, stderr = finish(process)
    assert code != 0
    assert "rank 2 on node2 failed" in stderr, stderr


# What a busy machine may add to the seconds promised from a silent fault to the end of every rank. Less than the deadline
# of 30 s that would end them without heartbeats.
SLACK = 20


def test_pulled_cable(lab, endless):
    """A host falls off the network without a word: both sides name the other and end."""
    processes = by_hand(lab, 5003, [*endless, "--comm", "tcp"])
    wait_for_text(lab, processes[0])
    lab.link(3, "down")
    begin = time.monotonic()
    try:
        for rank, process in enumerate(processes):
            code, stdout, stderr = finish(process)
            assert code == 1
            wanted = "rank 0 on node0 failed: no heartbeat" if rank == 3 else "rank 3 on node3 failed: no heartbeat"
            assert wanted in stderr and "is down, or the network between" in stderr, stderr
        assert time.monotonic() - begin < 3 + SLACK
    finally:
        lab.link(3, "up")


@pytest.mark.parametrize("victim", [0, 2])
def test_stopped_rank(lab, endless, victim):
    """SIGSTOP: nothing closes and the host answers. Idle ranks notice it as well as busy ones."""
    processes = by_hand(lab, 5004, [*endless, "--comm", "tcp"])
    pid = wait_for_text(lab, processes[0])[victim]
    os.kill(pid, signal.SIGSTOP)
    begin = time.monotonic()
    try:
        for rank, process in enumerate(processes):
            if rank != victim:
                code, stdout, stderr = finish(process)
                assert code == 1
                assert f"rank {victim} on node{victim} failed: no heartbeat" in stderr, stderr
                assert f"though node{victim} answers" in stderr, stderr
        assert time.monotonic() - begin < 2 + SLACK
    finally:
        os.kill(pid, signal.SIGCONT)
        processes[victim].send_signal(signal.SIGCONT)  # nsenter stops with its child
    assert finish(processes[victim])[0] == 1  # it ends by itself once it may run


@pytest.mark.parametrize("backend", ["tcp", "ucx", "mpi"])
def test_conformance(lab, backend):
    """The suite of tests/comm with real distance between the ranks."""
    program = BUILD / "test_comm"
    if not program.is_file():
        pytest.skip("build/test_comm is not built")
    code, stdout, stderr = finish(lab.start(0, "mpirun", "-n", HOST_COUNT, program, backend, "mpirun"))
    assert code == 0, stdout + stderr
    assert sum(line.endswith(": fine") for line in stdout.splitlines()) == HOST_COUNT
