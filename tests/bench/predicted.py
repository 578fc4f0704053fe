#!/usr/bin/env python3
"""What weft doctor expects of a model against what a run gives, over the lab's wire: one rank per host, 1, 2 and 4 hosts.

usage: predicted.py MODEL-FOLDER [--build FOLDER] [--rounds N] [--tokens N] [--wire "MBIT US"] [--hosts 1,2,4]

In every round, for each number of hosts: doctor, then a run, so that a neighbour's load meets both; medians count. The hosts share
this machine's cores and memory, and the wire takes its part: ratios mean something, tokens per second do not.
"""
import argparse
import json
import os
import pathlib
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e" / "lab"))
sys.dont_write_bytecode = True
from hosts import Lab  # noqa: E402


def call(lab, hosts, weft, *arguments):
    """Standard output of an mpirun over the hosts, as JSON."""
    process = lab.start(0, "mpirun", "-n", hosts, weft, *arguments, "--threads", 1, "--interface", "wire", "--output", "json")
    stdout, stderr = process.communicate(timeout=300)
    if not stdout:
        raise SystemExit(stderr)
    return json.loads(stdout)


def measure(lab, hosts, weft, model, tokens):
    """Expected and measured milliseconds per token."""
    report = call(lab, hosts, weft, "doctor", "--model", model)
    if report["prediction"] is None:
        raise SystemExit("doctor has no prediction")
    answer = call(lab, hosts, weft, "run", "--model", model, "--prompt", "one two three", "--max-tokens", tokens,
                  "--temperature", 0, "--ignore-eos", "--context", 1024)
    return report["prediction"], answer["timings"]["tokens_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=os.path.abspath)
    parser.add_argument("--build", type=os.path.abspath, default=ROOT / "build")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--wire", default="1000 200")
    parser.add_argument("--hosts", default="1,2,4")
    arguments = parser.parse_args()
    weft = os.path.join(arguments.build, "weft")
    counts = [int(count) for count in arguments.hosts.split(",")]
    expected, found = {n: [] for n in counts}, {n: [] for n in counts}
    lab = Lab(max(counts), LAB_WIRE=arguments.wire)
    try:
        for round_index in range(arguments.rounds):
            for hosts in counts:
                prediction, speed = measure(lab, hosts, weft, arguments.model, arguments.tokens)
                expected[hosts].append(prediction["tokens_per_s"])
                found[hosts].append(speed)
                print(f"round {round_index + 1}, {hosts} hosts: expected {expected[hosts][-1]:.2f} (reading "
                      f"{prediction['read_ms']:.1f} ms, exchanges {prediction['exchange_ms']:.1f} ms), measured {speed:.2f} "
                      f"tokens/s; load {os.getloadavg()[0]:.1f}", flush=True)
    finally:
        lab.close()
    for hosts in counts:
        one, two = statistics.median(expected[hosts]), statistics.median(found[hosts])
        print(f"{hosts} hosts: expected {one:.2f}, measured {two:.2f} tokens/s: {one / two - 1:+.0%}")


if __name__ == "__main__":
    main()
