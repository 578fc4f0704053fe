"""launch/mpirun.sh: the flags it gives, waiting for hosts, starting again, draining."""
import os
import shutil
import signal
import socket
import subprocess
import threading

import pytest
import slow_steps
from weft_cli import ROOT, WEFT, group_of, is_alive, model_folder, mpi_ranks, until

pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun here")]
SCRIPT = ROOT / "launch" / "mpirun.sh"


def run(*arguments, environment=None):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WEFT_", "OMPI_"))}
    return subprocess.run([str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=60,
                          stdin=subprocess.DEVNULL, env={**clean, **(environment or {})})


def test_command_line_of_a_hostfile(tmp_path):
    hosts = tmp_path / "hostfile"
    hosts.write_text("# by hand\nnode-a slots=2\nnode-b:3\n\nnode-c\n")
    done = run("--hostfile", hosts, "--interface", "eth7", "--weft", WEFT, "--dry-run", "serve", "--model", "/m x",
               environment={"UCX_TLS": "tcp", "WEFT_SECRET_FILE": "/s", "WEFT_RESTARTS": "3"})
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[:3] == ["mpirun", "-n", "6"]
    for pair in (["--bind-to", "none"], ["--hostfile", str(hosts)], ["-x", "UCX_TLS"], ["-x", "WEFT_SECRET_FILE"],
                 ["-x", "WEFT_INTERFACE=eth7"], ["btl_tcp_if_include", "eth7"], ["oob_tcp_keepalive_time", "2"]):
        assert any(words[i:i + 2] == pair for i in range(len(words))), (pair, words)
    assert "WEFT_RESTARTS" not in words  # its own, not the ranks'
    assert "--model /m\\ x" in done.stdout


@pytest.mark.parametrize("arguments, line", [
    (["--hostfil", "x", "run"], "unknown option --hostfil"),
    (["--hostfile", "/nowhere", "run"], "--hostfile: cannot read /nowhere"),
    (["--ranks", "two", "run"], "--ranks: expected a number, found 'two'"),
    (["--restarts"], "--restarts needs a value"),
])
def test_wrong_calls(arguments, line):
    done = run(*arguments)
    assert done.returncode == 2
    assert line in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("slots", ["two", "0", "-1", "2x", ""])
def test_slots_that_are_no_number_are_named(tmp_path, slots):
    hosts = tmp_path / "hostfile"
    hosts.write_text(f"localhost slots={slots}\n")
    done = run("--hostfile", hosts, "--weft", WEFT, "run")
    assert done.returncode == 2
    assert done.stderr == f"launch/mpirun.sh: {hosts}: slots of localhost: expected a number from 1 on, found '{slots}'\n"


def test_an_address_needs_no_name(tmp_path):
    """192.0.2.0/24 is for documentation: nobody answers there, but it is an address."""
    hosts = tmp_path / "hostfile"
    hosts.write_text("192.0.2.9\n")
    done = run("--hostfile", hosts, "--wait", "0", "--weft", WEFT, "run", environment={"OMPI_MCA_plm_rsh_agent": "false"})
    assert done.returncode == 3
    assert "waiting for 192.0.2.9 (no ssh)" in done.stderr


def test_names_the_hosts_that_stay_away(tmp_path):
    hosts = tmp_path / "hostfile"
    hosts.write_text("localhost slots=1\nno-such-host.invalid slots=1\n")
    log = tmp_path / "log"
    done = run("--hostfile", hosts, "--wait", "1", "--log", log, "--weft", WEFT, "serve")
    assert done.returncode == 3
    assert "waiting for no-such-host.invalid (no address)" in done.stderr
    assert "gave up after 1 s on: no-such-host.invalid (no address)" in log.read_text()


class Service:
    """The script around `weft serve` on ranks of this host."""

    def __init__(self, folder, *options, serve=None, ranks=2):
        serve = serve or ["--model", str(model_folder("llama3", folder)), "--threads", "1", "--drain", "60s"]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("WEFT_")}
        self.process = subprocess.Popen(
            [str(SCRIPT), "--ranks", str(ranks), "--weft", str(WEFT), *options, "serve", "--grpc", "127.0.0.1:0", *serve],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL, text=True, env=clean)
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self.reader.start()

    def count(self, text):
        return sum(text in line for line in self.lines)

    def wait_for(self, text, count=1):
        assert until(lambda: self.count(text) >= count, 60), "".join(self.lines)

    def ranks(self):
        return mpi_ranks(self.process.pid)

    def end(self):
        code = self.process.wait(timeout=60)
        self.reader.join(10)
        return code


