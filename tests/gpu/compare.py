#!/usr/bin/env python3
"""Whole models on a GPU, through `weft run`: against the CPU, between rank counts, between chunk sizes.

usage: compare.py [--device cuda:0] [--cuda-module FILE] [--ranks 1,2,4] [--families NAME,...] [--quantised NAME,...]
                  [--fp8 NAME,...] [--tokens 24] [--jobs 1]

--numerics reference must give the CPU's logits bit by bit. --numerics exact must give the same bits at every rank count
and chunk size, with steps issued instead of replayed as graphs, and those of the CPU for weights in f32. Ranks beyond
the first share the GPU. --quantize must give the CPU's bits in numerics exact too, for the families of --quantised and
the demo model. The families of --fp8 are made FP8, with a scale per row and for blocks: exact must give the bits of the
same weights as bf16 at every rank count, reference those of the CPU. --jobs: how many run at a time; most of a run is starting CUDA. One line per family; the exit code is 1 when
one of them differs. Needs the standard library only.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
import fp8_model  # noqa: E402
from weft_cli import PROMPT, WEFT, families, model_folder, weft  # noqa: E402

DEMO = pathlib.Path(__file__).resolve().parents[2] / "launch" / "demo-model"


class Runner:
    def __init__(self, on_gpu, tokens, jobs):
        self.on_gpu = on_gpu
        self.tokens = tokens
        self.pool = concurrent.futures.ThreadPoolExecutor(jobs)

    def cpu(self, model, *options):
        return self.pool.submit(self.run, model, "--device", "cpu", *options)

    def gpu(self, model, *options):
        return self.pool.submit(self.run, model, *self.on_gpu, *options)

    def run(self, model, *options):
        """(token ids, digest of the logits), or the reason why there is none."""
        try:
            done = weft("run", "--output", "json", "--model", model, "--prompt", PROMPT, "--max-tokens", self.tokens,
                        "--ignore-eos", "--quiet", *options, timeout=90)
        except subprocess.TimeoutExpired:
            return "not done after 90 s"
        if done.returncode != 0:
            return (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        answer = json.loads(done.stdout)
        return answer["token_ids"], answer["logits_sha256"]


def begin_family(runner, model, rank_counts):
    """What check_family() judges, under way."""
    runs = {"cpu": runner.cpu(model), "reference": runner.gpu(model, "--numerics", "reference")}
    for ranks in rank_counts:
        runs[f"{ranks} ranks"] = runner.gpu(model, "--numerics", "exact", "--ranks", ranks)
    runs["steps issued"] = runner.gpu(model, "--numerics", "exact", "--eager")
    runs["chunks of 5"] = runner.gpu(model, "--numerics", "exact", "--prefill-chunk", 5)
    return runs


def check_family(name, runs):
    """Prints what was found; true when all is as it should be."""
    others = {what: under_way.result() for what, under_way in runs.items()}
    cpu, reference = others.pop("cpu"), others.pop("reference")
    first = next(iter(others.values()))
    problems = [f"{what}: {result}" for what, result in [("cpu", cpu), ("reference", reference), *others.items()]
                if isinstance(result, str)]
    if not problems:
        if reference != cpu:
            problems.append("reference has other bits than the CPU")
        problems += [f"exact with {what} has other bits" for what, result in others.items() if result != first]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        print(f"{name:14} FAILED  {problems[0]}{more}", flush=True)
        return False
    likeness = "the bits" if first == cpu else "the tokens" if first[0] == cpu[0] else "other tokens than those"
    print(f"{name:14} ok      exact: {likeness} of the CPU", flush=True)
    return True


def begin_quantised(runner, model, ranks):
    """The same for weights of 8 and 4 bits, whose products are the CPU's on tensor cores too."""
    return {(quantize, ranks): (runner.cpu(model, "--quantize", quantize),
                                runner.gpu(model, "--quantize", quantize, "--ranks", ranks))
            for quantize in ("q8_0", "q4_0")}


def check_quantised(name, runs):
    is_well = True
    for (quantize, ranks), under_way in runs.items():
        cpu, gpu = (one.result() for one in under_way)
        problem = next((f"{result}" for result in (cpu, gpu) if isinstance(result, str)),
                       None if gpu == cpu else "other bits than the CPU's")
        print(f"{name:14} {'ok     ' if problem is None else 'FAILED '} {quantize}, {ranks} ranks: "
              f"{problem or 'the bits of the CPU'}", flush=True)
        is_well = is_well and problem is None
    return is_well


def begin_fp8(runner, model, folder, rank_counts):
    """Kept as FP8 and as bf16, with a scale per row, and for blocks that the FFN's slices begin inside of."""
    runs = {}
    for what, block in ("rows", None), ("blocks of 64", 64):
        fp8, bf16 = (folder / f"{model.name}-{kind}-{block or 'rows'}" for kind in ("fp8", "bf16"))
        fp8.mkdir(), bf16.mkdir()
        fp8_model.make(model, fp8, bf16, block)
        pairs = [(runner.cpu(fp8), runner.gpu(fp8, "--numerics", "reference"))]
        expected = runner.gpu(bf16, "--numerics", "exact")
        pairs += [(expected, runner.gpu(fp8, "--numerics", "exact", "--ranks", ranks)) for ranks in rank_counts]
        runs[what] = pairs
    return runs


def check_fp8(name, runs):
    is_well = True
    for what, pairs in runs.items():
        results = [(expected.result(), found.result()) for expected, found in pairs]
        problem = next((one for pair in results for one in pair if isinstance(one, str)), None)
        if problem is None and any(expected != found for expected, found in results):
            problem = "other bits than the CPU's, or than bf16"
        print(f"{name:14} {'ok     ' if problem is None else 'FAILED '} FP8, {what}: {problem or 'the bits of bf16'}", flush=True)
        is_well = is_well and problem is None
    return is_well


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--cuda-module", default=os.environ.get("WEFT_CUDA_MODULE"))
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--families", default=",".join(families()))
    parser.add_argument("--quantised", default="qwen3")
    parser.add_argument("--fp8", default="qwen3")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    on_gpu = ["--device", arguments.device]
    if arguments.cuda_module:
        on_gpu += ["--cuda-module", arguments.cuda_module]
    rank_counts = [int(count) for count in arguments.ranks.split(",")]
    print(f"{WEFT}, {' '.join(on_gpu)}")
    runner = Runner(on_gpu, arguments.tokens, arguments.jobs)
    with tempfile.TemporaryDirectory() as folder:
        checks = []
        for family in filter(None, arguments.families.split(",")):
            path = pathlib.Path(folder) / family
            path.mkdir()
            checks.append((check_family, family, begin_family(runner, model_folder(family, path), rank_counts)))
            if family in arguments.quantised.split(","):
                checks.append((check_quantised, family, begin_quantised(runner, path, rank_counts[-1])))
            if family in arguments.fp8.split(","):
                checks.append((check_fp8, family, begin_fp8(runner, path, pathlib.Path(folder), rank_counts)))
        checks.append((check_family, "demo-model", begin_family(runner, DEMO, rank_counts)))
        checks.append((check_quantised, "demo-model", begin_quantised(runner, DEMO, rank_counts[-1])))
        results = [check(name, runs) for check, name, runs in checks]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
