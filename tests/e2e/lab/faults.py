#!/usr/bin/env python3
"""The table of faults x launchers: who notices, how soon, is it named, does everything end, when is it served again.

    .venv/bin/python tests/e2e/lab/faults.py [--times N] [--launcher NAME]... [--fault NAME]... [--json FILE]

Four hosts (lab.sh), one rank each; `local` has four ranks on one host. Each cell runs N times, while loading, idle, in
prefill and in decode by turns. Exit status 1 when a run was not as promised; 77 where the lab cannot be made.
"""
import argparse
import json
import os
import pathlib
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from hosts import HERE, MODEL, ROOT, WEFT, Lab, is_alive, slurm_job, until  # noqa: E402

PHASES = ["idle", "decode", "prefill", "load"]
LAUNCHERS = ["local", "hand", "hosts", "slurm", "mpirun", "mpirun.sh"]
# victim, what the leader must say of it
FAULTS = {
    "SIGKILL": (2, r"connection closed|reset|killed by signal 9"),
    "SIGSTOP": (2, r"is stopped"),
    "SIGSTOP leader": (0, r"is stopped"),
    "link down": (3, r"is down, or the network between"),
    "packets dropped": (3, r"is down, or the network between"),
    "host vanishes": (3, r"is down, or the network between"),
    "workers cut": (2, r"no answer between it and rank 1 on node1 .* network between node2 and node1 is cut"),
    "read error": (2, r"Input/output error"),
}
NETWORK = ("link down", "packets dropped", "host vanishes", "workers cut")
CUT = (1, 2)  # these do not reach each other; both reach the leader
# Nothing of these may be noticed.
HARMLESS = ("slow disk", "full log disk")
LIMIT = 60
FAILED = re.compile(r"rank (\d+)(?: on (\S+))? failed: (.*)")


class Run:
    """One group under one launcher, until close()."""

    def __init__(self, lab, launcher, phase, disk, folder, log_file=None):
        self.lab, self.launcher = lab, launcher
        self.lines = []
        self.events = []
        weft = [str(WEFT)]
        environment = [*disk, *(["LAB_READ_MS=300"] if phase == "load" else [])]
        if environment:
            weft = ["env", f"LD_PRELOAD={folder / 'disk.so'}", *environment, *weft]
        serve = ["serve", "--model", MODEL, "--threads", "1"]
        if launcher == "local":
            commands = [(0, [*weft, *serve, "--ranks", 4])]
        elif launcher == "hand":
            port = random.randint(20000, 30000)
            commands = [(r, [*weft, *serve, "--leader", f"node0:{port}", "--rank", r, "--ranks", 4]) for r in range(4)]
        elif launcher == "mpirun":
            commands = [(0, ["mpirun", "-n", 4, *weft, *serve])]
        elif launcher == "hosts":
            commands = [(0, [*weft, *serve, "--ssh", "/run/lab/rsh", "--hosts", "node0,node1,node2,node3",
                             "--remote-path", self.wrapper(folder, weft)])]
        elif launcher == "slurm":
            commands = [(0, [*slurm_job(4, 4, self.wrapper(folder, weft)), *serve])]
        else:
            wrapper = self.wrapper(folder, weft)
            commands = [(0, [ROOT / "launch" / "mpirun.sh", "--hostfile", "/run/lab/hostfile", "--weft", wrapper, *serve])]
        if log_file is not None:
            commands = [(host, ["sh", "-c", f"exec \"$@\" 2>>{log_file}", "sh", *command]) for host, command in commands]
        self.processes = [lab.start(host, *command) for host, command in commands]
        for process in self.processes:
            threading.Thread(target=self.read, args=(process,), daemon=True).start()
        self.traffic = None

    def wrapper(self, folder, weft):
        """A program in the place of weft, for launchers that take just a path."""
        path = folder / "weft.sh"
        path.write_text("#!/bin/sh\nexec " + " ".join(map(str, weft)) + ' "$@"\n')
        path.chmod(0o755)
        return path

    def read(self, process):
        for line in process.stderr:
            self.lines.append((time.monotonic(), line.rstrip()))

    def ranks(self):
        if self.launcher != "local":
            return self.lab.ranks()
        found = self.lab.programs("weft")
        return dict(enumerate(found)) if len(found) == 4 else {}

    def line(self, pattern, since=0.0):
        return next(((t, m) for t, text in list(self.lines) if t >= since and (m := re.search(pattern, text))), None)

    def wait(self, what, condition, timeout=LIMIT):
        found = until(condition, timeout)
        if not found:
            raise RuntimeError(f"{what}: not within {timeout} s:\n" + "\n".join(text for _, text in self.lines[-12:]))
        return found

    def start_traffic(self, kind):
        self.traffic = self.lab.start(0, sys.executable, HERE / "traffic.py", "127.0.0.1:50051", kind)

        def follow():
            for line in self.traffic.stdout:
                self.events.append(json.loads(line))
        threading.Thread(target=follow, daemon=True).start()
        self.wait("an answer", lambda: self.seen("served"))

    def seen(self, what, since=0.0):
        return [e for e in list(self.events) if e["what"] == what and e["time"] >= since]

    def close(self):
        if self.traffic is not None:
            self.traffic.kill()
            self.traffic.wait()
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
        # What was just being started may start something more.
        for _ in range(100):
            left = self.lab.programs("launch/mpirun.sh", "slurm.sbatch", "lab/srun", "mpirun", "orted", "weft", "ssh")
            for pid in left:
                kill(pid)
            if not left:
                break
            time.sleep(0.1)
        for process in self.processes:
            process.kill()
            process.wait()


