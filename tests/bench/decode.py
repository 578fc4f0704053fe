#!/usr/bin/env python3
"""Decode speed of a model folder as a share of this machine's read bandwidth: one thread, two threads, two ranks.

usage: decode.py BUILD-FOLDER MODEL-FOLDER [--rounds N] [--tokens N]

In every round: the bandwidth probe, then each configuration once, so that a neighbour's load meets all of them alike;
medians over rounds count. A decoded token reads every weight byte once (the embedding table is the output matrix too), so
tokens/s x file size is the rate at which weights are read. On a machine that others use as well, the clock says mostly
how much of the cores they left; so one thread is also measured by CPU time, against the probe by CPU time.
"""
import argparse
import json
import os
import statistics
import subprocess
import time

CONFIGURATIONS = [
    ("1 rank x 1 thread", ["--ranks", "1", "--threads", "1"]),
    ("1 rank x 2 threads", ["--ranks", "1", "--threads", "2"]),
    ("2 ranks x 1 thread", ["--ranks", "2", "--threads", "1"]),
]


def bandwidth(build):
    """GB/s: one and two threads by the clock, one thread by CPU time."""
    output = subprocess.run([os.path.join(build, "bandwidth"), "2"], check=True, capture_output=True, text=True).stdout
    one, two = output.splitlines()
    numbers = [float(word) for word in one.split() + two.split() if word.replace(".", "").isdigit() and "." in word]
    return numbers[0], numbers[2], numbers[1]


def command(build, model, tokens, options):
    return [os.path.join(build, "weft"), "run", "--model", model, "--prompt", "one two three", "--max-tokens",
            str(tokens), "--temperature", "0", "--ignore-eos", "--context", "1024"] + options


def decode(build, model, tokens, options):
    """Tokens/s by the clock, digest of the logits."""
    run = subprocess.run(command(build, model, tokens, options) + ["--output", "json"], capture_output=True, text=True)
    if run.returncode != 0:
        raise SystemExit(run.stderr)
    answer = json.loads(run.stdout)
    return answer["timings"]["tokens_per_second"], answer["logits_sha256"]


def decode_by_cpu_time(build, model, tokens):
    """Tokens per second of CPU time of one thread, between the first and the last token seen on stdout."""
    run = subprocess.Popen(command(build, model, tokens, CONFIGURATIONS[0][1]), stdout=subprocess.PIPE,
                           stderr=subprocess.DEVNULL)
    seen = []
    while True:
        text = os.read(run.stdout.fileno(), 4096)
        if not text:
            break
        try:
            with open(f"/proc/{run.pid}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except OSError:
            break
        seen.append((text.count(b"t"), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")))
    if run.wait() != 0 or len(seen) < 3 or not seen[-1][1] > seen[0][1]:
        raise SystemExit("the run by CPU time gave no usable output")
    return sum(count for count, _ in seen[1:]) / (seen[-1][1] - seen[0][1])


def report(name, rate, size, shares):
    print(f"{name}: median {rate:.2f} tok/s = {rate * size * 1e-9:.1f} GB/s of weights, "
          f"median share of the probe beside it {statistics.median(shares):.0%}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("build")
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    arguments = parser.parse_args()
    size = os.path.getsize(os.path.join(arguments.model, "model.safetensors"))
    names = [name for name, _ in CONFIGURATIONS] + ["1 rank x 1 thread by CPU time"]
    rates, shares, digests = {name: [] for name in names}, {name: [] for name in names}, set()
    for round_index in range(arguments.rounds):
        one, two, one_cpu = bandwidth(arguments.build)
        print(f"{time.strftime('%H:%M:%S')} round {round_index + 1}: read {one:.1f} / {two:.1f} GB/s, one thread by CPU "
              f"time {one_cpu:.1f} GB/s; load {os.getloadavg()[0]:.1f}")
        for name, options in CONFIGURATIONS:
            rate, digest = decode(arguments.build, arguments.model, arguments.tokens, options)
            rates[name].append(rate)
            shares[name].append(rate * size * 1e-9 / (one if name == names[0] else two))
            digests.add(digest)
        rates[names[3]].append(decode_by_cpu_time(arguments.build, arguments.model, arguments.tokens))
        shares[names[3]].append(rates[names[3]][-1] * size * 1e-9 / one_cpu)
        print("  " + "; ".join(f"{name} {rates[name][-1]:.2f} tok/s" for name in names), flush=True)
    if len(digests) != 1:
        raise SystemExit("the configurations disagree in their logits")
    for name in names:
        report(name, statistics.median(rates[name]), size, shares[name])


if __name__ == "__main__":
    main()
