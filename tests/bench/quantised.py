#!/usr/bin/env python3
"""What --quantize does to memory, loading, prefill and decode of a model folder: none, q8_0, q4_0 (--kinds) by turns.

usage: quantised.py BUILD-FOLDER MODEL-FOLDER [--kinds none,bf16] [--cpu-level NAME] [--rounds N] [--tokens N] [--words N]

One rank of one thread, all by CPU time, so that a neighbour's load counts for little: until the weights are there
(loading), from then to the first token (prefill), from there to the last (decode). Medians over rounds, and the lowest and
highest.
"""
import argparse
import json
import os
import re
import selectors
import statistics
import subprocess


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(arguments, kind):
    """CPU seconds until all weights are there, and until each piece of the answer; tokens of the prompt."""
    level = ["--cpu-level", arguments.cpu_level] if arguments.cpu_level else []
    process = subprocess.Popen(
        [os.path.join(arguments.build, "weft"), "run", "--model", arguments.model, "--quantize", kind, "--threads", "1",
         "--context", "1024", "--prompt", " ".join(["one"] * arguments.words), "--max-tokens", str(arguments.tokens),
         "--ignore-eos"] + level,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    pipes = selectors.DefaultSelector()
    pipes.register(process.stdout, selectors.EVENT_READ)
    pipes.register(process.stderr, selectors.EVENT_READ)
    loaded, seen, said = None, [], b""
    while pipes.get_map():
        for key, _ in pipes.select():
            got = os.read(key.fd, 4096)
            if not got:
                pipes.unregister(key.fileobj)
            elif key.fileobj is process.stdout:
                seen.append(cpu_seconds(process.pid))
            else:
                said += got
                if loaded is None and b"weights: 100 %" in said:
                    loaded = cpu_seconds(process.pid)
    prompt = re.search(rb"prompt +(\d+) tokens", said)
    if process.wait() != 0 or loaded is None or prompt is None or len(seen) < 3:
        raise SystemExit(said.decode() + f"weft run --quantize {kind} failed")
    return loaded, seen, int(prompt[1])


def weight_bytes(build, model, kind):
    output = subprocess.run([os.path.join(build, "weft"), "info", model, "--quantize", kind, "--output", "json"], check=True,
                            capture_output=True, text=True).stdout
    return json.loads(output)["ranks"][0]["weight_bytes"]


def text(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("build")
    parser.add_argument("model")
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=["none", "q8_0", "q4_0"])
    parser.add_argument("--cpu-level")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--words", type=int, default=64)
    arguments = parser.parse_args()
    found = {kind: {"load": [], "decode": [], "prefill": []} for kind in arguments.kinds}
    for _ in range(arguments.rounds):
        for kind in arguments.kinds:
            loaded, seen, prompt = run(arguments, kind)
            found[kind]["load"].append(loaded)
            found[kind]["prefill"].append(prompt / (seen[0] - loaded))
            found[kind]["decode"].append((len(seen) - 2) / (seen[-2] - seen[0]))  # the last piece is a newline
    print("| | weights in memory | load, CPU seconds | prefill, tokens per CPU second | decode, tokens per CPU second |")
    print("|---|---|---|---|---|")
    for kind in arguments.kinds:
        size = weight_bytes(arguments.build, arguments.model, kind) / 1e9
        rates = found[kind]
        print(f"| {kind} | {size:.2f} GB | {text(rates['load'], 1)} | {text(rates['prefill'], 0)} | "
              f"{text(rates['decode'], 1)} |")


if __name__ == "__main__":
    main()
