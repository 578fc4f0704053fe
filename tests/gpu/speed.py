#!/usr/bin/env python3
"""Speed of whole models and of their products on a GPU next to what bounds it, as tables for ../bench/README.md.

usage: speed.py BIN-FOLDER MODELS-FOLDER --probe FILE [--module FILE] [--device cuda:0] [--budget SECONDS] [--torch] [--tiny]

BIN-FOLDER has weft and kernels_check. MODELS-FOLDER gets the random models (16, 9 and 2.5 GB) when it has none yet; a folder
in memory (/dev/shm) makes loading a matter of the link. Every row prints its prediction before it is measured; predictions are
those of kernels/cuda/README.md, for an H200. A row that fails or is not done within its share of the budget says so, and the
next one goes on; what earlier rows left over goes to torch (--torch: this Python has it), then to rows that are not among the
aims. --tiny: everything small, on the emulated GPU, to see that every row can be had.
"""
import argparse
import datetime
import json
import math
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
BENCH = HERE.parent / "bench"
sys.path.insert(0, str(BENCH))
from random_model import config_of  # noqa: E402

GB = 1e9
TENSOR_RATE = 790e12  # bf16 operations per second of an H200, as cuBLASLt was seen to reach them in 8192 x 8192 x 8192
# T/s of the exact kernel with 4096 tokens, see kernels/cuda/README.md.
EXACT_PREFILL = {"QKV": 335, "attention output": 240, "gate and up": 340, "down": 300, "head": 340}
LAYER = ["QKV", "attention output", "gate and up", "down"]
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class Sizes:
    """How large everything is: prompts in tokens, times in rounds."""

    def __init__(self, is_tiny):
        self.big, self.small = ("tiny", "tiny") if is_tiny else ("8b", "1b")
        self.rounds = 1 if is_tiny else 3
        self.made = 4 if is_tiny else 48
        self.context = 24 if is_tiny else 1024
        self.prompt = 32 if is_tiny else 4096
        self.far = 64 if is_tiny else 32768
        self.batches = [2, 4] if is_tiny else [32, 128]


class Shape:
    """Bytes and operations of a model, from its configuration."""

    def __init__(self, name):
        config = config_of(name)
        width, ffn, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.layers = config["num_hidden_layers"] * ((2 * heads + 2 * kv_heads) * size * width + 3 * ffn * width)
        self.head = config["vocab_size"] * width
        self.kv_position = 2 * config["num_hidden_layers"] * kv_heads * size * 2  # bytes of one position, bf16

    def size(self, dtype):
        """Bytes that a token reads of the matrices; heads of quantised models are in q8_0, of FP8 ones in bf16."""
        layer = {"bf16": 2, "q8_0": 34 / 32, "q4_0": 18 / 32, "f8_e4m3": 1 + 4 / 128}[dtype]
        return self.layers * layer + self.head * (34 / 32 if dtype in ("q8_0", "q4_0") else 2)

    def step_floor(self, dtype, batch, context, copy):
        """Seconds of a decode step: memory or arithmetic, whichever is slower."""
        memory = (self.size(dtype) + batch * context * self.kv_position) / copy
        return max(memory, 2 * (self.layers + self.head) * batch / TENSOR_RATE)


class Failure(Exception):
    """What goes into a row instead of its figure."""


class Skipped(Failure):
    pass


def reason_of(error):
    return error.args[0] if isinstance(error, Failure) else f"{type(error).__name__}: {error}"


class Clock:
    """Hands the budget out. A row may take its share and no more, so no other comes short."""

    def __init__(self, budget, shares):
        self.end = time.monotonic() + budget
        self.scale = budget / sum(shares)

    def left(self):
        return self.end - time.monotonic()

    def of(self, share):
        return min(share * self.scale, self.left())


