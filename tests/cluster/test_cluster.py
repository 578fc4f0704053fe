"""Runs every scenario of scenarios.py in network, mount and process namespaces of its own: the node of a cluster."""
import os
import pathlib
import re
import shutil
import subprocess
import sys

import dockerfile
import pytest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = (ROOT / os.environ.get("WEFT_BUILD", "build")).resolve()
SCENARIOS = re.findall(r"^def (test_\w+)", (HERE / "scenarios.py").read_text(), re.M)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", autouse=True)
def image():
    if not (BUILD / "weft").exists():
        pytest.skip(f"no {BUILD}/weft: build it first")
    try:
        dockerfile.needs()
        done = subprocess.run(["unshare", "--net", "--mount", "sh", "-c", "ip link add name b type bridge && mount -t tmpfs t /run && "
                               "mkdir /run/u /run/w /run/m && "
                               "mount -t overlay -o lowerdir=/bin,upperdir=/run/u,workdir=/run/w o /run/m"], capture_output=True)
        if done.returncode != 0 or shutil.which("ssh-keygen") is None:
            raise dockerfile.Absent("no bridges, no overlay file systems or no ssh-keygen")
        return dockerfile.build_with(BUILD, BUILD / "image")
    except dockerfile.Absent as reason:
        pytest.skip(f"no pods: {reason}")


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name):
    done = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable,
                           "-m", "pytest", f"{HERE}/scenarios.py::{name}", "-q", "--color=no", "--timeout=280",
                           "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0", "GRPC_VERBOSITY": "NONE"})
    assert done.returncode == 0, done.stdout + done.stderr