def kill(pid, number=signal.SIGKILL):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it went by itself


class FaultLab(Lab):
    def inside(self, command):
        subprocess.run(["nsenter", "--target", str(self.init), "--mount", "--net", "--pid", "sh", "-c",
                        f". /run/lab/environment; {command}"], check=True, stdin=subprocess.DEVNULL)

    def strike(self, fault, pids, victim):
        if fault == "SIGKILL":
            os.kill(pids[victim], signal.SIGKILL)
        elif fault.startswith("SIGSTOP"):
            os.kill(pids[victim], signal.SIGSTOP)
        elif fault == "packets dropped":
            self.inside(f"ip link set port{victim} nomaster")  # out of the switch, with carrier
        elif fault == "workers cut":
            self.isolate("on")
        elif fault in NETWORK:
            self.link(victim, "down")
            if fault == "host vanishes":
                network = os.readlink(f"/proc/{pids[victim]}/ns/net")
                for pid in self.programs("weft", "orted", "sshd"):
                    if os.readlink(f"/proc/{pid}/ns/net") == network:
                        os.kill(pid, signal.SIGKILL)

    def isolate(self, state):
        """Isolated ports of a switch reach all others, but not each other."""
        for host in CUT:
            self.inside(f"ip link set port{host} type bridge_slave isolated {state}")

    def heal(self, fault, victim):
        if fault == "packets dropped":
            self.inside(f"ip link set port{victim} master bridge")
        elif fault == "workers cut":
            self.isolate("off")
        elif fault in NETWORK:
            self.link(victim, "up")
            if fault == "host vanishes":
                self.inside(f"$LAB/on {victim} /usr/sbin/sshd -f $LAB/sshd_config{victim} -E $LAB/sshd_log{victim}")


def is_too_late(event, struck):
    """A request that found no server any more: nobody was there to give a hint."""
    return event["began"] > struck and re.search("[Cc]onnect", event["details"])


def strike_and_watch(lab, launcher, fault, phase, folder, is_verbose):
    """One run: a dictionary of what was seen."""
    victim, cause = FAULTS[fault]
    phase = "load" if fault == "read error" else phase
    run = Run(lab, launcher, phase, [f"LAB_READ_ERROR={victim}"] if fault == "read error" else [], folder)
    healed = False
    said_by = r"weft\[0\].*?" if victim != 0 else ""  # the leader's log counts; the side that is cut off accuses it
    try:
        struck = time.monotonic()  # when the read fails nobody can know
        if fault != "read error":
            pids = run.wait("ranks", lambda: (found := run.ranks()) and len(found) == 4 and found)
            if phase == "load":
                time.sleep(1.5)
            else:
                run.wait("serving", lambda: run.line("gRPC on"))
                run.start_traffic(phase)
                time.sleep(random.uniform(0.3, 0.6))
            lab.strike(fault, pids, victim)
            struck = time.monotonic()
        time_of, match = run.wait("a verdict", lambda: run.line(said_by + FAILED.pattern, struck))
        rank, host, reason = match.group(1), match.group(2), match.group(3)
        result = {"launcher": launcher, "fault": fault, "phase": phase, "detected": time_of - struck,
                  "named": int(rank) == victim and (launcher == "local" or host == f"node{victim}") and
                  bool(re.search(cause, reason)), "text": match.group(0)}
        if fault == "read error":
            result["detected"] = 0.0  # nobody can know when the read happened
            pids = {}
        # A stopped process is its starter's to kill: mpirun, Slurm and a leader do; by hand and over ssh nobody does until it
        # goes on.
        is_left = fault.startswith("SIGSTOP") and (launcher in ("hand", "hosts") or (launcher == "local" and victim == 0))
        must_end = [p for r, p in pids.items() if not (is_left and r == victim)]
        run.wait("the end of all ranks", lambda: not any(map(is_alive, must_end)))
        result["ended"] = time.monotonic() - struck
        if is_left:
            os.kill(pids[victim], signal.SIGCONT)
            run.wait("the end of the stopped rank", lambda: not is_alive(pids[victim]))
        lab.heal(fault, victim)
        healed = True
        if launcher == "mpirun.sh" and fault != "read error":
            if run.traffic is None:
                run.start_traffic("idle")
            result["served"] = run.wait("service again", lambda: run.seen("served", struck))[0]["time"] - struck
        if run.traffic is not None and phase != "load" and victim != 0:
            if phase != "idle":
                run.wait("the clients' errors", lambda: run.seen("error"))
            result["codes"] = sorted({e["code"] for e in run.seen("error")})
            unhinted = [e for e in run.seen("error") if e["retry"] is None and not is_too_late(e, struck)]
            result["hinted"] = not unhinted
            if unhinted:
                result["unhinted"] = unhinted
            told = [e["time"] for e in run.seen("error", struck) + run.seen("health", struck) if e.get("status") != "SERVING"]
            result["told"] = min(told) - struck if told else None
        return result
    finally:
        if is_verbose:
            for when, text in run.lines:
                print(f"    {when - struck:7.3f} {text}", file=sys.stderr)
        run.close()
        if not healed:
            lab.heal(fault, victim)


