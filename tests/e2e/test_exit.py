"""How weft ends: signals, kill -9 of any rank. Always: every process gone, nothing left in /dev/shm."""
import os
import signal
import subprocess
import sys
import time

import pytest
import slow_steps
from weft_cli import GOLDEN, HANG_S, ROOT, WEFT, group_of, is_alive, model_folder, shm_left_behind, until

sys.path.insert(0, str(ROOT / "tests" / "serve"))
import grpc  # noqa: E402
from weft_server import Server, health_pb2, retry_hint, weft_pb2  # noqa: E402

pytestmark = pytest.mark.timeout(180)
RANKS = 3
# Answers that no machine ends before the test does.
CONTEXT, ENDLESS = 100_000, 90_000
ROOM = ("--kv-tokens", 8 * CONTEXT)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_folder("llama2", tmp_path_factory.mktemp("llama2"), CONTEXT)


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = shm_left_behind()
    yield
    assert until(lambda: shm_left_behind() <= before), shm_left_behind() - before


def ranks_of(process):
    """Ids of all ranks, leader first, once they are there."""
    assert until(lambda: len(group_of(process.pid)) >= RANKS), "the ranks did not start"
    return [process.pid, *sorted(group_of(process.pid) - {process.pid})]


def all_gone(pids):
    return until(lambda: not any(is_alive(p) for p in pids))


def signal_all(pids, number):
    """To each; the first may take the others along before their turn."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


class Busy:
    """A server whose ranks are in the middle of many answers: all have begun."""

    COUNT = 8

    def __init__(self, model, *options, tokens=ENDLESS):
        self.server = Server("--model", model, "--ranks", RANKS, "--threads", 1, *options)
        self.ranks = ranks_of(self.server.process)
        stub = self.server.stub()
        self.calls = [stub.Generate(weft_pb2.GenerateRequest(prompt=f"x{i}", max_tokens=tokens, ignore_eos=True))
                      for i in range(self.COUNT)]
        self.token_counts = [len(next(call).token_ids) for call in self.calls]

    def whole(self):
        """How many tokens each answer has in the end."""
        return [before + sum(len(m.token_ids) for m in call) for before, call in zip(self.token_counts, self.calls)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in self.ranks:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.server.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_a_server(model, number):
    with Busy(model, *ROOM) as busy:
        busy.server.process.send_signal(number)
        assert busy.server.wait() == 0
        assert all_gone(busy.ranks)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_every_rank_at_once_is_a_clean_end(model, number):
    """What a terminal does with Ctrl-C, and systemd and mpirun with SIGTERM."""
    with Busy(model, *ROOM) as busy:
        signal_all(busy.ranks, number)
        assert busy.server.wait() == 0
        assert all_gone(busy.ranks)
        assert not any("failed" in line for line in busy.server.log), busy.server.log


def test_signal_to_every_rank_at_once_drains():
    """Pods of a group that is deleted, or Ctrl-C: workers stay for the answers that the leader lets end."""
    with Busy(ROOT / "launch" / "demo-model", "--drain", "1h", tokens=900) as busy:
        signal_all(busy.ranks, signal.SIGTERM)
        assert busy.whole() == [900] * Busy.COUNT
        assert busy.server.wait() == 0
        assert all_gone(busy.ranks)


def test_a_drain_that_runs_out_in_a_long_step():
    """The leader decides: no worker leaves before it, every stream is told the same, and nobody is called dead."""
    with Server(*slow_steps.OPTIONS, "--ranks", RANKS, "--drain", "1s") as server:
        ranks = ranks_of(server.process)
        streams = slow_steps.Streams(server.port, server.http_port)
        signal_all(ranks, signal.SIGTERM)
        assert streams.were_shut_down()
        assert server.wait() == 0
        assert all_gone(ranks)
        assert not any("failed" in line or "exited" in line for line in server.log), server.log


@pytest.mark.parametrize("victim", range(RANKS))
@pytest.mark.parametrize("is_idle", [False, True])
def test_kill_of_a_rank(model, victim, is_idle):
    with Busy(model, *ROOM, tokens=120 if is_idle else ENDLESS) as busy:
        if is_idle:
            busy.whole()
        os.kill(busy.ranks[victim], signal.SIGKILL)
        code = busy.server.wait()
        assert all_gone(busy.ranks)
        if victim == 0:
            assert code == -signal.SIGKILL
        else:
            assert code == 1
            assert any(f"rank {victim}" in line for line in busy.server.log), busy.server.log


@pytest.mark.parametrize("is_idle", [False, True])
def test_stop_of_a_rank(model, is_idle):
    """SIGSTOP: nothing closes, yet every stream is told why and everything ends, the stopped process too."""
    with Busy(model, *ROOM, tokens=120 if is_idle else ENDLESS) as busy:
        if is_idle:
            busy.whole()
        watch = busy.server.health().Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        os.kill(busy.ranks[2], signal.SIGSTOP)
        errors = []
        for call in busy.calls:
            try:
                list(call)
            except grpc.RpcError as error:
                errors.append(error)
        assert len(errors) == (0 if is_idle else Busy.COUNT)
        for error in errors:
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert error.details().startswith("rank 2 on ") and "is stopped" in error.details()
            assert retry_hint(error) >= 3
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert busy.server.wait() == 1
        assert all_gone(busy.ranks)
        assert sum("stopping: rank 2 on " in line for line in busy.server.log) == 1


def test_sigterm_to_one_worker_is_a_death_that_is_reported(model):
    with Busy(model, *ROOM) as busy:
        os.kill(busy.ranks[1], signal.SIGTERM)
        assert busy.server.wait() == 1
        assert all_gone(busy.ranks)
        assert any("rank 1" in line for line in busy.server.log), busy.server.log


def run_slowly(model):
    """A `weft run` with a reader that never reads, so that it is still there when the signal comes."""
    return subprocess.Popen([str(WEFT), "run", "--model", str(model), "--prompt", "x", "--ranks", str(RANKS),
                             "--max-tokens", "120", "--ignore-eos", "--verbose"], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def test_signal_while_it_starts(model):
    """At any moment of loading and running: it ends, with all ranks."""
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1, 0.2):
        process = run_slowly(model)
        time.sleep(delay)
        ranks = group_of(process.pid)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=HANG_S)
        assert process.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
        assert all_gone(ranks)


def test_leader_killed_while_it_starts(model):
    for delay in (0.01, 0.05, 0.1):
        process = run_slowly(model)
        time.sleep(delay)
        ranks = group_of(process.pid)
        process.kill()
        process.wait(HANG_S)
        assert all_gone(ranks)
        process.stdout.close()
        process.stderr.close()


def test_normal_end_leaves_nothing(model):
    process = run_slowly(model)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (GOLDEN / "llama2").is_dir()
