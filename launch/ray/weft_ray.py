#!/usr/bin/env python3
"""Weft on a Ray cluster: one agent per node starts and watches the ranks there. See README.md in this folder.

    launch/ray/weft_ray.py --nodes 4 --gpus 8 serve --model /models/x --grpc 0.0.0.0:9000 --drain 60s

Ray reserves the nodes and finds them; it starts no ranks itself and none of Weft's bytes go through it. Python's standard
library and Ray, nothing else.
"""
import argparse
import collections
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

PASSED_ON = ("WEFT_", "UCX_", "NCCL_", "OMP_")
PR_SET_PDEATHSIG = 1
POLL_S = 0.25
# A group that lived this long starts the back-off anew.
STEADY_S = 60
PAUSE_MAX_S = 30
# What the group takes to end once its leader has.
END_S = 10
# Exit codes of weft that a restart may not cure (launch/exit_code.c), and how often in a row it is tried all the same.
USAGE, BUSY, CONFIG = 2, 75, 78
REFUSED_MAX = 3


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@ray.remote(max_restarts=0)
class Agent:
    """On one node: one weft process, which forks the other ranks of the node itself."""

    def __init__(self):
        self.process = None
        self.lines = collections.deque(maxlen=1000)
        self.readers = []

    def where(self):
        """(address, host name, a port that is free now)"""
        address = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind(("", 0))
            return address, socket.gethostname(), probe.getsockname()[1]

    def start(self, command, environment):
        # Called in the actor's main thread: the kernel ties the child's life to it, so that ray.kill() leaves nothing.
        self.process = subprocess.Popen(command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                                        start_new_session=True, preexec_fn=die_with_parent)
        self.readers = [threading.Thread(target=self._read, args=pair, daemon=True)
                        for pair in ((self.process.stdout, "out"), (self.process.stderr, "err"))]
        for reader in self.readers:
            reader.start()

    def _read(self, stream, name):
        for line in stream:
            self.lines.append((name, line))

    def poll(self):
        """(exit code or None, new lines)"""
        code = self.process.poll()
        if code is not None:
            for reader in self.readers:
                reader.join(1)
        lines = []
        while self.lines:
            lines.append(self.lines.popleft())
        return code, lines

    def signal(self, number):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


def say(text):
    print(f"weft_ray: {text}", file=sys.stderr, flush=True)


class Lost(Exception):
    """A node, or its agent, is gone."""


def ask(call, what, timeout=30):
    try:
        return ray.get(call, timeout=timeout)
    except ray.exceptions.RayError as error:
        raise Lost(f"{what} was lost: {type(error).__name__}") from None


class Group:
    """One life of the group, from its agents to its end."""

    def __init__(self, options, pg):
        self.options = options
        self.agents = []
        resources = {"num_cpus": options.cpus, "num_gpus": options.gpus}
        for i in range(options.nodes):
            strategy = PlacementGroupSchedulingStrategy(pg, placement_group_bundle_index=i)
            self.agents.append(Agent.options(scheduling_strategy=strategy, **resources).remote())
        self.names = [f"node {i}" for i in range(options.nodes)]

    def start(self):
        # A node that Ray has lost is replaced when another one is free: that may take as long as it takes.
        places = [ask(agent.where.remote(), name, self.options.wait) for agent, name in zip(self.agents, self.names)]
        self.names = [f"{host} ({address})" for address, host, _ in places]
        each = self.options.ranks
        leader = f"{places[0][0]}:{self.options.port or places[0][2]}"
        environment = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
        for name in ("WEFT_RANKS", "WEFT_RANK", "WEFT_RANK_COUNT", "WEFT_LEADER", "WEFT_LOCAL_RANKS", "WEFT_SECRET_FILE"):
            environment.pop(name, None)
        environment["WEFT_SECRET"] = secrets.token_hex(32)
        say(f"{self.options.nodes * each} ranks, leader {leader} on {places[0][1]}")
        for i, agent in enumerate(self.agents):
            command = [self.options.weft, *self.options.command, "--leader", leader, "--rank", str(i * each), "--ranks",
                       str(self.options.nodes * each)]
            if each > 1:
                command += ["--local-ranks", str(each)]
            ask(agent.start.remote(command, environment), self.names[i])

    def show(self, i, lines):
        for stream, line in lines:
            if stream == "out" and i == 0:
                sys.stdout.write(line)
                sys.stdout.flush()
            else:
                sys.stderr.write(f"{self.names[i]}: {line}")

    def poll(self):
        """{node: exit code} of those that have ended; Lost when one cannot be asked."""
        ended = {}
        calls = [agent.poll.remote() for agent in self.agents]
        for i, call in enumerate(calls):
            code, lines = ask(call, self.names[i])
            self.show(i, lines)
            if code is not None:
                ended[i] = code
        return ended

    def drain(self):
        ask(self.agents[0].signal.remote(signal.SIGTERM), self.names[0])

    def end(self):
        """Lets those that still run go, and say why; then ends them with their agents."""
        deadline = time.monotonic() + END_S
        try:
            while len(self.poll()) < len(self.agents) and time.monotonic() < deadline:
                time.sleep(POLL_S)
        except Lost:
            pass
        for agent in self.agents:
            ray.kill(agent)


