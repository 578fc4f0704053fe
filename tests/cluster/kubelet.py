"""Pods as a kubelet runs them, as far as launch/k8s asks for it, in namespaces of this machine.

A pod is a network, host name and IPC namespace held by a sleeping process; each (re)start of its container gets a process
namespace and a root of its own (container.py). Times that only cost patience (periods, back-off) are divided by SPEED.
"""
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import grpc

HERE = pathlib.Path(__file__).resolve().parent
SPEED = 10
# Longest until a container's program has its signal handlers; some never have any.
START_S = 5
BACK_OFF_S = 10
PODS = pathlib.Path("/run/pods")
SIZES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def sh(*command, **more):
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True, **more).stdout


def size_of(text):
    return int(text[:-2]) * SIZES[text[-2:]] if text[-2:] in SIZES else int(text)


def expand(text, known):
    """$(NAME) of a known variable; anything else stays as it is."""
    return re.sub(r"\$\(([A-Za-z_]\w*)\)", lambda m: known.get(m[1], m[0]), text)


def health(address, service, timeout_s=10.0):
    """grpc.health.v1.Health/Check as the kubelet's probe does it: True only for SERVING. It has more patience: here one
    machine carries all nodes, and SPEED makes probes frequent."""
    name = service.encode()
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", request_serializer=None, response_deserializer=None)
        try:
            return check(b"\x0a" + bytes([len(name)]) + name if name else b"", timeout=timeout_s) == b"\x08\x01"
        except grpc.RpcError:
            return False