def test_starts_again_and_drains(tmp_path):
    service = Service(tmp_path, "--log", str(tmp_path / "log"))
    service.wait_for("gRPC on")
    everything = group_of(service.process.pid)
    os.kill(service.ranks()[1], signal.SIGKILL)
    service.wait_for("starting again in 1 s")
    service.wait_for("gRPC on", 2)
    everything |= group_of(service.process.pid)
    service.process.send_signal(signal.SIGTERM)
    assert service.end() == 0, "".join(service.lines)
    assert service.count("Terminated: stopping") == 1  # the leader drained; mpirun was not told to kill anybody
    assert until(lambda: not any(map(is_alive, everything)))
    log = (tmp_path / "log").read_text()
    assert "a rank was killed" in log and "the leader drains" in log


def test_a_drain_that_runs_out_in_a_long_step(tmp_path):
    """Only the leader was told; the others end with it and call nobody dead."""
    service = Service(tmp_path, serve=[*slow_steps.OPTIONS, "--drain", "1s"])
    service.wait_for("gRPC on")
    streams = slow_steps.Streams(*(slow_steps.port_of(service.lines, kind) for kind in ("gRPC", "HTTP")))
    everything = group_of(service.process.pid)
    service.process.send_signal(signal.SIGTERM)
    assert streams.were_shut_down()
    assert service.end() == 0
    assert until(lambda: not any(map(is_alive, everything)), 10)
    assert service.count("failed") == 0 and service.count("starting again") == 0, "".join(service.lines)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("comm", [[], ["--comm", "mpi"]])
def test_a_drain_that_runs_out_in_a_long_layer(tmp_path, ranks, comm):
    """No rank gets out of it in time, yet mpirun sees them all leave in order: not a word of its own, and 0."""
    service = Service(tmp_path, serve=[*slow_steps.layer_options(tmp_path), "--drain", "0", *comm], ranks=ranks)
    service.wait_for("gRPC on")
    ports = (slow_steps.port_of(service.lines, kind) for kind in ("gRPC", "HTTP"))
    streams = slow_steps.Streams(*ports, is_layer=True)
    before = len(service.lines)
    everything = group_of(service.process.pid)
    service.process.send_signal(signal.SIGTERM)
    assert streams.were_shut_down()
    assert service.end() == 0, "".join(service.lines)
    assert until(lambda: not any(map(is_alive, everything)))
    for line in service.lines[before:]:
        assert line.startswith(("launch/mpirun.sh: stop", "weft: stop", "weft[0]: serve: Terminated: stopping")), line


def test_no_model_is_not_tried_again(tmp_path):
    service = Service(tmp_path, "--log", str(tmp_path / "log"), serve=["--model", "/nowhere"], ranks=3)
    assert service.end() == 78, "".join(service.lines)
    line = "it cannot run as it is configured (exit status 78): not started again"
    assert service.count(line) == 1 and line in (tmp_path / "log").read_text()
    assert service.count("no such model folder") == 1 and service.count("starting again") == 0


def test_a_taken_port_is_tried_a_few_times(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        service = Service(tmp_path, serve=["--model", "/nowhere", "--http", f"127.0.0.1:{other.getsockname()[1]}"])
        assert service.end() == 75, "".join(service.lines)
    assert service.count("Address already in use") == 4
    assert service.count("a port is taken, or memory is short (exit status 75); starting again in") == 3
    assert service.count("a port is taken, or memory is short (exit status 75): not started again") == 1


def test_a_port_that_its_predecessor_still_has_is_waited_for(tmp_path):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        http = ["--http", f"127.0.0.1:{other.getsockname()[1]}"]
        service = Service(tmp_path, serve=["--model", str(model_folder("llama3", tmp_path)), "--threads", "1", *http])
        service.wait_for("(exit status 75); starting again in 1 s")
    service.wait_for("gRPC on")
    service.process.send_signal(signal.SIGTERM)
    assert service.end() == 0, "".join(service.lines)


def test_a_model_that_was_there_is_waited_for_a_little(tmp_path):
    """It may be away for a moment, while it is replaced; a group that has served is not given up for that at once."""
    (tmp_path / "model").mkdir()
    model = model_folder("llama3", tmp_path / "model")
    service = Service(tmp_path, serve=["--model", str(model), "--threads", "1"])
    service.wait_for("gRPC on")
    model.rename(tmp_path / "away")
    os.kill(service.ranks()[1], signal.SIGKILL)
    service.wait_for("(exit status 78); starting again in")
    (tmp_path / "away").rename(model)
    service.wait_for("gRPC on", 2)
    service.process.send_signal(signal.SIGTERM)
    assert service.end() == 0, "".join(service.lines)


def test_gives_up_after_the_allowed_restarts(tmp_path):
    service = Service(tmp_path, "--restarts", "0")
    service.wait_for("gRPC on")
    os.kill(service.ranks()[0], signal.SIGKILL)
    assert service.end() == 137
    assert service.count("0 restarts were allowed") == 1
