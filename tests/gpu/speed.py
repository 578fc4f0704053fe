#!/usr/bin/env python3
"""Speed of whole models on a GPU next to what bounds it, as a table.

usage: speed.py BIN-FOLDER MODELS-FOLDER [--device cuda:0] [--budget SECONDS] [--torch PYTHON]

BIN-FOLDER has weft and gpu_probe. MODELS-FOLDER gets the random models (16 GB and 2.5 GB) when it has none yet; a
folder in memory (/dev/shm) makes loading a matter of the link. Every row prints its prediction before it is measured. A
row that fails or finds no time left says so and the next one goes on.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
BENCH = HERE.parent / "bench"
GB = 1e9
# Llama-3-8B: every matrix but the embedding, bf16; K and V of one position, 32 layers, f32 as the cache is by default.
WEIGHTS = {"8b": 15.01 * GB, "1b": 2.47 * GB}
PARAMETERS = {"8b": 7.50e9, "1b": 1.24e9}
KV_POSITION = {"8b": 2 * 32 * 8 * 128 * 2, "1b": 2 * 16 * 8 * 64 * 2}


class Table:
    def __init__(self, arguments):
        self.arguments = arguments
        self.end = time.monotonic() + arguments.budget
        self.probe = json.loads(self.run([arguments.bin / "gpu_probe", arguments.device.partition(":")[2] or "0"], 60))
        self.copy = self.probe["copy_gb_s"] * GB
        print(f"GPU: {self.probe['gpu']}, {self.probe['sms']} SMs, driver for CUDA {self.probe['driver']}; copy "
              f"{self.probe['copy_gb_s']} GB/s, read {self.probe['read_gb_s']} GB/s, from pinned host memory "
              f"{self.probe['to_gpu_gb_s']} GB/s, to it {self.probe['from_gpu_gb_s']} GB/s", flush=True)

    def run(self, command, seconds):
        left = self.end - time.monotonic()
        if left < 5:
            raise RuntimeError("no time left")
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=min(seconds, left))
        if done.returncode != 0:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no reason given"])[-1])
        return done.stdout

    def model(self, shape):
        folder = self.arguments.models / f"weft-random-{shape}"
        if not (folder / "model.safetensors").exists():
            self.run([self.arguments.torch or sys.executable, BENCH / "random_model.py", folder, "--shape", shape], 120)
        return folder

    def bench(self, shape, *options, seconds=60):
        """What `weft bench` finds for one batch size."""
        command = [self.arguments.bin / "weft", "bench", "--output", "json", "--quiet", "--model", self.model(shape),
                   "--device", self.arguments.device, "--kv-dtype", "bf16", *options]
        found = json.loads(self.run(command, seconds))
        return {**found["results"][0], "load_s": found["load_s"]}

    def row(self, name, predicted, measure):
        """predicted and the result of measure: text."""
        print(f"| {name} | {predicted} | ", end="", flush=True)
        try:
            print(f"{measure()} |", flush=True)
        except (RuntimeError, OSError, ValueError, subprocess.TimeoutExpired) as error:
            print(f"FAILED: {error} |", flush=True)


def decode_floor(table, shape, batch, context):
    """Seconds per step: memory or arithmetic, whichever is slower; 790 TFLOP/s is an H200's measured bf16 rate."""
    memory = (WEIGHTS[shape] + batch * context * KV_POSITION[shape]) / table.copy
    return max(memory, 2 * PARAMETERS[shape] * batch / 790e12)


def decode_row(table, shape, batch, context, share, *options):
    floor = decode_floor(table, shape, batch, context)
    predicted = batch / floor * share

    def measure():
        rate = table.bench(shape, "--batch", batch, "--prompt-tokens", context, "--max-tokens", 48, "--rounds", 3,
                           "--prefill-chunk", 4096, *options, seconds=90)["decode_tokens_per_s"]
        return f"{rate:.0f} tok/s, {rate * floor / batch:.0%} of the floor"

    table.row(f"decode, {shape} bf16, batch {batch}, context {context}{' '.join(['', *options])}",
              f"{predicted:.0f} tok/s ({share:.0%} of {batch / floor:.0f})", measure)