class Session:
    def __init__(self, arguments):
        self.arguments = arguments
        self.sizes = Sizes(arguments.tiny)
        self.shapes = {name: Shape(name) for name in {self.sizes.big, self.sizes.small}}
        self.loads = []  # (bytes per second of the weights, seconds until ready)
        self.probe = {"to_gpu_gb_s": float("nan"), "problem": "not asked"}  # until gpu_probe has run
        self.copy = 4300 * GB  # as seen on an H200, likewise
        self.deadline = 0.0  # of the row being measured
        self.has_failed = False
        self.attention = float("nan")  # bytes per second of its kernel at the longest context
        self.decode_rate = float("nan")  # of 8b bf16, batch 1

    def run(self, command):
        """(stdout, stderr) of a program, which is ended with all it started at the row's end."""
        seconds = self.deadline - time.monotonic()
        if seconds < 2:
            raise Failure("no time left")
        with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              start_new_session=True) as process:
            try:
                output, error = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                output, error = process.communicate()
                raise Failure(f"not done after {seconds:.0f} s", output) from None
            except SystemExit:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        if process.returncode != 0:
            raise Failure((error.strip().splitlines() or [f"exit code {process.returncode}"])[-1], output)
        return output, error

    def model(self, shape, *options):
        folder = self.arguments.models / "-".join(["weft-random", shape, *(word.strip("-") for word in options)])
        if not (folder / "complete").exists():
            self.run([sys.executable, BENCH / "random_model.py", folder, "--shape", shape, *options])
            (folder / "complete").touch()
        return folder

    def bench(self, model, batch, prompt, made, *options, rounds=None):
        """What `weft bench` finds for one batch size."""
        output, error = self.run(
            [self.arguments.bin / "weft", "bench", "--output", "json", "--model", model, "--device", self.arguments.device,
             *(["--cuda-module", self.arguments.module] if self.arguments.module else []), "--kv-dtype", "bf16",
             "--prefill-chunk", self.sizes.prompt, "--batch", batch, "--prompt-tokens", prompt, "--max-tokens", made,
             "--rounds", rounds or self.sizes.rounds, *options])
        found = json.loads(output)
        weights = re.search(r"weights: 100 % of .*, ([\d.]+) (\w+)/s", error)
        if model.name == f"weft-random-{self.sizes.big}" and weights:
            self.loads.append((float(weights[1]) * UNITS[weights[2]], found["load_s"]))
        return {**found["results"][0], "weight_dtype": found["weight_dtype"]}

    def row(self, work, aim, predicted, measure):
        print(f"| {work} | {aim} | {predicted} | ", end="", flush=True)
        try:
            print(f"{measure()} |", flush=True)
        except Skipped as reason:
            print(f"skipped: {reason} |", flush=True)
        except Exception as error:  # whatever it is, the other rows are still wanted
            self.has_failed = True
            print(f"FAILED: {reason_of(error)} |", flush=True)


# ---- rows ----

