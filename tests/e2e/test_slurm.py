"""launch/slurm.sbatch with a stand-in for srun that keeps its contract: tasks with the variables of a step."""
import json
import os
import subprocess

import pytest
from weft_cli import PROMPT, ROOT, WEFT, answer, model_folder, weft

pytestmark = pytest.mark.timeout(120)

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=$SLURM_NTASKS SLURM_STEP_NODELIST=$SLURM_JOB_NODELIST
export SLURM_STEP_TASKS_PER_NODE=$SLURM_NTASKS SLURM_NODEID=0
for ((i = SLURM_NTASKS - 1; i >= 0; i--)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids+=($!); done
trap 'kill -TERM "${pids[@]}"' TERM
code=0
for p in "${pids[@]}"; do wait "$p" || code=$?; done
exit $code
"""


def test_three_tasks_give_the_bits_of_one_rank(tmp_path):
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    folder = tmp_path / "model"
    folder.mkdir()
    model = model_folder("qwen2", folder)
    common = ["--model", str(model), "--prompt", PROMPT, "--max-tokens", "12", "--temperature", "0", "--threads", "1"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": str(os.getpid()),
                   "SLURM_JOB_NODELIST": "localhost", "SLURM_NTASKS": "3", "SLURM_PROCID": "0", "WEFT_BINARY": str(WEFT)}
    done = subprocess.run(["bash", str(ROOT / "launch" / "slurm.sbatch"), "run", "--output", "json", *common],
                          capture_output=True, text=True, timeout=90, env=environment, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["logits_sha256"] == answer(*common)["logits_sha256"]


def test_the_batch_script_itself_is_no_rank():
    """sbatch gives its shell a SLURM_PROCID too; a plain weft there runs alone and says so."""
    done = weft("info", environment={"SLURM_PROCID": "0", "SLURM_NTASKS": "4"})
    assert done.returncode == 0 and done.stderr == ""
    done = weft("doctor", environment={"SLURM_PROCID": "0", "SLURM_NTASKS": "4"})
    assert "not started by srun" in done.stderr and "launcher   none" in done.stdout