def endure(lab, launcher, trouble, folder):
    """A run of something harmless: served, and nobody accused."""
    log = None
    if trouble == "full log disk":
        log = "/dev/shm/full/log"
        lab.inside("for i in 0 1 2 3; do $LAB/on $i sh -c 'mkdir -p /dev/shm/full; mountpoint -q /dev/shm/full || "
                   "mount -t tmpfs -o size=64k none /dev/shm/full; head -c 100000 /dev/zero > /dev/shm/full/fill 2>/dev/null "
                   "|| true'; done")
    run = Run(lab, launcher, "load" if trouble == "slow disk" else "idle",
              ["LAB_READ_MS=1500"] if trouble == "slow disk" else [], folder, log)
    try:
        run.start_traffic("decode")
        time.sleep(3)
        # Errors of the client's own library (no connection yet, on a busy machine) accuse nobody.
        accused = run.line(FAILED) or [e for e in run.seen("error") if e["retry"] is not None]
        return {"launcher": launcher, "fault": trouble, "phase": "", "named": not accused, "text": str(accused)}
    finally:
        run.close()


def seconds(values):
    return f"{statistics.median(values):.2f} / {max(values):.2f}" if values else "-"


def table(results):
    lines = ["| launcher | fault | runs | noticed: median / max s | rank, host and cause named | all ended: median / max s | "
             "clients told: code, hint, median / max s | served again: median / max s |", "|---|---|---|---|---|---|---|---|"]
    cells = {}
    for result in results:
        cells.setdefault((result["launcher"], result["fault"]), []).append(result)
    for (launcher, fault), runs in cells.items():
        errors = [r for r in runs if "error" in r]
        good = [r for r in runs if "error" not in r]
        named = sum(r["named"] for r in good)
        if fault in HARMLESS:
            lines.append(f"| {launcher} | {fault} | {len(runs)} | nothing to notice | {named} of {len(runs)} served, nobody "
                         "accused | | | |")
            continue
        codes = sorted({c for r in good for c in r.get("codes", [])})
        hinted = all(r.get("hinted", True) for r in good)
        told = [r["told"] for r in good if r.get("told") is not None]
        client = ", ".join(codes) + (", hint" if codes and hinted else "") + (f", {seconds(told)}" if told else "")
        detected = [r["detected"] for r in good] if fault != "read error" else []
        ended = [r["ended"] for r in good] if fault != "read error" else []
        lines.append(f"| {launcher} | {fault} | {len(runs)} | {seconds(detected)} | {named} of {len(runs)} | "
                     f"{seconds(ended)} | {client} | {seconds([r['served'] for r in good if 'served' in r])} |"
                     + (f" {len(errors)} WRONG" if errors else ""))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--launcher", action="append", choices=LAUNCHERS)
    parser.add_argument("--fault", action="append", choices=[*FAULTS, *HARMLESS])
    parser.add_argument("--phase", action="append", choices=PHASES)
    parser.add_argument("--verbose", action="store_true", help="the log of every run, with seconds from the fault")
    parser.add_argument("--json", help="appends one object per run")
    parser.add_argument("--table", nargs="+", metavar="FILE", help="runs nothing: the table of such files")
    arguments = parser.parse_args()
    if arguments.table:
        print(table([json.loads(line) for name in arguments.table for line in open(name)]))
        return 0
    lab = FaultLab(4)
    results = []
    with tempfile.TemporaryDirectory(prefix="weft-faults-") as name:
        folder = pathlib.Path(name)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", folder / "disk.so", HERE / "disk.c", "-ldl"], check=True)
        cells = [(launcher, fault) for launcher in arguments.launcher or LAUNCHERS
                 for fault in arguments.fault or [*FAULTS, *HARMLESS]
                 if launcher != "local" or (fault not in NETWORK and fault != "read error")]
        for i in range(arguments.times):
            phases = arguments.phase or PHASES
            phase = phases[i % len(phases)]
            for launcher, fault in cells:
                try:
                    result = endure(lab, launcher, fault, folder) if fault in HARMLESS else \
                        strike_and_watch(lab, launcher, fault, phase, folder, arguments.verbose)
                except Exception as error:  # a run that went wrong is a row of the table, not its end
                    result = {"launcher": launcher, "fault": fault, "phase": phase, "error": str(error)}
                results.append(result)
                print(json.dumps(result), file=sys.stderr, flush=True)
                if arguments.json:
                    with open(arguments.json, "a") as file:
                        file.write(json.dumps(result) + "\n")
    lab.close()
    print(table(results))
    return 1 if any("error" in r or not r["named"] for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
