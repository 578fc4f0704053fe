"""Every launcher that is not MPI, over four hosts: --hosts by ssh, and stand-ins that set what Slurm's srun,
LeaderWorkerSet, torchrun and KServe set. Each: starts, answers a request, loses a rank, and everything ends."""
import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from hosts import HANG, HERE, MODEL, ROOT, WEFT, Lab, finish, slurm_job, until

SERVE = ["serve", "--model", str(MODEL), "--threads", "1", "--grpc", "0.0.0.0:9000"]
RUN = ["run", "--model", str(MODEL), "--prompt", "Sort: 7 3 9 1", "--max-tokens", "24", "--threads", "1", "--ignore-eos",
       "--output", "json"]
RSH = "/run/lab/rsh"
SECRET = "a thread that only ranks know"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def lab():
    if not (MODEL / "model.safetensors").is_file():
        pytest.skip("launch/demo-model is not there")
    place = Lab(4)
    yield place
    place.close()


def on_host(lab, host):
    """The first process of weft that runs on this host."""
    return next(pid for pid in lab.programs("weft") if lab.host_of(pid) == host)


@pytest.fixture(autouse=True)
def nothing_stays(lab):
    yield
    left = until(lambda: not lab.programs("weft", "ssh"))
    for pid in lab.programs("weft"):
        os.kill(pid, signal.SIGKILL)
    assert left, "processes were left over"


class Log:
    """A process whose standard error is read all the time."""

    def __init__(self, process):
        self.process = process
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(process.stderr), daemon=True)
        self.reader.start()

    def text(self):
        return "".join(self.lines)

    def wait_for(self, text):
        assert until(lambda: text in self.text() or self.process.poll() is not None) and text in self.text(), self.text()

    def end(self):
        code = self.process.wait(timeout=HANG)
        self.reader.join(10)
        return code


def ask(lab, host=3):
    code, out, errors = finish(lab.start(host, sys.executable, HERE / "ask.py", "node0:9000", "Sort: 7 3 9 1"))
    assert code == 0, errors
    return out


