#!/usr/bin/env python3
"""Decode speed of a model folder as a share of this machine's read bandwidth, one thread, two threads and two ranks.

usage: decode.py BUILD-FOLDER MODEL-FOLDER [--rounds N] [--tokens N]

In every round: the bandwidth probe, then each configuration once, so that a neighbour's load meets all of them alike;
the median over rounds counts. A decoded token reads every weight byte once (the embedding table is the output matrix
too), so tokens/s x file size is the rate at which weights are read.
"""
import argparse
import json
import os
import statistics
import subprocess

CONFIGURATIONS = [
    ("1 rank x 1 thread", ["--ranks", "1", "--threads", "1"]),
    ("1 rank x 2 threads", ["--ranks", "1", "--threads", "2"]),
    ("2 ranks x 1 thread", ["--ranks", "2", "--threads", "1"]),
]


def bandwidth(build):
    """GB/s for 1 and 2 threads."""
    output = subprocess.run([os.path.join(build, "bandwidth"), "2"], check=True, capture_output=True, text=True).stdout
    return [float(line.split(":")[1].split()[0]) for line in output.splitlines()]


def decode(build, model, tokens, options):
    command = [os.path.join(build, "weft"), "run", "--model", model, "--prompt", "one two three", "--max-tokens",
               str(tokens), "--temperature", "0", "--ignore-eos", "--context", "1024", "--output", "json"] + options
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{run.stderr}")
    answer = json.loads(run.stdout)
    return answer["timings"]["tokens_per_second"], answer["logits_sha256"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("build")
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    arguments = parser.parse_args()
    size = os.path.getsize(os.path.join(arguments.model, "model.safetensors"))
    rates = {name: [] for name, _ in CONFIGURATIONS}
    probes, digests = [], set()
    for round_index in range(arguments.rounds):
        probes.append(bandwidth(arguments.build))
        line = f"round {round_index + 1}: read {probes[-1][0]:.1f} / {probes[-1][1]:.1f} GB/s"
        for name, options in CONFIGURATIONS:
            rate, digest = decode(arguments.build, arguments.model, arguments.tokens, options)
            rates[name].append(rate)
            digests.add(digest)
            line += f"; {name} {rate:.2f} tok/s"
        print(line + f"; load {os.getloadavg()[0]:.1f}", flush=True)
    if len(digests) != 1:
        raise SystemExit("the configurations disagree in their logits")
    peaks = [statistics.median(probe[i] for probe in probes) for i in range(2)]
    print(f"median read bandwidth: {peaks[0]:.1f} GB/s 1 thread, {peaks[1]:.1f} GB/s 2 threads")
    for name, _ in CONFIGURATIONS:
        rate = statistics.median(rates[name])
        peak = peaks[0] if name == CONFIGURATIONS[0][0] else peaks[1]
        share = statistics.median(
            r * size * 1e-9 / probe[0 if name == CONFIGURATIONS[0][0] else 1] for r, probe in zip(rates[name], probes))
        print(f"{name}: median {rate:.2f} tok/s = {rate * size * 1e-9:.1f} GB/s of weights, "
              f"{rate * size * 1e-9 / peak:.0%} of the median bandwidth (median of the rounds' shares {share:.0%})")


if __name__ == "__main__":
    main()
