"""A cluster in the namespaces of this process: a bridge for pods, DNS, the objects, and a loop that keeps pods as wanted.

Everything is gone when the process ends: it is the first of a process namespace (see test_cluster.py).
"""
import pathlib
import threading
import time

import kubelet
import operators
from dns import Server
from kubelet import sh

NODE_S = 0.05


class Cluster:
    """apply() what kustomize renders; pods appear, are restarted, remade and deleted as the objects say."""

    domain = "cluster.local"
    gateway = "10.244.0.1"

    def __init__(self, image):
        self.image = image
        self.objects, self.services, self.claims, self.runtimes = {}, {}, {}, {}
        self.pods, self.controllers = {}, {}
        self.held = set()
        self.made = []  # every pod there ever was
        self.lock = threading.RLock()
        sh("mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run")
        pathlib.Path("/run/container").mkdir()
        kubelet.PODS.mkdir()
        for words in ("link set lo up", "link add name bridge type bridge", f"addr add {self.gateway}/16 dev bridge",
                      "link set bridge up"):
            sh("ip", *words.split())
        Server(self.gateway, self.resolve)
        threading.Thread(target=self.keep, daemon=True).start()

    # ---- objects ----

    def add_object(self, kind, name, content):
        self.objects[kind, name] = content

    def wait_for_object(self, kind, name, is_over):
        """What a pod mounts; as a real one it waits for what is not there yet."""
        while (kind, name) not in self.objects and not is_over():
            time.sleep(NODE_S)
        return self.objects.get((kind, name), {})

    def add_service(self, name, selector, publishes_not_ready, is_headless=True):
        self.services[name] = (selector, publishes_not_ready, is_headless)

    def apply(self, documents):
        for document in documents:
            spec = document.get("spec", {})
            document["metadata"].setdefault("namespace", "default")
            if document["kind"] == "ClusterServingRuntime":
                self.runtimes[document["metadata"]["name"]] = document
            if document["kind"] == "Service":
                self.add_service(document["metadata"]["name"], spec["selector"],
                                 spec.get("publishNotReadyAddresses", False), spec.get("clusterIP") == "None")
        for document in documents:
            if document["kind"] in operators.KINDS:
                made = operators.KINDS[document["kind"]](self, document)
                with self.lock:
                    self.controllers[document["kind"], made.name] = made

    def delete(self, *kinds):
        """Deletes the objects of these kinds with their pods, all at once; returns when they are gone."""
        with self.lock:
            for key in [k for k in self.controllers if k[0] in kinds]:
                del self.controllers[key]
            gone = list(self.pods.values())
        self.delete_pods(gone)

    # ---- pods ----

    def keep(self):
        """The controllers' loop."""
        while True:
            with self.lock:
                for controller in list(self.controllers.values()):
                    self.reconcile(controller)
            time.sleep(NODE_S)

    def reconcile(self, controller):
        remade = [p for p in controller.group_to_remake(list(self.pods.values())) if not p.is_deleting]
        for pod in remade:
            pod.is_deleting = True
            threading.Thread(target=self.delete_pods, args=([pod],), daemon=True).start()
        for name, document in controller.wanted().items():
            if name not in self.pods:
                self.pods[name] = kubelet.Pod(self, document, f"10.244.1.{10 + len(self.made)}")
                self.made.append(self.pods[name])

    def delete_pods(self, pods, is_forced=False):
        """As kubectl delete pod: the name is free again only when the old one is gone."""
        def one(pod):
            pod.delete(is_forced)
            with self.lock:
                if self.pods.get(pod.name) is pod:
                    del self.pods[pod.name]
        threads = [threading.Thread(target=one, args=(pod,)) for pod in pods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def exists(self, name):
        return name in self.pods

    def is_ready(self, name):
        return name in self.pods and self.pods[name].is_ready

    # ---- names ----

    def endpoints(self, name):
        """Pods behind a service that may be told to clients."""
        selector, publishes_not_ready, _ = self.services[name]
        return [p for p in list(self.pods.values()) if selector.items() <= p.document["metadata"]["labels"].items() and
                (publishes_not_ready or p.is_ready)]

    def resolve(self, name):
        """Addresses of SERVICE.NS.svc.DOMAIN and POD.SERVICE.NS.svc.DOMAIN; None where there is no such name."""
        suffix = f".svc.{self.domain}"
        words = name.removesuffix(suffix).split(".") if name.endswith(suffix) else []
        if len(words) not in (2, 3) or words[-2] not in self.services:
            return None
        pods = [p for p in self.endpoints(words[-2]) if p.name not in self.held and
                p.document["metadata"]["namespace"] == words[-1]]
        if len(words) == 3:
            pods = [p for p in pods if p.hostname == words[0] and p.spec.get("subdomain") == words[1]]
        return [p.address for p in pods] or None

    def report(self):
        return "\n".join(map(str, self.made))