class Pod:
    """One pod with one container, from its object; it lives in a thread of its own until delete()."""

    def __init__(self, cluster, document, address):
        self.cluster, self.document, self.address = cluster, document, address
        self.name = document["metadata"]["name"]
        self.spec = document["spec"]
        self.container = self.spec["containers"][0]
        assert len(self.spec["containers"]) == 1 and "initContainers" not in self.spec
        self.place = PODS / f"{self.name}-{address}"
        self.place.mkdir(parents=True)
        self.restart_count = 0
        self.is_ready = self.is_started = self.is_deleting = False
        self.phase = "Pending"
        self.exits = []  # exit status of each container that ended
        self.main = None  # pid of the container's first process, as this namespace sees it
        self.sandbox = None
        self.volumes = {}
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.live, daemon=True)
        self.thread.start()

    # ---- what a container finds ----

    def open_sandbox(self):
        """Network, host name, IPC: they outlive the container."""
        self.sandbox = subprocess.Popen(
            ["unshare", "--net", "--uts", "--ipc", "sh", "-c",
             f"hostname {self.hostname}; ip link set lo up; echo up; exec sleep infinity"], stdout=subprocess.PIPE, text=True)
        assert self.sandbox.stdout.readline() == "up\n"
        port = f"pod{int(self.address.split('.')[2]) * 256 + int(self.address.split('.')[3])}"
        sh("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", self.sandbox.pid)
        sh("ip", "link", "set", port, "master", "bridge", "up")
        for words in (f"addr add {self.address}/16 dev eth0", "link set eth0 up"):
            sh("nsenter", "--target", self.sandbox.pid, "--net", "ip", *words.split())
        # The kernel takes its time to notice that both ends are up; a lost DNS question costs a pod 5 s.
        while '"state":"forwarding"' not in sh("ip", "-j", "-d", "link", "show", "dev", port).replace(" ", ""):
            time.sleep(0.01)

    @property
    def hostname(self):
        return self.spec.get("hostname", self.name)

    @property
    def domain(self):
        return f"{self.document['metadata']['namespace']}.svc.{self.cluster.domain}"

    def make_volume(self, volume):
        """The folder of a volume, with the modes and links that a pod sees."""
        group = self.spec.get("securityContext", {}).get("fsGroup")
        folder = self.place / "volumes" / volume["name"]
        folder.mkdir(parents=True)
        if "persistentVolumeClaim" in volume:
            return self.cluster.claims[volume["persistentVolumeClaim"]["claimName"]]
        if "emptyDir" in volume:
            settings = volume["emptyDir"]
            if settings.get("medium") == "Memory":
                sh("mount", "-t", "tmpfs", "-o", f"size={size_of(settings['sizeLimit'])}", "shm", folder)
            folder.chmod(0o777)
        else:
            kind = "secret" if "secret" in volume else "configMap"
            self.write_files(folder, kind, volume[kind])
        if group is not None:
            sh("chgrp", "-R", group, folder)
            folder.chmod(folder.stat().st_mode | 0o2070)
        return folder

    def write_files(self, folder, kind, settings):
        """As the atomic writer does it: a dated folder, a link ..data to it, and links to the files in that."""
        name = settings["secretName" if kind == "secret" else "name"]
        content = self.cluster.wait_for_object(kind, name, lambda: self.is_deleting)
        items = settings.get("items") or [{"key": key, "path": key} for key in content]
        dated = folder / "..2026_11_25_00_00_00.1"
        dated.mkdir()
        (folder / "..data").symlink_to(dated.name)
        for item in items:
            path = dated / item["path"]
            path.write_text(content[item["key"]])
            # Files of a read-only volume become readable by fsGroup.
            path.chmod(item.get("mode", settings.get("defaultMode", 0o644)) | 0o440)
            (folder / item["path"]).symlink_to(f"..data/{item['path']}")
        folder.chmod(0o1777)

    def field(self, path):
        whole = {"metadata.name": self.name, "metadata.namespace": self.document["metadata"]["namespace"],
                 "status.podIP": self.address}
        label = re.fullmatch(r"metadata\.labels\['(.*)'\]", path)
        return self.document["metadata"]["labels"][label[1]] if label else whole[path]

    def environment(self):
        image = self.cluster.image
        found = {"HOSTNAME": self.hostname, "HOME": "/home/mpiuser", **image.environment,
                 "KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
        for entry in self.container.get("env", []):
            if "valueFrom" in entry:
                found[entry["name"]] = self.field(entry["valueFrom"]["fieldRef"]["fieldPath"])
            else:
                found[entry["name"]] = expand(str(entry.get("value", "")), found)
        return found

    def etc_files(self):
        subdomain = self.spec.get("subdomain")
        names = f"{self.hostname}.{subdomain}.{self.domain}\t{self.hostname}" if subdomain else self.hostname
        search = [self.domain, f"svc.{self.cluster.domain}", self.cluster.domain,
                  *self.spec.get("dnsConfig", {}).get("searches", [])]
        texts = {"hosts": f"127.0.0.1\tlocalhost\n::1\tlocalhost\n{self.address}\t{names}\n",
                 "resolv.conf": f"search {' '.join(search)}\nnameserver {self.cluster.gateway}\noptions ndots:5\n",
                 "hostname": self.hostname + "\n"}
        for name, text in texts.items():
            (self.place / name).write_text(text)
        return [(str(self.place / name), f"/etc/{name}", False) for name in texts]

    def description(self):
        """What container.py gets."""
        rights = {**self.spec.get("securityContext", {}), **self.container.get("securityContext", {})}
        uid, gid = rights.get("runAsUser"), rights.get("runAsGroup")
        if uid is None:
            uid, gid = map(int, self.cluster.image.user.split(":"))
        assert uid != 0 or not rights.get("runAsNonRoot")
        environment = self.environment()
        command = self.container.get("command") or ([] if "args" in self.container else self.cluster.image.command)
        # Secrets and configuration are read-only whatever the mount says.
        fixed = {v["name"] for v in self.spec.get("volumes", []) if "secret" in v or "configMap" in v}
        mounts = [(str(self.volumes[m["name"]] / m.get("subPath", "")), m["mountPath"],
                   m.get("readOnly", False) or m["name"] in fixed) for m in self.container.get("volumeMounts", [])]
        return {"image": str(self.cluster.image.root), "mounts": self.etc_files() + mounts,
                "read_only": rights.get("readOnlyRootFilesystem", False),
                "no_new_privileges": rights.get("allowPrivilegeEscalation") is False,
                "drop_all": rights.get("capabilities", {}).get("drop") == ["ALL"],
                "uid": uid, "gid": gid or 0, "groups": [g for g in (rights.get("fsGroup"),) if g is not None],
                "workdir": self.cluster.image.workdir, "environment": environment,
                "command": [expand(word, environment) for word in [*command, *self.container.get("args", [])]]}

    # ---- its life ----

    def enter(self, *more):
        return ["nsenter", "--target", str(self.sandbox.pid), "--net", "--uts", "--ipc", *more]

    @property
    def log_path(self):
        return self.place / "log"

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def run_container(self):
        """Runs it once; its exit status."""
        with self.log_path.open("ab") as log:
            outer = subprocess.Popen(
                self.enter("unshare", "--mount", "--pid", "--fork", "--kill-child", sys.executable,
                           str(HERE / "container.py"), json.dumps(self.description())),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        with self.lock:
            while self.main is None and outer.poll() is None:
                words = pathlib.Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
                self.main = int(words[0]) if words else None
            if self.is_deleting and self.main is not None:
                os.kill(self.main, signal.SIGKILL)
        self.phase = "Running"
        ended = threading.Event()
        prober = threading.Thread(target=self.probe, args=(ended,), daemon=True)
        prober.start()
        status = outer.wait()
        with self.lock:
            self.main = None
        self.is_ready = self.is_started = False
        ended.set()
        prober.join()
        return status

    def live(self):
        self.open_sandbox()
        self.volumes = {v["name"]: self.make_volume(v) for v in self.spec.get("volumes", [])}
        policy = self.spec.get("restartPolicy", "Always")
        while not self.is_deleting:
            status = self.run_container()
            self.exits.append(status)
            self.note(f"container ended with {status}")
            if self.is_deleting or policy == "Never" or (policy == "OnFailure" and status == 0):
                break
            self.restart_count += 1
            time.sleep(BACK_OFF_S / SPEED)
        self.phase = "Succeeded" if self.exits and self.exits[-1] == 0 else "Failed"

    def note(self, text):
        with self.log_path.open("a") as log:
            log.write(f"[kubelet] {text}\n")

    # ---- probes ----

    def port(self, named):
        return named if isinstance(named, int) else {p["name"]: p["containerPort"] for p in self.container["ports"]}[named]

    def passes(self, probe):
        if "grpc" in probe:
            return health(f"{self.address}:{probe['grpc']['port']}", probe["grpc"].get("service", ""))
        port = self.port(probe["tcpSocket"]["port"])
        return subprocess.run(["bash", "-c", f"exec 3<>/dev/tcp/{self.address}/{port}"], capture_output=True).returncode == 0

    def probe(self, ended):
        """Startup first, then readiness and liveness, each with its own period; liveness failures kill the container."""
        probes = {kind: self.container.get(kind + "Probe") for kind in ("startup", "readiness", "liveness")}
        self.is_started, failures = probes["startup"] is None, dict.fromkeys(probes, 0)
        due = dict.fromkeys(probes, time.monotonic())
        while not ended.wait(0.05):
            for kind, probe in probes.items():
                if probe is None or time.monotonic() < due[kind] or (kind == "startup") == self.is_started:
                    continue
                due[kind] = time.monotonic() + probe.get("periodSeconds", 10) / SPEED
                is_fine = self.passes(probe)
                failures[kind] = 0 if is_fine else failures[kind] + 1
                has_failed = failures[kind] >= probe.get("failureThreshold", 3)
                if kind == "startup":
                    self.is_started = is_fine
                elif kind == "readiness":
                    self.is_ready = is_fine or (self.is_ready and not has_failed)
                if kind != "readiness" and has_failed:
                    self.note(f"{kind} probe failed {failures[kind]} times")
                    self.end_container()
                    return
            if probes["readiness"] is None:
                self.is_ready = self.is_started

    # ---- its end ----

    def exec(self, *command, timeout=60):
        """Runs a command in the container, with its rights and root; (status, output)."""
        spec = self.description()
        variables = [f"{k}={v}" for k, v in spec["environment"].items()]
        done = subprocess.run(["nsenter", "--target", str(self.main), "--all", "--root", "--wd", "--setuid", str(spec["uid"]),
                               "--setgid", str(spec["gid"]), "/usr/bin/env", "-i", *variables, *command],
                              capture_output=True, text=True, timeout=timeout)
        return done.returncode, done.stdout + done.stderr

    def pre_stop(self, limit_s):
        hook = self.container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        if hook:
            try:
                self.exec(*hook, timeout=limit_s)
            except subprocess.TimeoutExpired:
                self.note("preStop took too long")

    def wait_for_ears(self, end):
        """Until SIGTERM is heard: the first process of a namespace loses one that comes before it has a handler."""
        while self.main is not None and time.monotonic() < end:
            with contextlib.suppress(OSError):
                words = pathlib.Path(f"/proc/{self.main}/status").read_text().split()
                if int(words[words.index("SigCgt:") + 1], 16) >> (signal.SIGTERM - 1) & 1:
                    return
            time.sleep(0.01)

    def end_container(self):
        """preStop, SIGTERM, and SIGKILL when the grace period is over, which is not shortened."""
        grace_s = self.spec.get("terminationGracePeriodSeconds", 30)
        end = time.monotonic() + grace_s
        if self.main is not None:
            self.pre_stop(grace_s)
        self.wait_for_ears(min(end, time.monotonic() + START_S))
        self.signal(signal.SIGTERM)
        while self.main is not None and time.monotonic() < end:
            time.sleep(0.02)
        if self.main is not None:
            self.note(f"killed after {grace_s} s of grace")
            self.signal(signal.SIGKILL)

    def signal(self, number):
        with self.lock, contextlib.suppress(ProcessLookupError):
            if self.main is not None:
                os.kill(self.main, number)

    def delete(self, is_forced=False):
        """Returns when nothing of it is left. Forced: as when its machine is gone."""
        with self.lock:
            self.is_deleting = True
        self.is_ready = False
        if is_forced:
            self.signal(signal.SIGKILL)
        else:
            self.end_container()
        self.thread.join()
        self.sandbox.kill()
        self.sandbox.wait()

    def __str__(self):
        return f"---- pod {self.name} {self.phase} {self.address}, restarts {self.restart_count}\n{self.log()}"

