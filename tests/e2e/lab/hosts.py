"""The lab's hosts for tests in Python: lab.sh, kept up until close()."""
import os
import pathlib
import subprocess
import sys
import time

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from weft_cli import BUILD, ROOT, WEFT, is_alive  # noqa: E402,F401

MODEL = ROOT / "launch" / "demo-model"
# Of everything that should end by itself; the machine may be busy.
HANG = 90


def children(pid):
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        found += [int(c) for c in open(f"/proc/{pid}/task/{task}/children").read().split()]
    return found


def is_starter(pid):
    """Whether this is the child of a weft that looks after its ssh."""
    parent = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[1]
    return open(f"/proc/{parent}/comm").read() == "weft\n"


def until(condition, timeout=HANG):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    return condition()


class Lab:
    """Hosts that stay until close(); everything in them ends with this process, whatever happens."""

    def __init__(self, host_count, **environment):
        """environment: LAB_WIRE, LAB_FAMILY ... of lab.sh."""
        self.process = subprocess.Popen([HERE / "lab.sh", str(host_count), "sleep", "infinity"],
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                        env={**os.environ, "WEFT_BUILD": str(BUILD), **environment})
        until(lambda: self.process.poll() is not None or self.is_ready())
        if self.process.poll() is not None:
            output = self.process.stdout.read()
            if self.process.returncode == 77:
                pytest.skip(output.strip())
            pytest.fail(f"the lab did not start: {output}")
        self.init = children(self.process.pid)[0]

    def is_ready(self):
        try:
            return any(os.path.exists(f"/proc/{c}/root/run/lab/ready") for c in children(self.process.pid))
        except OSError:
            return False

    def close(self):
        self.process.kill()
        self.process.wait()

    def start(self, host, *command):
        """Runs a command on a host."""
        inside = ". /run/lab/environment; exec $LAB/on \"$@\""
        return subprocess.Popen(["nsenter", "--target", str(self.init), "--mount", "--net", "--pid", f"--wdns={ROOT}",
                                 "sh", "-c", inside, "sh", str(host), *map(str, command)], stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def link(self, host, state):
        subprocess.run(["nsenter", "--target", str(self.init), "--mount", "--net", "sh", "-c",
                        f". /run/lab/environment; $LAB/link {host} {state}"], check=True)

    def processes(self):
        """The pids of all that runs in here, oldest first."""
        found = []
        for pid in sorted(map(int, filter(str.isdigit, os.listdir("/proc")))):
            try:
                if os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{self.init}/ns/pid") and is_alive(pid):
                    found.append(pid)
            except OSError:
                pass  # it has just ended
        return found

    def programs(self, *names):
        """The pids of what runs in here under these names, or of bash with these scripts; oldest first."""
        found = []
        for pid in self.processes():
            try:
                words = open(f"/proc/{pid}/cmdline").read().split("\0")
                if open(f"/proc/{pid}/comm").read().strip() in names or \
                        (words[0].endswith("bash") and any(words[1].endswith(name) for name in names)):
                    found.append(pid)
            except OSError:
                pass
        return found

    def host_of(self, pid):
        """The number of the host on which a process runs."""
        network = os.readlink(f"/proc/{pid}/ns/net")
        return next(i for i, host in enumerate(self.networks()) if host == network)

    def networks(self):
        """The network of each host, in their order."""
        pids = sorted(pathlib.Path(f"/proc/{self.init}/root/run/lab").glob("pid[0-9]*"), key=lambda p: int(p.name[3:]))
        return [os.readlink(f"/proc/{self.init}/root/proc/{p.read_text().strip()}/ns/net") for p in pids]

    def ranks(self):
        """{rank: pid} of the weft processes in here, by what their launcher or command line says; with --hosts by host."""
        found = {}
        for pid in self.programs("weft"):
            try:
                words = open(f"/proc/{pid}/cmdline").read().split("\0")
                environment = open(f"/proc/{pid}/environ").read().split("\0")
                if "--rank" in words:
                    found[int(words[words.index("--rank") + 1])] = pid
                elif ("join" in words or "--hosts" in words) and not is_starter(pid):
                    found[self.host_of(pid)] = pid
            except OSError:
                continue
            for variable in environment:
                if variable.startswith(("OMPI_COMM_WORLD_RANK=", "SLURM_PROCID=")):
                    found[int(variable.split("=")[1])] = pid
        return found


def slurm_job(host_count, task_count, weft):
    """The words before the arguments of weft: launch/slurm.sbatch as a batch script of Slurm on node0, over the srun in this folder."""
    return ["env", f"PATH={HERE}:{os.environ['PATH']}", f"WEFT_BINARY={weft}", "SLURM_JOB_ID=77", "SLURM_PROCID=0",
            f"SLURM_NTASKS={task_count}", f"SLURM_TASKS_PER_NODE={task_count // host_count}(x{host_count})",
            f"SLURM_JOB_NODELIST=node[0-{host_count - 1}]", "bash", ROOT / "launch" / "slurm.sbatch"]


def finish(process):
    stdout, stderr = process.communicate(timeout=HANG)
    return process.returncode, stdout, stderr
