"""launch/ray with real Ray: three Ray nodes on this machine (CPUs only), a killed rank, a stop."""
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

import pytest
from weft_cli import ROOT, WEFT, is_alive, model_folder, until

ray = pytest.importorskip("ray", reason="Ray is not installed (launch/ray/requirements.txt)")
sys.path.insert(0, str(ROOT / "tests" / "serve"))

pytestmark = pytest.mark.timeout(240)
SCRIPT = ROOT / "launch" / "ray" / "weft_ray.py"
NODES = 3
# A lost node is Ray's to notice: in seconds here.
QUICK = {"health_check_period_ms": 500, "health_check_timeout_ms": 10000, "health_check_failure_threshold": 3,
         "health_check_initial_delay_ms": 1000}


class Nodes:
    """A Ray cluster on this machine; nodes claim GPUs that are not there, which only Ray believes in."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        self.arguments = {"num_cpus": 1, "num_gpus": 2, "object_store_memory": 80 << 20}
        self.cluster = Cluster(initialize_head=True, head_node_args={**self.arguments, "include_dashboard": False,
                                                                     "_system_config": QUICK})
        self.address = self.cluster.address
        self.others = [self.add() for _ in range(NODES - 1)]

    def add(self):
        return self.cluster.add_node(**self.arguments)


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    folder = tempfile.mkdtemp(prefix="weft-ray-")  # short: Ray's sockets lie below it
    os.environ["RAY_TMPDIR"] = folder
    os.mkdir(os.path.join(folder, "ray"))
    place = Nodes()
    yield place
    place.cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def wefts():
    """Pids of the ranks that this cluster's agents have started."""
    mark = f"RAY_TMPDIR={os.environ['RAY_TMPDIR']}\0".encode()
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = open(f"/proc/{entry}/cmdline").read().split("\0")
            if words[0] == str(WEFT) and "--leader" in words and is_alive(int(entry)) and \
                    mark in open(f"/proc/{entry}/environ", "rb").read():
                found.append((int(words[words.index("--rank") + 1]), int(entry)))
        except (OSError, ValueError):
            continue
    return dict(found)


class Script:
    started = []

    def __init__(self, cluster, *arguments):
        self.process = subprocess.Popen([sys.executable, str(SCRIPT), "--address", cluster.address, "--weft", str(WEFT),
                                         *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.started.append(self.process)
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self.reader.start()

    def count(self, text):
        return sum(bool(re.search(text, line)) for line in self.lines)

    def wait_for(self, text, count=1):
        assert until(lambda: self.count(text) >= count or self.process.poll() is not None, 90)
        assert self.count(text) >= count, "".join(self.lines)

    def end(self):
        code = self.process.wait(timeout=60)
        self.reader.join(10)
        return code


@pytest.fixture(autouse=True)
def nothing_stays():
    """A test that failed leaves its nodes to the next one."""
    yield
    while Script.started:
        process = Script.started.pop()
        if process.poll() is None:
            process.kill()
            process.wait()
    until(lambda: not wefts())


def test_serves_starts_again_and_drains(cluster, tmp_path):
    import grpc
    from weft_server import weft_pb2, weft_pb2_grpc

    model = model_folder("llama3", tmp_path)
    script = Script(cluster, "--nodes", NODES, "serve", "--model", model, "--threads", 1, "--grpc", "127.0.0.1:0",
                    "--drain", "5s")

    def ask():
        port = re.findall(r"gRPC on .*:(\d+)", "".join(script.lines))[-1]
        stub = weft_pb2_grpc.InferenceStub(grpc.insecure_channel(f"127.0.0.1:{port}"))
        # How many tokens a message carries is a matter of time.
        messages = stub.Generate(weft_pb2.GenerateRequest(prompt="warp", max_tokens=6), timeout=60)
        return [token for message in messages for token in message.token_ids]

    script.wait_for("gRPC on")
    first = ask()
    ranks = wefts()
    assert sorted(ranks) == [0, 1, 2]
    os.kill(ranks[2], signal.SIGKILL)
    script.wait_for(r"was killed by signal 9; starting again in 1 s \(restart 1\)")
    script.wait_for("gRPC on", 2)
    assert ask() == first
    assert not set(ranks.values()) & set(wefts().values())
    script.process.send_signal(signal.SIGTERM)
    assert script.end() == 0, "".join(script.lines)
    assert script.count("the leader drains") == 1 and script.count("Terminated: stopping") == 1
    assert until(lambda: not wefts())


def test_the_ranks_end_with_the_script(cluster, tmp_path):
    model = model_folder("llama3", tmp_path)
    script = Script(cluster, "--nodes", 2, "--gpus", 2, "serve", "--model", model, "--threads", 1, "--device", "cpu",
                    "--grpc", "127.0.0.1:0")
    script.wait_for("gRPC on")
    ranks = wefts()
    assert sorted(ranks) == [0, 2]  # one more is forked by each of these
    for pid in ranks.values():
        assert b"CUDA_VISIBLE_DEVICES=0,1\0" in open(f"/proc/{pid}/environ", "rb").read()
    script.process.kill()
    script.end()
    assert until(lambda: not wefts())


def test_a_lost_node_is_replaced(cluster, tmp_path):
    model = model_folder("llama3", tmp_path)
    script = Script(cluster, "--nodes", NODES, "serve", "--model", model, "--threads", 1, "--grpc", "127.0.0.1:0")
    script.wait_for("gRPC on")
    cluster.cluster.remove_node(cluster.others.pop(), allow_graceful=False)
    script.wait_for(r"failed after .* starting again in 1 s")
    cluster.others.append(cluster.add())
    script.wait_for("gRPC on", 2)
    script.process.send_signal(signal.SIGINT)
    assert script.end() == 0, "".join(script.lines)


def test_wrong_calls_and_no_room(cluster):
    script = Script(cluster, "--nodes", NODES + 2, "--wait", 1, "serve")
    assert script.end() == 3
    assert script.count(r"expected 5 nodes with \{'CPU': 1\} free, found 3 nodes, of which 3 are large enough") == 1
    script = Script(cluster, "--nodes", 1, "serve", "--nonsense")
    assert script.end() == 2
    assert script.count("unknown option --nonsense") == 1 and script.count("not started again") == 1
    script = Script(cluster, "--nodes", 2, "serve", "--model", "/nowhere", "--grpc", "127.0.0.1:0")
    assert script.end() == 78
    assert script.count("/nowhere: no such model folder") >= 1 and script.count("not started again") == 1
    assert script.count("starting again") == 0