def decode_row(session, shape, dtype, batch, context, aim, predicted, *options, model=()):
    """predicted: tokens per second on an H200."""
    sizes, of_shape = session.sizes, session.shapes[shape]
    # While chunks of other prompts are read, those that are done make tokens: these come on top.
    made = sizes.made + -(-batch * context // sizes.prompt) if batch > 1 else sizes.made
    floor = batch / of_shape.step_floor(dtype, batch, context + made / 2, session.copy)

    def measure():
        found = session.bench(session.model(shape, *model), batch, context, made, *options)
        held = found["weight_dtype"]
        rate, note = found["decode_tokens_per_s"], "" if held == dtype else f" (in memory: {held})"
        if shape == sizes.big and dtype == "bf16" and batch == 1 and math.isnan(session.decode_rate):
            session.decode_rate = rate
        return f"{rate:.4g} tok/s, {rate / floor:.0%} of the floor{note}"

    eager = ", eager" if "--eager" in options else ""
    session.row(f"decode, {shape} {dtype}, batch {batch}, context {context}{eager}", aim,
                f"{predicted} tok/s ({predicted / floor:.0%} of {floor:.4g})", measure)


def decode_8b(session):
    decode_row(session, session.sizes.big, "bf16", 1, 16, "240 tok/s, stretch 265", 257)


def decode_8b_q8(session):
    decode_row(session, session.sizes.big, "q8_0", 1, 16, "430 tok/s", 417, "--quantize", "q8_0")


def decode_8b_q4(session):
    decode_row(session, session.sizes.big, "q4_0", 1, 16, "700 tok/s", 629, "--quantize", "q4_0")


def decode_8b_fp8(session):
    decode_row(session, session.sizes.big, "f8_e4m3", 1, 16, "none set; 8 bits: 430 tok/s", 418, model=("--fp8",))


def decode_1b(session):
    decode_row(session, session.sizes.small, "bf16", 1, 16, "80 % of copy bandwidth", 1310)


def decode_1b_eager(session):
    decode_row(session, session.sizes.small, "bf16", 1, 16, "", 1200, "--eager")


def decode_many(session):
    decode_row(session, session.sizes.big, "bf16", session.sizes.batches[0], session.sizes.context, "90 % of the floor", 4800)


def decode_very_many(session):
    decode_row(session, session.sizes.big, "bf16", session.sizes.batches[1], session.sizes.context, "90 % of the floor", 9800)


def prefill_row(session, kind, aim, predicted, *options):
    def measure():
        found = session.bench(session.model(session.sizes.big), 1, session.sizes.prompt, 2, *options)
        rate = found["prefill_tokens_per_s"]
        return f"{rate:.4g} tok/s, products and attention at {rate * 2 * session.shapes[session.sizes.big].layers * 1e-12:.4g} T/s"

    session.row(f"prefill of {session.sizes.prompt} tokens, {session.sizes.big} {kind}", aim, predicted, measure)


def prefill_exact(session):
    prefill_row(session, "bf16", "see products", "12400 tok/s")


def prefill_fast(session):
    prefill_row(session, "bf16, fast", "see products", "17000 tok/s", "--numerics", "fast")


def prefill_q8(session):
    prefill_row(session, "q8_0", "", "12000 tok/s", "--quantize", "q8_0")


def load(session):
    def measure():
        if not session.loads:
            raise Failure("no model was loaded")
        rate, ready = (statistics.median(column) for column in zip(*session.loads))
        return f"weights at {rate / GB:.4g} GB/s, ready after {ready:.1f} s (median of {len(session.loads)})"

    session.row("load 16 GB from the page cache", "10 GB/s or the link's",
                f"90 % of the link's {session.probe['to_gpu_gb_s']:.4g} GB/s", measure)


def attention(session):
    """Measured by `products`."""
    session.row("attention, decode at 32k context, the kernel alone", "85 % of copy bandwidth", "75 %",
                lambda: f"{session.attention / GB:.4g} GB/s, {session.attention / session.copy:.0%} of copy bandwidth")


def far_context(session):
    sizes = session.sizes
    floor = sizes.far * session.shapes[sizes.big].kv_position / session.copy

    def measure():
        model = session.model(sizes.big)
        near = session.bench(model, 1, 16, sizes.made, rounds=1)["decode_tokens_per_s"]
        far = session.bench(model, 1, sizes.far, sizes.made, rounds=1)["decode_tokens_per_s"]
        return f"{(1 / far - 1 / near) * 1e3:.3g} ms more per token, {floor / (1 / far - 1 / near):.0%} of copy bandwidth"

    session.row(f"decode at context {sizes.far}, {sizes.big}: attention in the whole", "",
                f"{floor / 0.75 * 1e3:.3g} ms more per token", measure)


def torch_rows(session):
    def measure():
        if not session.arguments.torch:
            raise Skipped("no torch")
        tiny = ["--tiny", "--device", "cpu"] if session.arguments.tiny else []
        decode = ""
        try:
            output, _ = session.run([sys.executable, HERE / "torch_reference.py", *tiny])
        except Failure as failure:  # the first of its two lines may be there all the same
            if len(failure.args) < 2 or '"products"' not in failure.args[1]:
                raise
            output, decode, session.has_failed = failure.args[1], f"FAILED: {failure.args[0]}", True
        found = {}
        for line in output.strip().splitlines():
            found.update(json.loads(line))
        products = ", ".join(f"{name} {rate:.4g}" for name, rate in found["products"].items())
        versions = f"torch {found['torch']}, transformers {found.get('transformers', '?')}"
        if "decode_tok_s" in found:
            decode = f"{found['decode_tok_s']:.4g} tok/s, Weft has {session.decode_rate / found['decode_tok_s']:.2f} of that"
        return f"{decode} ({versions}); its products, bf16 out, T/s: {products}"

    session.row("transformers, 8b bf16, batch 1, static cache, torch.compile", "Weft ahead of it", "200 tok/s", measure)


# ---- products ----

def products(session):
    """The device's operations, timed one by one, and cuBLASLt beside them: tables of their own."""
    print("\nT/s with a long prompt, bf16, f32 out; exact is predicted at "
          f"{', '.join(f'{name} {rate}' for name, rate in EXACT_PREFILL.items())}; fast at 85 to 92 % of cuBLASLt:\n")
    module = ["--module", session.arguments.module] if session.arguments.module else []
    output, _ = session.run([session.arguments.bin / "kernels_check", "--device", "cuda", "--bench", *module])
    found = {}
    for line in re.findall(r"^\| (.+) \[(\d+), (\d+)\], (\d+) tokens \| ([\d.]+) us ", output, re.M):
        found[line[0], int(line[3])] = float(line[4]) * 1e-6, 2 * int(line[1]) * int(line[2]) * int(line[3])
    tokens = max(key[1] for key in found)
    print("| matrix | cuBLASLt | exact | of cuBLASLt (aim 70 %) | fast, unpacking included | of cuBLASLt (aim 90 %) |\n"
          "|---|---|---|---|---|---|")
    own = {name: rate * 1e12 for name, rate in session.probe.get("products", {}).items()}
    sums = {"cuBLASLt": 0.0, "exact": 0.0, "fast": 0.0, "work": 0.0}
    for name in [*LAYER, "head"]:
        seconds, work = found[f"{name} bf16", tokens]
        fast = found.get((f"{name} bf16 fast", tokens), (float("nan"),))[0]
        of_own = work / own[name] if own.get(name) else float("nan")
        print_product(name, work, of_own, seconds, fast)
        for key, value in {"cuBLASLt": of_own, "exact": seconds, "fast": fast, "work": work}.items():
            sums[key] += value if name in LAYER else 0
    print_product("a layer's four", sums["work"], sums["cuBLASLt"], sums["exact"], sums["fast"])
    if session.probe["problem"]:
        print(f"\ncuBLASLt: {session.probe['problem']}")
    print(f"\nAll operations:\n\n{output}")
    rates = re.findall(r"^\| attention, 1 x 1 tokens after \d+ \|[^|]*\| (\d+) GB/s", output, re.M)
    session.attention = float(rates[-1]) * GB  # the longest context is the last


def print_product(name, work, own, exact, fast):
    print(f"| {name} | {work / own * 1e-12:.4g} | {work / exact * 1e-12:.4g} | {own / exact:.0%} | {work / fast * 1e-12:.4g} | "
          f"{own / fast:.0%} |", flush=True)


# ---- the order, most wanted first, and each row's share in seconds of 350 ----

def look(session):
    """What is measured beside all figures, and the head of the tables."""
    device = session.arguments.device.partition(":")[2] or "0"
    session.probe = probe = json.loads(session.run([session.arguments.probe, device])[0])
    session.copy = probe["copy_gb_s"] * GB
    driver = "of the emulator" if session.arguments.tiny else "?"
    if shutil.which("nvidia-smi") and not session.arguments.tiny:
        driver = session.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", device])[0].strip()
    print(f"### {probe['gpu']}, {datetime.date.today()}, driver {driver} (CUDA {probe['driver'] // 1000})\n\n"
          f"    {'tests/gpu/run.sh --emulate speed' if session.arguments.tiny else 'tests/gpu/run.sh speed'}\n\n"
          f"{probe['sms']} multiprocessors. Beside the figures: copy {probe['copy_gb_s']:.4g} GB/s, read {probe['read_gb_s']:.4g} "
          f"GB/s, from pinned host memory {probe['to_gpu_gb_s']:.4g} GB/s, to it {probe['from_gpu_gb_s']:.4g} GB/s; "
          f"{probe['cublaslt'] or 'no cuBLASLt'}. Medians.\n", flush=True)


def make_models(session):
    begin = time.monotonic()
    for shape in {session.sizes.big, session.sizes.small}:
        session.model(shape)
    print(f"random models made in {time.monotonic() - begin:.1f} s", flush=True)


def head(_session):
    print("\n| work | aim | predicted | measured |\n|---|---|---|---|", flush=True)


PLAN = [(20, look), (40, products), (35, make_models), (0, head), (15, decode_8b), (10, decode_1b), (15, decode_8b_q8), (15, decode_8b_q4),
        (25, decode_many), (15, prefill_exact), (20, prefill_fast), (35, decode_very_many), (0, load), (0, attention), (25, decode_8b_fp8),
        (80, torch_rows)]
WHEN_TIME_IS_LEFT = [(10, decode_1b_eager), (15, prefill_q8), (45, far_context)]


def measure_all(session, budget):
    clock = Clock(budget, [share for share, _ in PLAN])
    for share, measure in PLAN:
        session.deadline = time.monotonic() + (clock.left() if measure is torch_rows else clock.of(share))
        try:
            measure(session)
        except Exception as error:
            session.has_failed = True
            print(f"FAILED: {measure.__name__}: {reason_of(error)}", flush=True)
    for share, measure in WHEN_TIME_IS_LEFT:
        if clock.left() > share:
            session.deadline = time.monotonic() + share
            measure(session)
    sys.exit(1 if session.has_failed else 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bin", type=pathlib.Path)
    parser.add_argument("models", type=pathlib.Path)
    parser.add_argument("--probe", type=pathlib.Path, required=True)
    parser.add_argument("--module")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--budget", type=float, default=350)
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    measure_all(Session(arguments), arguments.budget)


if __name__ == "__main__":
    main()