class Stop:
    """SIGTERM and SIGINT: the first drains, the second ends at once."""

    def __init__(self):
        self.count = 0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self.take)

    def take(self, _number, _frame):
        self.count += 1
        if self.count > 1:
            os._exit(1)  # the agents, and with them the ranks, end with this process


def live(group, stop):
    """Runs the group to its end: (exit code, why)."""
    is_draining = False
    while True:
        ended = group.poll()
        if 0 in ended and ended[0] == 0:
            return 0, "ended"
        if ended:
            # Who was refused or killed, before those who noticed.
            node, code = min(ended.items(), key=lambda pair: (pair[1] not in (USAGE, BUSY, CONFIG), pair[1]))
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
            return (code if code > 0 else 128 - code), f"weft on {group.names[node]} {how}"
        if stop.count and not is_draining:
            say("stopping: the leader drains")
            group.drain()
            is_draining = True
        time.sleep(POLL_S)


def run_once(options, pg, stop):
    group = Group(options, pg)
    try:
        group.start()
        return live(group, stop)
    except Lost as lost:
        return 1, str(lost)
    finally:
        group.end()


def serve(options, pg):
    stop = Stop()
    pause_s = 1
    restarts = 0
    refused, was_possible = 0, False
    while True:
        begin = time.monotonic()
        code, why = run_once(options, pg, stop)
        lived_s = time.monotonic() - begin
        if code == 0 or stop.count:
            say(f"stopped after {lived_s:.0f} s: {why}")
            return code
        if code not in (USAGE, BUSY, CONFIG):
            refused, was_possible = 0, True
        else:
            refused += 1
            if code == USAGE or refused > REFUSED_MAX or (code == CONFIG and not was_possible):
                say(f"failed after {lived_s:.0f} s: {why}: not started again")
                return code
        if lived_s >= STEADY_S:
            pause_s, restarts = 1, 0
        restarts += 1
        if options.command[0] != "serve" or (options.restarts is not None and restarts > options.restarts):
            say(f"failed after {lived_s:.0f} s: {why}")
            return code
        say(f"failed after {lived_s:.0f} s: {why}; starting again in {pause_s} s (restart {restarts})")
        deadline = time.monotonic() + pause_s
        while time.monotonic() < deadline and not stop.count:
            time.sleep(0.1)
        pause_s = min(pause_s * 2, PAUSE_MAX_S)


def reserve(options):
    """The placement group: a bundle on each of so many different nodes."""
    bundle = {"CPU": options.cpus, **({"GPU": options.gpus} if options.gpus else {})}
    pg = placement_group([bundle] * options.nodes, strategy="STRICT_SPREAD", name=options.name)
    if not pg.wait(options.wait):
        remove_placement_group(pg)
        alive = [node for node in ray.nodes() if node["Alive"]]
        fit = sum(all(node["Resources"].get(k, 0) >= v for k, v in bundle.items()) for node in alive)
        say(f"no room after {options.wait} s: expected {options.nodes} nodes with {bundle} free, found {len(alive)} "
            f"nodes, of which {fit} are large enough")
        return None
    return pg


def parse():
    parser = argparse.ArgumentParser(description="Runs weft over the nodes of a Ray cluster, and keeps it running.",
                                     usage="%(prog)s [OPTION...] serve|run|doctor [WEFT OPTION...]")
    parser.add_argument("--nodes", type=int, required=True, help="nodes of Ray to use")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs per node, and so ranks per node (default: none, CPUs)")
    parser.add_argument("--ranks", type=int, help="ranks per node (default: one per GPU, else 1)")
    parser.add_argument("--cpus", type=int, default=1, help="cores per node to reserve (default: 1)")
    parser.add_argument("--address", default="auto", help="of the Ray cluster (default: the one of this node)")
    parser.add_argument("--port", type=int, help="where the leader waits for the ranks (default: a free one)")
    parser.add_argument("--weft", default=shutil.which("weft") or "weft", help="the binary, the same path on every node")
    parser.add_argument("--restarts", type=int, help="restarts in a row after failures of serve (default: no limit)")
    parser.add_argument("--wait", type=int, default=300, help="seconds to wait for nodes (default: 300)")
    parser.add_argument("--name", default="weft", help="of the placement group (default: weft)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.command or options.command[0] not in ("serve", "run", "doctor"):
        parser.error("expected serve, run or doctor and its options after those of this script")
    if options.nodes < 1 or options.gpus < 0 or (options.ranks is not None and options.ranks < 1):
        parser.error("--nodes and --ranks: expected at least 1; --gpus: at least 0")
    options.ranks = options.ranks or max(options.gpus, 1)
    return options


def main():
    options = parse()
    ray.init(address=options.address, log_to_driver=False, logging_level="ERROR")
    pg = reserve(options)
    if pg is None:
        return 3
    try:
        return serve(options, pg)
    finally:
        remove_placement_group(pg)


if __name__ == "__main__":
    sys.exit(main())
