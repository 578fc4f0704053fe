#!/usr/bin/env python3
"""Two processes on one GPU over NCCL: the bits of one rank, and a killed rank noticed in time.

usage: nccl.py [--device cuda:0] [--comm nccl]

NCCL refuses two ranks on one GPU unless each claims a host of its own (NCCL_HOSTID); it then goes through host memory, which
shows that the calls are right and nothing about speed. Needs libnccl.so.2 where the loader finds it.
"""
import argparse
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from weft_cli import WEFT, answer  # noqa: E402

PROMPT = ["--prompt", "12+30="]
DEATH_LIMIT = 10  # seconds; the heartbeat alone names a dead rank within two


def device_options(arguments):
    return ["--device", arguments.device, *(["--cuda-module", arguments.module] if arguments.module else [])]


def start(rank, port, arguments, command, *options):
    environment = {**os.environ, "NCCL_HOSTID": f"weft{rank}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1",
                   "NCCL_MAX_CTAS": "2"}
    command = [WEFT, command, "--leader", f"127.0.0.1:{port}", "--ranks", "2", "--rank", str(rank),
               *device_options(arguments), "--comm", arguments.comm, *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def pair(arguments, command, *options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(rank, port, arguments, command, *options) for rank in range(2)]


def check_answer(arguments):
    wanted = answer(*device_options(arguments), *PROMPT)
    leader, worker = pair(arguments, "run", "--quiet", "--output", "json", *PROMPT)
    output, error = leader.communicate(timeout=60)
    worker.communicate(timeout=60)
    if leader.returncode != 0:
        sys.exit(f"FAILED: {error.strip()}")
    found = json.loads(output)
    if found["logits_sha256"] != wanted["logits_sha256"]:
        sys.exit("FAILED: two ranks over NCCL have other bits than one rank")
    sums = found["timings"]["collectives"]
    print(f"ok: two ranks over {arguments.comm}, the bits of one; {json.dumps(sums)}", flush=True)


def check_death(arguments):
    leader, worker = pair(arguments, "bench", "--max-tokens", "200", "--rounds", "1000")
    # The head of its table is printed when all is loaded.
    head = [leader.stdout.readline() for _ in range(4)]
    if not head[3].startswith(" batch"):
        sys.exit(f"FAILED: the leader ended by itself: {leader.communicate()[1].strip()}")
    time.sleep(0.5)
    worker.send_signal(signal.SIGKILL)
    begin = time.monotonic()
    try:
        _, error = leader.communicate(timeout=DEATH_LIMIT)
    except subprocess.TimeoutExpired:
        leader.kill()
        sys.exit(f"FAILED: the leader still waits {DEATH_LIMIT} s after its peer was killed")
    worker.communicate()
    if leader.returncode != 1 or "rank 1" not in error:
        sys.exit(f"FAILED: exit code {leader.returncode}: {error.strip()}")
    print(f"ok: a killed rank was named after {time.monotonic() - begin:.1f} s: {error.strip().splitlines()[-1]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--comm", default="nccl")
    parser.add_argument("--cuda-module", dest="module", default=os.environ.get("WEFT_CUDA_MODULE"))
    arguments = parser.parse_args()
    check_answer(arguments)
    check_death(arguments)


if __name__ == "__main__":
    main()
