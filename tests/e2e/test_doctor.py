"""weft doctor: every way of starting ranks, and wrong things that it has to find."""
import json
import os
import shutil
import subprocess

import pytest
from weft_cli import GOLDEN, MPIRUN, WEFT, free_port, one_error_line, weft

pytestmark = pytest.mark.timeout(120)
MODEL = GOLDEN / "llama3"
CORE = min(os.sched_getaffinity(0))


def report(*arguments, **keywords):
    done = weft("doctor", "--output", "json", *arguments, **keywords)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert found["well"] == (done.returncode == 0)
    return found


def whats(found, severity):
    return [f"{f['where']}: {f['what']}" for f in found["findings"] if f["severity"] == severity]


def check_ranks(found, count):
    assert [r["rank"] for r in found["ranks"]] == list(range(count))
    assert len({r["pid"] for r in found["ranks"]}) == count
    for key in ("binary_sha256", "model_sha256", "version", "host"):
        assert len({r[key] for r in found["ranks"]}) == 1
    assert sorted(tuple(link["ranks"]) for link in found["links"]) == \
        [(a, b) for a in range(count) for b in range(a + 1, count)]
    for link in found["links"]:
        assert link["latency_us"] > 0 and link["bandwidth_bytes_per_s"] > 0


@pytest.mark.parametrize("count", [1, 3])
def test_local(count):
    found = report("--ranks", count, "--model", MODEL)
    check_ranks(found, count)
    assert not whats(found, "error")
    assert found["origins"] == {"rank": "default", "rank_count": "--ranks", "leader": "default"}
    assert found["transport"] == ("self" if count == 1 else "shm")
    assert {link["transport"] for link in found["links"]} <= {"shm"}
    assert all(r["memory_needed_bytes"] > 0 for r in found["ranks"])
    assert found["prediction"] is None  # its weights stay in caches


def test_forced_transport_and_variable():
    found = report("--comm", "tcp", environment={"WEFT_RANKS": "2"})
    assert found["origins"]["rank_count"] == "WEFT_RANKS"
    assert [link["transport"] for link in found["links"]] == ["tcp"]
    assert found["transport_reason"] == "asked for"
    assert found["ranks"][0]["model_sha256"] is None


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun here")
def test_mpirun():
    found = report("--model", MODEL, wrapper=[*MPIRUN, "-n", "2"])
    check_ranks(found, 2)
    assert found["started_by"] == "mpi"
    assert found["launcher"] == "mpirun"
    assert found["origins"] == {"rank": "OMPI_COMM_WORLD_RANK", "rank_count": "OMPI_COMM_WORLD_SIZE", "leader": "MPI"}
    assert [(r["local_rank"], r["local_rank_from"]) for r in found["ranks"]] == \
        [(0, "OMPI_COMM_WORLD_LOCAL_RANK"), (1, "OMPI_COMM_WORLD_LOCAL_RANK")]


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun here")
def test_ranks_must_be_what_mpirun_started():
    done = weft("doctor", "--ranks", 3, wrapper=[*MPIRUN, "-n", "2"])
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("weft")] == \
        ["weft[0]: doctor: 3 ranks asked for, but 2 were started"]


def test_text_has_a_line_per_rank():
    done = weft("doctor", "--ranks", 2, "--model", MODEL)
    assert done.stderr == ""
    host = os.uname().nodename[:16]
    assert [line.split()[0] for line in done.stdout.splitlines() if f" {host} " in line and "bound" not in line
            and line[:4].strip().isdigit()] == ["0", "1"]
    assert "0 - 1" in done.stdout


def test_one_core_for_two_ranks():
    done = weft("doctor", "--quiet", "--ranks", 2, wrapper=["taskset", "-c", str(CORE)])
    assert done.returncode == 1
    if os.cpu_count() > 1:
        assert f"warning: rank 1 on {os.uname().nodename}: bound to core {CORE}, as is rank 0" in done.stdout
    assert "2 threads of 2 ranks on 1 core" in done.stdout
    assert all("; change: " in line for line in done.stdout.splitlines())


def test_too_many_threads():
    count = len(os.sched_getaffinity(0)) + 1
    assert any(f"{count} threads of 1 rank" in w for w in whats(report("--threads", count), "warning"))


def by_hand(*models):
    port = free_port()
    processes = [subprocess.Popen([str(WEFT), "doctor", "--output", "json", "--leader", f"127.0.0.1:{port}",
                                   "--rank", str(rank), "--ranks", str(len(models)), "--model", str(model)],
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                 for rank, model in enumerate(models)]
    return [(p, *p.communicate(timeout=60)) for p in processes]


def test_another_model_is_found():
    (leader, out, errors), (worker, worker_out, _) = by_hand(MODEL, GOLDEN / "mistral")
    found = json.loads(out)
    assert (leader.returncode, worker.returncode, worker_out) == (1, 1, ""), errors
    assert ["other model files" in w and w.startswith("rank 1 on ") for w in whats(found, "error")] == [True]
    assert found["started_by"] == "tcp"
    assert found["origins"] == {"rank": "--rank", "rank_count": "--ranks", "leader": "--leader"}


def test_a_missing_model_is_found(tmp_path):
    (leader, out, errors), _ = by_hand(MODEL, tmp_path / "absent")
    assert leader.returncode == 1, errors
    assert [w for w in whats(json.loads(out), "error") if "absent: no such model folder" in w]


def test_more_ranks_than_the_model_has_leaves():
    errors = whats(report("--ranks", 3, "--leaves", 2, "--model", MODEL), "error")
    assert len(errors) == 1 and errors[0].startswith("model: "), errors


def test_wrong_calls():
    assert "--rank needs --leader" in one_error_line(weft("doctor", "--rank", 1), 2)
    assert "--prompt is not an option of weft doctor" in one_error_line(weft("doctor", "--prompt", "x"), 2)
    assert "65 ranks" in one_error_line(weft("doctor", "--ranks", 65), 1)


def test_serve_says_what_hurts_at_its_start():
    """The cheap part runs whenever serve starts: once per fault, however many ranks."""
    command = ["sh", "-c", 'ulimit -n 512; exec "$@"', "sh", WEFT, "serve", "--model", MODEL, "--ranks", "2", "--grpc",
               "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        lines = []
        for line in server.stderr:
            lines.append(line)
            if "gRPC on" in line:
                server.terminate()
    warnings = [line for line in lines if "doctor: " in line]
    assert len(warnings) == 1 and "at most 512 open files" in warnings[0] and "change: " in warnings[0], lines
