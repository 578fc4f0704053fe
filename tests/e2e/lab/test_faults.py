"""Some cells of the table of faults (faults.py), once each; the record of all is in the README."""
import subprocess
import sys

import pytest

from hosts import HERE, MODEL, Lab

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", autouse=True)
def possible():
    if not (MODEL / "model.safetensors").is_file():
        pytest.skip("launch/demo-model is not there")
    Lab(1).close()  # skips, with the reason, where there can be no lab


@pytest.mark.parametrize("launcher, fault, phase", [
    ("hand", "SIGSTOP leader", "prefill"),
    ("hand", "packets dropped", "load"),
    ("hand", "workers cut", "decode"),
    ("hosts", "SIGSTOP", "load"),
    ("slurm", "SIGKILL", "prefill"),
    ("mpirun", "SIGSTOP leader", "load"),
    ("mpirun", "read error", "load"),
    ("mpirun.sh", "SIGSTOP", "decode"),
    ("local", "slow disk", "load"),
    ("hand", "full log disk", "idle"),
])
def test_cell(launcher, fault, phase):
    done = subprocess.run([sys.executable, HERE / "faults.py", "--launcher", launcher, "--fault", fault, "--phase", phase,
                           "--verbose"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
