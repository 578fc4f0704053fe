"""launch/slurm.sbatch with stand-ins for srun and scontrol that keep their contract: tasks with SLURM_PROCID."""
import json
import os
import subprocess

import pytest
from weft_cli import PROMPT, ROOT, WEFT, answer, model_folder

pytestmark = pytest.mark.timeout(120)

SCONTROL = """#!/bin/sh
[ "$1 $2" = "show hostnames" ] || exit 1
printf 'localhost\\nother\\n'
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for ((i = SLURM_NTASKS - 1; i >= 0; i--)); do SLURM_PROCID=$i "$@" & pids+=($!); done
trap 'kill -TERM "${pids[@]}"' TERM
code=0
for p in "${pids[@]}"; do wait "$p" || code=$?; done
exit $code
"""


def test_three_tasks_give_the_bits_of_one_rank(tmp_path):
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    folder = tmp_path / "model"
    folder.mkdir()
    model = model_folder("qwen2", folder)
    common = ["--model", str(model), "--prompt", PROMPT, "--max-tokens", "12", "--temperature", "0", "--threads", "1"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": str(os.getpid()),
                   "SLURM_JOB_NODELIST": "localhost,other", "SLURM_NTASKS": "3", "SLURM_SUBMIT_DIR": str(tmp_path),
                   "WEFT_BINARY": str(WEFT)}
    done = subprocess.run(["bash", str(ROOT / "launch" / "slurm.sbatch"), "run", "--output", "json", *common],
                          capture_output=True, text=True, timeout=90, env=environment, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["logits_sha256"] == answer(*common)["logits_sha256"]
    assert not list(tmp_path.glob(".weft-secret-*"))
