"""tests/gpu/run.sh on the emulated GPU: every command of every stage, and every figure that is asked of a real one."""
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("WEFT_BUILD", ROOT / "build")).resolve()
STAGES = ["machine", "kernels", "models", "ranks", "peer", "nccl", "sanitizer", "speed"]
WORKS = ["decode, tiny bf16, batch 1, context 16", "decode, tiny q8_0, batch 1", "decode, tiny q4_0, batch 1",
         "decode, tiny f8_e4m3, batch 1", "decode, tiny bf16, batch 2, context 24", "decode, tiny bf16, batch 4, context 24",
         "prefill of 32 tokens, tiny bf16", "prefill of 32 tokens, tiny bf16, fast", "load 16 GB from the page cache",
         "attention, decode at 32k context", "decode at context 64"]
MATRICES = ["QKV", "attention output", "gate and up", "down", "head", "a layer's four"]

pytestmark = [pytest.mark.timeout(900),
              pytest.mark.skipif(not (BUILD / "weft_cuda_emulated.so").exists(),
                                 reason="this build has no emulated CUDA module (no C++ compiler)")]


def rows(text):
    """The tables' rows as lists of cells."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_every_stage_and_every_figure(tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WEFT_")}
    done = subprocess.run([ROOT / "tests/gpu/run.sh", "--emulate"], capture_output=True, text=True, timeout=850, check=False,
                          env={**clean, "WEFT_GPU_BIN": str(BUILD), "WEFT_GPU_PYTHON": sys.executable, "OUT": str(tmp_path)})
    table = done.stdout[done.stdout.rindex("stage "):]
    for stage in STAGES:
        result = re.search(rf"^{stage} +\d+ s  (.*)$", table, re.M)[1]
        assert result.startswith("passed") or result.startswith("skipped: no libnccl.so.2"), done.stdout + done.stderr
    assert "not here: nvidia-smi" in table and "not here: compute-sanitizer" in table
    assert done.returncode == 0, done.stdout + done.stderr

    speed = (tmp_path / "speed.log").read_text()
    assert "FAILED" not in speed, speed
    found = rows(speed)
    for work in WORKS:
        row = next((row for row in found if row[0].startswith(work)), None)
        assert row and len(row) == 4 and re.search(r"\d", row[2]) and re.search(r"\d", row[3]), f"{work}: {row}\n{speed}"
    if "no cuBLASLt" not in speed:  # else this build has no header of the library, and so no stub of it
        for name in MATRICES:
            row = next((row for row in found if row[0] == name and len(row) == 6), None)
            assert row and all(re.fullmatch(r"[\d.e-]+%?", cell) for cell in row[1:]), f"{name}: {row}\n{speed}"