def quantised_row(table, quantize, predicted):
    """Layers in quantize, the head in q8_0; see kernels/cuda/README.md for where the predictions come from."""
    head = 0.525e9
    size = (PARAMETERS["8b"] - head) * (34 if quantize == "q8_0" else 18) / 32 + head * 34 / 32
    floor = size / table.copy

    def measure():
        rate = table.bench("8b", "--quantize", quantize, "--max-tokens", 48, "--rounds", 3)["decode_tokens_per_s"]
        return f"{rate:.0f} tok/s, {rate * floor:.0%} of the floor"

    table.row(f"decode, 8b {quantize}, batch 1, context 16", f"{predicted} tok/s ({predicted * floor:.0%} of "
              f"{1 / floor:.0f})", measure)


def prefill_row(table, predicted, *options):
    def measure():
        rate = table.bench("8b", "--prompt-tokens", 4096, "--max-tokens", 2, "--rounds", 3, "--prefill-chunk", 4096,
                           *options)["prefill_tokens_per_s"]
        return f"{rate:.0f} tok/s, {rate * 2 * PARAMETERS['8b'] * 1e-12:.0f} T/s"

    table.row(f"prefill of 4096 tokens, 8b {options[-1] if options else 'bf16'}", predicted, measure)


def long_context_row(table):
    positions = 32768
    floor = positions * KV_POSITION["8b"] / table.copy

    def measure():
        options = ["--max-tokens", 33, "--rounds", 1, "--prefill-chunk", 4096]
        near = table.bench("8b", "--prompt-tokens", 16, *options)["decode_tokens_per_s"]
        far = table.bench("8b", "--prompt-tokens", positions, *options, seconds=120)["decode_tokens_per_s"]
        extra = 1 / far - 1 / near
        return f"{extra * 1e3:.2f} ms more per token, {floor / extra:.0%} of copy bandwidth"

    table.row("attention, decode at 32k context, 8b", f"{floor / 0.85 * 1e3:.2f} ms more per token (85 %)", measure)


def load_row(table):
    def measure():
        seconds = table.bench("8b", "--max-tokens", 2, "--rounds", 1)["load_s"]
        return f"{seconds:.1f} s, {16.06 / seconds:.1f} GB/s"

    table.row("load 16 GB from the page cache", f"10 GB/s, or {table.probe['to_gpu_gb_s']} GB/s of the link", measure)


def torch_row(table):
    def measure():
        if table.arguments.torch is None:
            raise RuntimeError("skipped: no Python with torch given (--torch)")
        return table.run([table.arguments.torch, HERE / "torch_reference.py"], 200).strip().splitlines()[-1]

    table.row("transformers, 8b bf16, batch 1, static cache, torch.compile; cuBLASLt", "slower than Weft", measure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bin", type=pathlib.Path)
    parser.add_argument("models", type=pathlib.Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--budget", type=float, default=300)
    parser.add_argument("--torch")
    table = Table(parser.parse_args())
    print("| work | predicted | measured |\n|---|---|---|")
    decode_row(table, "8b", 1, 16, 0.84)
    load_row(table)
    decode_row(table, "1b", 1, 16, 0.80)
    decode_row(table, "1b", 1, 16, 0.70, "--eager")
    quantised_row(table, "q8_0", 417)
    quantised_row(table, "q4_0", 629)
    decode_row(table, "8b", 32, 1024, 0.90)
    prefill_row(table, "14000 tok/s")
    prefill_row(table, "17000 tok/s: products at 600 T/s, attention as ever", "--numerics", "fast")
    prefill_row(table, "12000 tok/s", "--quantize", "q8_0")
    decode_row(table, "8b", 128, 1024, 0.90)
    long_context_row(table)
    torch_row(table)


if __name__ == "__main__":
    main()
