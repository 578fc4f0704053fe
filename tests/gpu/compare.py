#!/usr/bin/env python3
"""Whole models on a GPU, through `weft run`: against the CPU, between rank counts, between chunk sizes.

usage: compare.py [--device cuda:0] [--cuda-module FILE] [--ranks 1,2,4] [--families NAME,...] [--quantised NAME,...]

--numerics reference must give the CPU's logits bit by bit. --numerics exact must give the same bits at every rank count
and chunk size, with steps issued instead of replayed as graphs, and those of the CPU for weights in f32. Ranks beyond
the first share the GPU. --quantize must give the CPU's bits in numerics exact too, for the families of --quantised and
the demo model. One line per family; the
exit code is 1 when one of them differs. Needs the standard library only.
"""
import argparse
import json
import os
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from weft_cli import PROMPT, WEFT, families, model_folder, weft  # noqa: E402

DEMO = pathlib.Path(__file__).resolve().parents[2] / "launch" / "demo-model"


def run(model, *options):
    """(token ids, digest of the logits), or the reason why there is none."""
    done = weft("run", "--output", "json", "--model", model, "--prompt", PROMPT, "--max-tokens", 24, "--ignore-eos",
                "--quiet", *options, timeout=90)
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    answer = json.loads(done.stdout)
    return answer["token_ids"], answer["logits_sha256"]


def check_family(name, model, on_gpu, rank_counts):
    """Prints what was found; true when all is as it should be."""
    cpu = run(model, "--device", "cpu")
    reference = run(model, *on_gpu, "--numerics", "reference")
    exact = {ranks: run(model, *on_gpu, "--numerics", "exact", "--ranks", ranks) for ranks in rank_counts}
    first = exact[rank_counts[0]]
    others = {f"{ranks} ranks": result for ranks, result in exact.items()}
    others["steps issued"] = run(model, *on_gpu, "--numerics", "exact", "--eager")
    others["chunks of 5"] = run(model, *on_gpu, "--numerics", "exact", "--prefill-chunk", 5)
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


def check_quantised(name, model, on_gpu, ranks):
    """The same for weights of 8 and 4 bits, whose products are the CPU's on tensor cores too."""
    is_well = True
    for quantize in ("q8_0", "q4_0"):
        cpu = run(model, "--device", "cpu", "--quantize", quantize)
        gpu = run(model, *on_gpu, "--quantize", quantize, "--ranks", ranks)
        problem = next((f"{result}" for result in (cpu, gpu) if isinstance(result, str)),
                       None if gpu == cpu else "other bits than the CPU's")
        print(f"{name:14} {'ok     ' if problem is None else 'FAILED '} {quantize}, {ranks} ranks: "
              f"{problem or 'the bits of the CPU'}", flush=True)
        is_well = is_well and problem is None
    return is_well


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--cuda-module", default=os.environ.get("WEFT_CUDA_MODULE"))
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--families", default=",".join(families()))
    parser.add_argument("--quantised", default="qwen3")
    arguments = parser.parse_args()
    on_gpu = ["--device", arguments.device]
    if arguments.cuda_module:
        on_gpu += ["--cuda-module", arguments.cuda_module]
    rank_counts = [int(count) for count in arguments.ranks.split(",")]
    print(f"{WEFT}, {' '.join(on_gpu)}")
    is_well = True
    with tempfile.TemporaryDirectory() as folder:
        for family in filter(None, arguments.families.split(",")):
            path = pathlib.Path(folder) / family
            path.mkdir()
            is_well = check_family(family, model_folder(family, path), on_gpu, rank_counts) and is_well
            if family in arguments.quantised.split(","):
                is_well = check_quantised(family, path, on_gpu, rank_counts[-1]) and is_well
        is_well = check_family("demo-model", DEMO, on_gpu, rank_counts) and is_well
        is_well = check_quantised("demo-model", DEMO, on_gpu, rank_counts[-1]) and is_well
    sys.exit(0 if is_well else 1)


if __name__ == "__main__":
    main()
