"""What happens to the pods of launch/k8s; run by test_cluster.py inside the namespaces of a node."""
import contextlib
import json
import re
import shutil
import signal
import subprocess
import threading
import time

import dockerfile
import grpc
import pytest
from cluster import Cluster
from crd import pod_templates
from kustomize import render
from metrics_client import Scrape, get
from weft_server import ROOT, WEFT, retry_hint, weft_pb2, weft_pb2_grpc

K8S, KSERVE = ROOT / "launch" / "k8s", ROOT / "launch" / "kserve"
MODEL = ROOT / "launch" / "demo-model"
PROMPT = "Sort: 7 3 9 1"
# Generous: the machine may be busy.
HANG_S = 90
# Tokens of an answer that no machine ends before the test does: the models have a context for that, and pods memory.
CONTEXT, LONG = 100_000, 90_000


def until(condition, what, timeout_s=HANG_S):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s} s: {what}")


@pytest.fixture
def cluster(tmp_path):
    image = dockerfile.build_with(WEFT.parent, WEFT.parent / "image")
    made = Cluster(image)
    claim = tmp_path / "models"
    for name in ("Llama-3.2-1B", "Llama-3.1-8B", "Llama-3.3-70B"):
        shutil.copytree(MODEL, claim / name)
        config = claim / name / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": CONTEXT}))
    tmp_path.chmod(0o755)
    made.claims["models"] = claim
    yield made
    print(made.report())


@pytest.fixture
def secret(cluster):
    """kubectl create secret generic weft-rendezvous, as the README has it."""
    def create():
        cluster.add_object("secret", "weft-rendezvous", {"secret": "warp and weft\n"})
    return create