@pytest.fixture(scope="module")
def wanted():
    done = subprocess.run([WEFT, *RUN], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---- what the launchers do ----

def environment_of(launcher, rank):
    if launcher == "lws":
        return {"LWS_LEADER_ADDRESS": "node0", "LWS_GROUP_SIZE": 4, "LWS_WORKER_INDEX": rank}
    if launcher == "torchrun":
        return {"RANK": rank, "WORLD_SIZE": 4, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "node0",
                "MASTER_PORT": 29500}
    sizes = {"RAY_NODE_COUNT": 4, "TENSOR_PARALLEL_SIZE": 1, "PIPELINE_PARALLEL_SIZE": 4}
    return sizes if rank == 0 else {**sizes, "HEAD_SVC": "node0", "ISVC_NAME": "llm"}


def begin(lab, launcher):
    """[leader's or launcher's process, ...]: started, not yet ready."""
    if launcher == "ssh":
        return [lab.start(0, "env", f"WEFT_SECRET={SECRET}", WEFT, *SERVE, "--ssh", RSH, "--hosts",
                          "node0,node1,node2:2,node3")]
    if launcher == "slurm":
        return [lab.start(0, *slurm_job(2, 4, WEFT), *SERVE)]
    return [lab.start(rank, "env", f"WEFT_SECRET={SECRET}", *(f"{k}={v}" for k, v in environment_of(launcher, rank).items()),
                      WEFT, *SERVE) for rank in range(4)]


@pytest.mark.parametrize("launcher", ["ssh", "slurm", "lws", "torchrun", "kserve"])
def test_serves_until_a_rank_dies(lab, wanted, launcher):
    logs = [Log(p) for p in begin(lab, launcher)]
    logs[0].wait_for("gRPC on")
    assert wanted["text"].startswith(ask(lab))
    victim_host = 1 if launcher == "slurm" else 2
    os.kill(on_host(lab, victim_host), signal.SIGKILL)
    codes = [log.end() for log in logs]
    assert codes[0] != 0
    assert re.search(rf"rank \d on node{victim_host} failed", logs[0].text()), logs[0].text()
    assert until(lambda: not lab.programs("weft"))


# ---- --hosts ----

def hosts(lab, *arguments, command=RUN, list_="node0,node1,node2:2,node3", environment=()):
    return lab.start(0, "env", *environment, WEFT, *command, "--ssh", RSH, "--hosts", list_, *arguments)


def test_same_bits_over_ssh(lab, wanted):
    code, out, errors = finish(hosts(lab, "--verbose"))
    assert code == 0, errors
    assert json.loads(out)["logits_sha256"] == wanted["logits_sha256"]
    assert "for 5 ranks on 4 hosts" in errors


def test_the_secret_is_on_no_command_line(lab):
    log = Log(hosts(lab, command=SERVE, environment=[f"WEFT_SECRET={SECRET}", "WEFT_CONTEXT=512"]))
    log.wait_for("gRPC on")
    lines = [open(f"/proc/{pid}/cmdline").read() for pid in lab.programs("weft", "ssh")]
    # a process of ours per rank and one for the connections, and an ssh per host
    assert len(lines) == 5 + 1 + 3 and not [line for line in lines if SECRET.split()[0] + " thread" in line]
    assert not [line for line in lines if "join" in line and "demo-model" in line]
    os.kill(min(lab.programs("weft")), signal.SIGTERM)
    assert log.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_everything_ends_with_the_leader(lab, number):
    log = Log(hosts(lab, command=SERVE))
    log.wait_for("gRPC on")
    os.kill(on_host(lab, 0), number)
    log.end()
    assert until(lambda: not lab.programs("weft", "ssh"))


def test_doctor_over_ssh(lab):
    code, out, errors = finish(hosts(lab, command=["doctor", "--output", "json"]))
    report = json.loads(out)
    assert (report["launcher"], report["leader"].split(":")[0]) == ("ssh", "node0"), errors
    assert [r["host"] for r in report["ranks"]] == ["node0", "node1", "node2", "node2", "node3"]
    assert {r["rank_from"] for r in report["ranks"]} == {"--hosts"}


def test_doctor_with_a_hostfile(lab):
    """The file that mpirun takes, without mpirun."""
    command = [WEFT, "doctor", "--output", "json", "--ssh", RSH, "--hostfile", "/run/lab/hostfile"]
    code, out, errors = finish(lab.start(0, *command))
    assert out, errors
    assert [r["host"] for r in json.loads(out)["ranks"]] == ["node0", "node1", "node2", "node3"]
    code, out, errors = finish(lab.start(0, *command, "--hosts", "node0,node1"))
    assert (code, out) == (2, "") and "not together with --hosts" in errors


@pytest.fixture(scope="module")
def other_version(tmp_path_factory):
    """The same binary under another version's name."""
    path = tmp_path_factory.mktemp("other") / "weft"
    own = subprocess.run([WEFT, "--version"], capture_output=True).stdout.split()[1]
    path.write_bytes(WEFT.read_bytes().replace(b"\0" + own + b"\0", b"\0" + own[:-1] + b"9\0"))
    path.chmod(0o755)
    return path


def test_refusals(lab, other_version, tmp_path):
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexit 5\n")
    silent.chmod(0o755)
    for arguments, list_, line in [
            ((), "node0,node1,node9", r"rank 2 on node9 failed: cannot be reached by ssh: .*node9"),
            (("--remote-path", "/nowhere/weft"), "node0,node1", r"rank 1 on node1 failed: no weft there: /nowhere/weft"),
            (("--remote-path", str(other_version)), "node0,node1",
             r"rank 1 on node1 failed: ended with exit status 1: another version: this host has Weft \S+9, the leader Weft"),
            (("--remote-path", str(silent)), "node0,node1", r"rank 1 on node1 failed: ended with exit status 5"),
    ]:
        code, out, errors = finish(hosts(lab, *arguments, list_=list_))
        assert (code, out) == (1, "")
        assert len(re.findall(line, errors)) == 1, errors
        assert len([x for x in errors.splitlines() if x.startswith("weft[0]")]) == 1, errors


def test_a_host_without_the_model(lab):
    """Each host has a /dev/shm of its own; the model lies in that of node0 alone."""
    finish(lab.start(0, "cp", "-rL", MODEL, "/dev/shm/model"))
    code, out, errors = finish(hosts(lab, command=[*RUN[:1], "--model", "/dev/shm/model", *RUN[3:]], list_="node0,node1"))
    finish(lab.start(0, "rm", "-r", "/dev/shm/model"))
    assert (code, out) == (78, "")  # EX_CONFIG
    said = [line for line in errors.splitlines() if line.startswith("weft[0]")]
    assert said == ["weft[0]: comm/bootstrap: rank 1 on node1 failed: cannot take part: engine/identity: "
                    "/dev/shm/model: no such model folder"], errors


def test_another_version_is_refused_on_both_sides(lab, other_version):
    arguments = [*RUN, "--leader", "node0:5009", "--ranks", 2, "--rendezvous-timeout", "4s", "--rank"]
    leader = lab.start(0, WEFT, *arguments, 0)
    code, out, errors = finish(lab.start(1, other_version, *arguments, 1))
    assert (code, out) == (1, "")
    assert re.search(r"is another version: weft \S+ \(protocol \d\), this is weft \S+9 \(protocol \d\)", errors), errors
    code, _, errors = finish(leader)
    assert code == 1
    assert re.search(r"10.77.0.11:\d+ refused: is another version: weft \S+9 \(protocol \d\), the leader is weft", errors)
