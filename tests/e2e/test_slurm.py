"""launch/slurm.sbatch: with a stand-in for srun that keeps its contract, and under a Slurm of one node where it is installed."""
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import slow_steps
from weft_cli import CONFIG, PROMPT, ROOT, WEFT, answer, model_folder, weft

sys.path.insert(0, str(ROOT / "tests" / "serve"))
import grpc  # noqa: E402
from weft_server import until, weft_pb2, weft_pb2_grpc  # noqa: E402

pytestmark = pytest.mark.timeout(120)
SCRIPT = ROOT / "launch" / "slurm.sbatch"
HANG_S = 90

# Slurm 22.05's: tasks with the variables of a step, and SIGTERM to srun itself kills them all.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=$SLURM_NTASKS SLURM_STEP_NODELIST=$SLURM_JOB_NODELIST
export SLURM_STEP_TASKS_PER_NODE=$SLURM_NTASKS SLURM_NODEID=0
for ((i = SLURM_NTASKS - 1; i >= 0; i--)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids+=($!); done
trap 'kill -KILL "${pids[@]}"' TERM
echo "${pids[@]}" > "${0%/*}/tasks"
code=0
for p in "${pids[@]}"; do wait "$p" || code=$?; done
exit $code
"""


@pytest.fixture
def environment(tmp_path):
    """What sbatch gives to the script, and a PATH with the stand-in."""
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "localhost", "SLURM_NTASKS": "3", "SLURM_PROCID": "0", "WEFT_BINARY": str(WEFT)}


def test_three_tasks_give_the_bits_of_one_rank(tmp_path, environment):
    folder = tmp_path / "model"
    folder.mkdir()
    model = model_folder("qwen2", folder)
    common = ["--model", str(model), "--prompt", PROMPT, "--max-tokens", "12", "--temperature", "0", "--threads", "1"]
    done = subprocess.run(["bash", str(SCRIPT), "run", "--output", "json", *common],
                          capture_output=True, text=True, timeout=90, env=environment, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["logits_sha256"] == answer(*common)["logits_sha256"]


def test_one_task_lacks_the_model(tmp_path, environment):
    weft_ = tmp_path / "weft"
    weft_.write_text(f"""#!/bin/bash
[ "$SLURM_PROCID" = 2 ] && exec {WEFT} "$@" --model /nowhere
exec {WEFT} "$@"
""")
    weft_.chmod(0o755)
    done = subprocess.run(["bash", str(SCRIPT), "run", "--quiet", "--prompt", PROMPT, "--threads", "1"], capture_output=True,
                          text=True, timeout=90, env={**environment, "WEFT_BINARY": str(weft_)}, stdin=subprocess.DEVNULL)
    assert done.returncode == CONFIG
    said = [line for line in done.stderr.splitlines() if line.startswith("weft[0]")]
    assert len(said) == 1, done.stderr
    assert re.search(r"rank 2 on \S+ failed: cannot take part: engine/identity: /nowhere: no such model folder$", said[0])


def test_the_batch_script_itself_is_no_rank():
    """sbatch gives its shell a SLURM_PROCID too; a plain weft there runs alone and says so."""
    done = weft("info", environment={"SLURM_PROCID": "0", "SLURM_NTASKS": "4"})
    assert done.returncode == 0 and done.stderr == ""
    done = weft("doctor", environment={"SLURM_PROCID": "0", "SLURM_NTASKS": "4"})
    assert "not started by srun" in done.stderr and "launcher   none" in done.stdout


# ---- the end ----

SERVE = ["serve", "--threads", "1", "--grpc", "127.0.0.1:0", "--drain", "80s"]


class Answers:
    """Long answers, all of them under way when the constructor returns."""

    def __init__(self, port, count=4, tokens=900):
        self.whole, self.errors = [], []
        begun = [threading.Event() for _ in range(count)]
        self.stub = weft_pb2_grpc.InferenceStub(grpc.insecure_channel(f"127.0.0.1:{port}"))
        self.request = weft_pb2.GenerateRequest(prompt="Once", max_tokens=tokens, ignore_eos=True)
        self.threads = [threading.Thread(target=self.ask, args=(event,)) for event in begun]
        for thread in self.threads:
            thread.start()
        for event in begun:
            assert event.wait(HANG_S)

    def ask(self, begun):
        tokens = 0
        try:
            for message in self.stub.Generate(self.request, timeout=HANG_S):
                tokens += len(message.token_ids)
                begun.set()
            self.whole.append(tokens)
        except grpc.RpcError as error:
            self.errors.append((tokens, error.code()))
            begun.set()

    def end(self):
        for thread in self.threads:
            thread.join()
        return self.whole, self.errors


class Script:
    """The script with the stand-in, serving a model whose answers may be as long as a test likes."""

    def __init__(self, folder, environment, serve=None):
        self.folder = folder
        if serve is None:
            (folder / "model").mkdir()
            model = model_folder("llama2", folder / "model", context=100_000)
            serve = [*SERVE, "--model", str(model), "--kv-tokens", "400000"]
        self.process = subprocess.Popen(["bash", str(SCRIPT), *serve], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                        text=True, env=environment, stdin=subprocess.DEVNULL)
        self.log, self.reader = [], None
        for line in self.process.stderr:
            self.log.append(line)
            found = re.search(r"gRPC on .*:(\d+)", line)
            if found:
                self.port = int(found[1])
                break
        assert hasattr(self, "port"), self.log
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self.reader.start()

    def signal_tasks(self):
        """As Slurm does before the time limit and on scancel: each task, not srun."""
        for pid in (self.folder / "tasks").read_text().split():
            os.kill(int(pid), signal.SIGTERM)

    def signal_shell(self):
        self.process.send_signal(signal.SIGTERM)

    def kill(self):
        if self.process.poll() is None:
            for pid in (self.folder / "tasks").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        self.process.wait(HANG_S)

    def has_said(self, words):
        return until(lambda: any(words in line for line in self.log), HANG_S)


@pytest.fixture
def script(tmp_path, environment):
    made = Script(tmp_path, environment)
    yield made
    made.kill()


def test_a_drain_that_runs_out_in_a_long_step(tmp_path, environment):
    """The job counts as done: every task ends with 0, though none could finish the step."""
    serve = ["serve", *slow_steps.OPTIONS, "--grpc", "127.0.0.1:0", "--drain", "1s"]
    script = Script(tmp_path, environment, serve)
    try:
        streams = slow_steps.Streams(script.port, slow_steps.port_of(script.log, "HTTP"))
        script.signal_tasks()
        assert streams.were_shut_down()
        code = script.process.wait(HANG_S)
        script.reader.join(HANG_S)
        assert code == 0, script.log
        assert not any("failed" in line or "this rank ends" in line for line in script.log), script.log
    finally:
        script.kill()


@pytest.mark.parametrize("whom", ["tasks", "tasks and shell", "shell, later tasks"])
def test_open_answers_end_whole(script, whom):
    if whom == "shell, later tasks":
        script.signal_shell()
        time.sleep(0.3)
        assert script.process.poll() is None and not any("stopping" in line for line in script.log)
    answers = Answers(script.port, tokens=3000)
    script.signal_tasks()
    if whom == "tasks and shell":
        script.signal_shell()
    assert script.has_said("stopping, 4 requests open")
    assert answers.end() == ([3000] * 4, [])
    assert script.process.wait(HANG_S) == 0


def test_a_second_signal_cuts_them(script):
    answers = Answers(script.port, tokens=90_000)
    script.signal_tasks()
    assert script.has_said("stopping, 4 requests open")
    script.signal_tasks()
    script.signal_shell()
    whole, errors = answers.end()
    assert whole == [] and {code for _, code in errors} == {grpc.StatusCode.UNAVAILABLE}
    assert script.process.wait(HANG_S) == 128 + signal.SIGTERM


def test_the_time_limit_is_announced_to_the_ranks():
    """B: would tell the shell alone, which has no way to tell the ranks but through srun."""
    assert re.findall(r"^#SBATCH --signal=(.*)$", SCRIPT.read_text(), re.M) == ["TERM@60"]


# ---- a real one ----

CONFIGURATION = """ClusterName=test
SlurmctldHost=n0(10.9.9.1)
SlurmUser=root
AuthInfo=socket={0}/munge
StateSaveLocation={0}/state
SlurmdSpoolDir={0}/spool
SlurmctldLogFile={0}/slurmctld.log
SlurmdLogFile={0}/slurmd.log
SlurmctldPidFile={0}/slurmctld.pid
SlurmdPidFile={0}/slurmd.pid
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
MpiDefault=none
NodeName=n0 NodeAddr=10.9.9.1 CPUs={1} State=UNKNOWN
PartitionName=p Nodes=ALL Default=YES
"""
# In namespaces of its own. A bridge, because Slurm wants an address beside loopback.
NODE = """set -e
cd $0
ip link set lo up
ip link add d0 type bridge
ip addr add 10.9.9.1/24 dev d0
ip link set d0 up
hostname n0
printf '127.0.0.1 localhost\\n10.9.9.1 n0\\n' > hosts
mount --bind hosts /etc/hosts
head -c 128 /dev/urandom > key
chmod 600 key
munged --force --socket=munge --key-file=key --log-file=munged.log --pid-file=munged.pid --seed-file=seed
slurmctld
slurmd
exec "${@:1}"
"""
# One job: serves, has four answers open, is told to end.
TRIAL = """import pathlib, subprocess, sys, time
sys.path.insert(0, {tests!r})
import test_slurm
test_slurm.trial(*sys.argv[1:])
"""


def sh(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=True).stdout.strip()


def trial(folder, *ways):
    """Inside: one job per way of ending it, with four answers open; a line about each."""
    assert until(lambda: "idle" in sh("sinfo", "-h", "-o", "%T"), HANG_S)
    for way in ways:
        log = pathlib.Path(folder) / "job.log"
        log.write_text("")
        job = sh("sbatch", "--parsable", "--ntasks=2", "--ntasks-per-node=2", f"--output={log}", "--open-mode=append", str(SCRIPT), *SERVE)
        assert until(lambda: re.search(r"gRPC on .*:(\d+)", log.read_text()), HANG_S), log.read_text()
        answers = Answers(re.search(r"gRPC on .*:(\d+)", log.read_text())[1])
        for command in way.split(";"):
            sh(*command.split(), job)
        whole, errors = answers.end()
        assert until(lambda: re.search(r"JobState=(COMPLETED|FAILED|CANCELLED)", sh("scontrol", "show", "job", job)), HANG_S)
        state = sh("scontrol", "show", "job", job)
        print(way, len(whole), len(errors), re.search(r"ExitCode=(\S+)", state)[1], sep=", ", flush=True)


@pytest.mark.timeout(300)
def test_under_a_slurm_of_one_node(tmp_path):
    lacking = [p for p in ("munged", "slurmctld", "slurmd", "sbatch", "srun", "unshare") if shutil.which(p) is None]
    if lacking:
        pytest.skip(f"no {', '.join(lacking)} here: apt-get install munge slurmctld slurmd slurm-client")
    if subprocess.run(["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "ip", "link", "add", "d0", "type", "bridge"],
                      capture_output=True).returncode != 0:
        pytest.skip("no namespaces or no bridges here: needs root")
    tmp_path.chmod(0o755)
    (tmp_path / "slurm.conf").write_text(CONFIGURATION.format(tmp_path, os.cpu_count()))
    ways = ("scancel --signal=TERM", "scancel", "scancel --batch --signal=TERM;scancel --signal=TERM")
    done = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", NODE,
         str(tmp_path), sys.executable, "-c", TRIAL.format(tests=str(pathlib.Path(__file__).parent)), str(tmp_path), *ways],
        capture_output=True, text=True, timeout=280, cwd=ROOT,
        env={**os.environ, "SLURM_CONF": f"{tmp_path}/slurm.conf", "WEFT_BINARY": str(WEFT)})
    logs = "".join(p.read_text(errors="replace")[-2000:] for p in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    # Whole, broken, exit status. scancel alone marks a job as cancelled whatever it returns.
    assert done.stdout.splitlines() == [f"{way}, 4, 0, 0:0" for way in ways], done.stdout + logs