@pytest.fixture(scope="module")
def wanted():
    """What one rank alone answers."""
    done = subprocess.run([WEFT, "run", "--model", MODEL, "--prompt", PROMPT, "--max-tokens", "24", "--temperature", "0",
                           "--ignore-eos", "--output", "json", "--quiet"], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    return answer["token_ids"], answer["logits_sha256"]


def leader_of(cluster, service="weft-grpc"):
    """The one pod that the clients' Service leads to."""
    def only():
        found = cluster.endpoints(service)
        return found[0] if len(found) == 1 else None
    return until(only, f"an endpoint of Service {service}")


def stub_of(pod):
    channel = grpc.insecure_channel(f"{pod.address}:9000", options=[("grpc.use_local_subchannel_pool", 1)])
    return weft_pb2_grpc.InferenceStub(channel)


def ask(pod):
    request = weft_pb2.GenerateRequest(prompt=PROMPT, max_tokens=24, ignore_eos=True, logits_digest=True)
    messages = list(stub_of(pod).Generate(request, timeout=HANG_S))
    return [t for m in messages for t in m.token_ids], messages[-1].logits_sha256


def check_serves(cluster, wanted, service="weft-grpc"):
    assert ask(leader_of(cluster, service)) == wanted


class Stream:
    """A long answer in a thread of its own, at work when the constructor returns."""

    def __init__(self, pod, tokens):
        self.tokens, self.error, self.has_begun = 0, None, threading.Event()
        request = weft_pb2.GenerateRequest(prompt="Once", max_tokens=tokens, ignore_eos=True)
        self.call = stub_of(pod).Generate(request, timeout=HANG_S)
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()
        assert self.has_begun.wait(HANG_S), self.error

    def read(self):
        try:
            for message in self.call:
                self.tokens += len(message.token_ids)
                self.has_begun.set()
        except grpc.RpcError as error:
            self.error = error
        self.has_begun.set()

    def finish(self):
        self.thread.join(HANG_S)
        assert self.error is None, self.error
        return self.tokens

    def cancel(self):
        assert self.thread.is_alive(), self.error
        self.call.cancel()


class Crowd:
    """So many clients, each with a request open all the time until disperse(): however quick the answers are, they wait
    for a place."""

    def __init__(self, pod, count):
        self.is_over, self.calls = threading.Event(), [None] * count
        self.threads = [threading.Thread(target=self.ask, args=(stub_of(pod), i), daemon=True) for i in range(count)]
        for thread in self.threads:
            thread.start()

    def ask(self, stub, index):
        while not self.is_over.is_set():
            self.calls[index] = stub.Generate(weft_pb2.GenerateRequest(prompt="Once", max_tokens=900, ignore_eos=True),
                                              timeout=HANG_S)
            with contextlib.suppress(grpc.RpcError):
                list(self.calls[index])

    def disperse(self):
        self.is_over.set()
        while any(thread.is_alive() for thread in self.threads):
            for call in filter(None, self.calls):
                call.cancel()
            time.sleep(0.05)


# Positions of a prompt in one step: the attention of each layer takes the reference kernels many seconds.
LAYER_POSITIONS = 16384


def in_long_layers(documents):
    """The same with ranks whose step of LAYER_POSITIONS is for much longer in each layer than a leader has to end it."""
    slow = {"WEFT_CPU_LEVEL": "ref", "WEFT_THREADS": "1", "WEFT_PREFILL_CHUNK": LAYER_POSITIONS}
    for document in documents:
        for _, template, _ in pod_templates(document):
            container = template["spec"]["containers"][0]
            container.setdefault("env", []).extend({"name": k, "value": str(v)} for k, v in slow.items())
            container["args"] = ["1s" if word == "60s" else word for word in container.get("args", [])]  # --drain
    return documents


class LongLayer:
    """A request whose first step is under way when the constructor returns."""

    def __init__(self, pod):
        request = weft_pb2.GenerateRequest(prompt_token_ids=[5] * LAYER_POSITIONS, max_tokens=4)
        self.call = stub_of(pod).Generate(request, timeout=2 * HANG_S)
        until(lambda: Scrape(9001, host=pod.address)["weft_requests_running"] == 1, "the request being read")

    def check_shut_down(self):
        with pytest.raises(grpc.RpcError) as caught:
            list(self.call)
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        assert retry_hint(caught.value) >= 3


def check_in_order(cluster, pods):
    """Every one of them has ended by itself, in time, with 0, and calls nobody dead."""
    assert [p.exits for p in pods] == [[0]] * len(pods), cluster.report()
    assert not any(word in p.log() for p in pods for word in ("grace", "failed:", "improperly")), cluster.report()


def test_mpijob_drains_out_in_a_long_layer(cluster):
    """The launcher's pod is deleted while every rank is in a layer that lasts longer than the drain, then the whole job."""
    cluster.apply(in_long_layers(render(K8S / "overlays" / "mpijob-model")))
    for end in (lambda launcher: cluster.delete_pods([launcher]), lambda launcher: cluster.delete("MPIJob")):
        launcher = leader_of(cluster)
        layer = LongLayer(launcher)
        end(launcher)
        layer.check_shut_down()
        check_in_order(cluster, [launcher])
    assert not any("grace" in p.log() for p in cluster.made), cluster.report()


def test_leader_worker_set_drains_out_in_a_long_layer(cluster, secret):
    """All pods get SIGTERM at once; the leader alone decides how long they stay."""
    secret()
    cluster.apply(in_long_layers(render(K8S / "overlays" / "lws-model")))
    layer = LongLayer(leader_of(cluster))
    pods = list(cluster.pods.values())
    cluster.delete("LeaderWorkerSet")
    layer.check_shut_down()
    assert len(pods) == 4
    check_in_order(cluster, pods)


def test_mpijob(cluster, wanted):
    """Four pods over ssh: a name that comes late, a lost worker, a lost launcher, the end."""
    cluster.held.add("weft-worker-2")
    cluster.apply(render(K8S / "overlays" / "mpijob-model"))
    launcher = until(lambda: cluster.pods.get("weft-launcher"), "the launcher")
    until(lambda: "waiting for weft-worker-2.weft.inference.svc (no address)" in launcher.log(), "a word about the late name")
    cluster.held.clear()
    check_serves(cluster, wanted)
    status, report = launcher.exec("weft-mpirun", "doctor")
    assert status in (0, 1) and "rank 3     of 4" in report and "tcp between them" in report, report

    lost = cluster.pods["weft-worker-1"]
    cluster.delete_pods([lost], is_forced=True)
    until(lambda: not launcher.is_ready, "readiness gone")
    check_serves(cluster, wanted)
    assert cluster.pods["weft-worker-1"].address != lost.address
    assert launcher.restart_count == 0 and "starting again in 1 s (restart 1)" in launcher.log()

    launcher.signal(signal.SIGKILL)
    until(lambda: launcher.restart_count == 1, "the launcher's container again")
    check_serves(cluster, wanted)

    stream = Stream(launcher, 400)
    workers = [p for p in cluster.pods.values() if p is not launcher]
    cluster.delete("MPIJob")
    assert stream.finish() == 400
    assert launcher.exits[0] != 0 and launcher.exits[1:] == [0] and "stopping: the leader drains" in launcher.log()
    assert all("grace" not in p.log() for p in workers), cluster.report()


def with_cpus(documents):
    """The same with two CPU ranks in place of the eight GPUs of a pod, so few that the model's own leaves do."""
    other = {"WEFT_DEVICE": "cpu", "WEFT_LEAVES": "8", "WEFT_LOCAL_RANKS": "2"}
    for document in documents:
        if "slotsPerWorker" in document.get("spec", {}):
            document["spec"]["slotsPerWorker"] = 2
        for _, template, _ in pod_templates(document):
            for entry in template["spec"]["containers"][0].get("env", []):
                entry["value"] = other.get(entry["name"], entry["value"])
    return documents


def check_two_ranks_in_each_of_two_pods(cluster, wanted, overlay):
    cluster.apply(with_cpus(render(K8S / "overlays" / overlay)))
    leader = leader_of(cluster)
    assert ask(leader) == wanted
    assert "for 4 ranks on 2 hosts" in leader.log()


def test_mpijob_with_gpus(cluster, wanted):
    """As far as that goes without any."""
    check_two_ranks_in_each_of_two_pods(cluster, wanted, "mpijob-gpu")


def test_leader_worker_set_with_gpus(cluster, wanted, secret):
    """As far as that goes without any."""
    secret()
    check_two_ranks_in_each_of_two_pods(cluster, wanted, "lws-gpu")


def test_leader_worker_set(cluster, wanted, secret):
    """Four pods over TCP: a Secret that comes late, a rank that dies and the group made anew, a deleted pod, the end."""
    cluster.apply(render(K8S / "overlays" / "lws-model"))
    leader = until(lambda: cluster.pods.get("weft-0"), "the leader")
    time.sleep(0.5)
    assert leader.phase == "Pending"  # ContainerCreating
    secret()
    check_serves(cluster, wanted)
    first = set(cluster.pods.values())
    assert {p.name for p in first} == {"weft-0", "weft-0-1", "weft-0-2", "weft-0-3"}

    for lose in (lambda: cluster.pods["weft-0-2"].signal(signal.SIGKILL),
                 lambda: cluster.delete_pods([cluster.pods["weft-0-1"]], is_forced=True),
                 lambda: cluster.pods["weft-0"].signal(signal.SIGKILL)):
        before = set(cluster.pods.values())
        lose()
        until(lambda: len(cluster.pods) == 4 and not before & set(cluster.pods.values()), "a group of new pods")
        check_serves(cluster, wanted)

    leader = leader_of(cluster)
    stream = Stream(leader, 400)
    pods = list(cluster.pods.values())
    cluster.delete("LeaderWorkerSet")
    assert stream.finish() == 400
    assert [p.exits for p in pods] == [[0]] * 4
    assert all("grace" not in p.log() for p in cluster.made), cluster.report()


def targets_of(cluster, monitor):
    """(address, port, path) of what Prometheus scrapes because of a PodMonitor."""
    labels, endpoints = monitor["spec"]["selector"]["matchLabels"], monitor["spec"]["podMetricsEndpoints"]
    pods = [p for p in cluster.pods.values() if labels.items() <= p.document["metadata"]["labels"].items()]
    return [(pod.address, port["containerPort"], endpoint["path"]) for pod in pods for endpoint in endpoints
            for port in pod.container.get("ports", []) if port["name"] == endpoint["port"]]


def test_leader_worker_set_is_scaled_by_what_is_there(cluster, wanted, secret):
    """What the PodMonitor leads to has the autoscaler's metric, which rises when requests wait for a place."""
    secret()
    documents = render(K8S / "overlays" / "lws-keda")
    cluster.apply(documents)
    check_serves(cluster, wanted)
    leader = leader_of(cluster)
    (monitor, scaled) = ([d for d in documents if d["kind"] == kind][0] for kind in ("PodMonitor", "ScaledObject"))
    (host, port, path), = targets_of(cluster, monitor)
    assert (host, path) == (leader.address, "/metrics")
    (name,) = re.findall(r"\bweft_\w+", scaled["spec"]["triggers"][0]["metadata"]["query"])

    def figure(metric=name):
        return Scrape(port, host=host)[metric]
    assert figure() == 0 and figure("weft_ranks") == 4
    crowd = Crowd(leader, 30)
    threshold = float(scaled["spec"]["triggers"][0]["metadata"]["threshold"])

    def is_full():
        scrape = Scrape(port, host=host)
        return scrape[name] > threshold and scrape["weft_requests_running"] == scrape["weft_requests_running_limit"]
    # Requests are taken up between steps: for a moment many wait while few run.
    until(is_full, "every place taken, and more waiting than one group may have")
    crowd.disperse()
    until(lambda: figure() == 0, "nobody waiting")
    assert get(port, "/health", host=host)[0] == 200

    stream = Stream(leader, LONG)
    threading.Thread(target=cluster.delete, args=("LeaderWorkerSet",)).start()
    until(lambda: get(port, "/health", host=host)[0] == 503, "no readiness while draining")
    stream.cancel()
    until(lambda: not cluster.pods, "every pod gone")
    assert all(p.exits == [0] for p in cluster.made), cluster.report()


def test_stateful_set(cluster, wanted, secret):
    """Two pods over TCP; whoever ends takes the other along, both start again in place and meet anew."""
    secret()
    cluster.apply(render(K8S / "statefulset"))
    check_serves(cluster, wanted)
    leader, worker = cluster.pods["weft-leader-0"], cluster.pods["weft-worker-0"]

    worker.signal(signal.SIGKILL)
    until(lambda: leader.restart_count == 1 and worker.restart_count == 1, "both containers again")
    check_serves(cluster, wanted)

    cluster.delete_pods([leader], is_forced=True)
    until(lambda: worker.restart_count == 2, "the worker's container again")
    check_serves(cluster, wanted)
    leader = leader_of(cluster)

    stream = Stream(leader, 400)
    cluster.delete("StatefulSet")
    assert stream.finish() == 400
    assert leader.exits[-1] == 0 and worker.exits[-1] == 0
    assert all("grace" not in p.log() for p in cluster.made), cluster.report()


def test_kserve_in_one_pod(cluster, wanted):
    """The runtime and its sample: serves, is scraped where the annotations say, starts again in place, the end."""
    documents = [d for d in render(KSERVE) if d["metadata"]["name"] in ("weft", "llama")]
    cluster.apply(documents)
    service = "llama-predictor"
    check_serves(cluster, wanted, service)
    pod = leader_of(cluster, service)
    annotations = documents[0]["spec"]["annotations"]
    assert annotations["prometheus.kserve.io/path"] == "/metrics"
    scrape = Scrape(int(annotations["prometheus.kserve.io/port"]), host=pod.address)
    assert scrape["weft_requests_waiting"] == 0 and scrape.results() == {"length": 1}

    pod.signal(signal.SIGKILL)
    until(lambda: pod.restart_count == 1, "the container again")
    check_serves(cluster, wanted, service)
    stream = Stream(leader_of(cluster, service), 400)
    cluster.delete("InferenceService")
    assert stream.finish() == 400
    assert pod.exits[-1] == 0 and "grace" not in pod.log(), cluster.report()


def test_kserve_on_several_nodes(cluster, wanted, secret):
    """A head and two workers that nobody numbered, two CPU ranks each; one is lost in every way, the end."""
    secret()
    documents = [d for d in with_cpus(render(KSERVE)) if d["metadata"]["name"] in ("weft-multinode", "llama-70b")]
    sizes = documents[1]["spec"]["predictor"]["workerSpec"]
    sizes["tensorParallelSize"] = 6
    sizes["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = "2"
    for container in (documents[1]["spec"]["predictor"]["model"], sizes["containers"][0]):
        container["env"] = []
    cluster.apply(documents)
    service = "llama-70b-predictor"
    check_serves(cluster, wanted, service)
    head = leader_of(cluster, service)
    assert len(cluster.pods) == 3 and "for 6 ranks on 3 hosts" in head.log()

    lost = next(p for p in cluster.pods.values() if "worker" in p.name)
    lost.signal(signal.SIGKILL)
    until(lambda: all(p.restart_count == 1 for p in cluster.pods.values()), "every container again")
    check_serves(cluster, wanted, service)
    cluster.delete_pods([lost], is_forced=True)
    until(lambda: head.restart_count == 2, "the head's container again")
    check_serves(cluster, wanted, service)
    cluster.delete_pods([head], is_forced=True)
    check_serves(cluster, wanted, service)

    stream = Stream(leader_of(cluster, service), 400)
    cluster.delete("InferenceService")
    assert stream.finish() == 400
    assert all("grace" not in p.log() for p in cluster.made), cluster.report()
