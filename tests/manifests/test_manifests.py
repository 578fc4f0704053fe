"""Manifests of launch/k8s and launch/kserve: against the CRDs, against each other, against the binary."""
import copy
import os
import re
import shutil
import subprocess

import pytest
import yaml
from crd import CRDS, LAUNCH, ROOT, findings, needs_crd, pod_templates
from kustomize import read_kustomization, render
from metrics_client import Scrape
from weft_server import Server

WEFT = (ROOT / os.environ.get("WEFT_BUILD", "build")).resolve() / "weft"
FOLDERS = sorted(p.parent for p in LAUNCH.rglob("kustomization.yaml"))
# No pods of their own; what stands there is seen through the others.
WHOLE = [f for f in FOLDERS if f.name not in ("base", "monitor")]
GROUPS = [f for f in WHOLE if f.name != "kserve"]
HAS_CRDS = CRDS.is_dir()
with_crds = pytest.mark.skipif(not HAS_CRDS, reason=f"no CRDs: {CRDS} is absent")


def name_of(folder):
    return str(folder.relative_to(LAUNCH))


def of_kind(documents, kind):
    return [d for d in documents if d["kind"] == kind]


def templates(documents):
    return [t for d in documents for t in pod_templates(d)]


def containers(documents):
    return [c for _, t, _ in templates(documents) for c in t["spec"]["containers"]]


@pytest.fixture(params=WHOLE, ids=name_of)
def whole(request):
    return render(request.param)


@pytest.fixture(params=GROUPS, ids=name_of)
def group(request):
    return render(request.param)


def test_there_are_manifests():
    kinds = {d["kind"] for f in WHOLE for d in render(f)}
    assert {"MPIJob", "LeaderWorkerSet", "StatefulSet", "ClusterServingRuntime", "InferenceService"} <= kinds


def test_every_document_fits_its_schema(whole):
    checked = [d for d in whole if HAS_CRDS or not needs_crd(d)]
    assert [f"{d['kind']} {d['metadata']['name']}: {line}" for d in checked for line in findings(d)] == []
    if len(checked) < len(whole):
        pytest.skip(f"no CRDs: {CRDS} is absent; only the kinds of Kubernetes itself were checked")


@with_crds
@pytest.mark.parametrize("folder, kind, path, key", [
    ("k8s/mpijob", "MPIJob", ["spec"], "slotsPerWorkers"),
    ("k8s/mpijob", "MPIJob", ["spec", "mpiReplicaSpecs", "Launcher", "template", "spec", "containers", 0], "readinesProbe"),
    ("k8s/lws", "LeaderWorkerSet", ["spec", "leaderWorkerTemplate"], "restartpolicy"),
    ("k8s/statefulset", "StatefulSet", ["spec", "template", "spec"], "hostnetwork"),
    ("k8s/statefulset", "NetworkPolicy", ["spec"], "podSelektor"),
    ("k8s/statefulset", "PodDisruptionBudget", ["spec"], "minAvailible"),
    ("k8s/overlays/lws-hpa", "HorizontalPodAutoscaler", ["spec", "metrics", 0, "pods"], "metrik"),
    ("k8s/overlays/lws-hpa", "PodMonitor", ["spec"], "podMetricEndpoints"),
    ("k8s/overlays/lws-keda", "ScaledObject", ["spec", "triggers", 0, "metadata"], "treshold"),
    ("kserve", "ClusterServingRuntime", ["spec", "containers", 0], "agrs"),
    ("kserve", "InferenceService", ["spec", "predictor", "model"], "storageURI"),
])
def test_a_mistyped_field_is_reported(folder, kind, path, key):
    document = copy.deepcopy(of_kind(render(LAUNCH / folder), kind)[0])
    assert findings(document) == []
    node = document
    for step in path:
        node = node[step]
    node[key] = "x"
    said = (f"'{key}' was unexpected", f"{key}: Extra inputs are not permitted")
    assert any(words in line for line in findings(document) for words in said), findings(document)


def test_a_mistyped_field_of_a_plain_kind_is_reported():
    service = copy.deepcopy(of_kind(render(LAUNCH / "k8s/lws"), "Service")[0])
    assert findings(service) == []
    service["spec"]["ports"][0]["appProtocl"] = service["spec"]["ports"][0].pop("appProtocol")
    assert findings(service) == ["spec/ports/0/appProtocl: Extra inputs are not permitted"]
    assert findings({"apiVersion": "v1", "kind": "Servic"}) == ["kind Servic: no schema for it"]


def test_a_wrong_value_of_a_plain_kind_is_reported():
    worker = copy.deepcopy(of_kind(render(LAUNCH / "k8s/statefulset"), "StatefulSet")[1])
    container = worker["spec"]["template"]["spec"]["containers"][0]
    assert findings(worker) == []
    container["env"] = {"NAME": "value"}
    worker["spec"]["replicas"] = "2"
    del worker["spec"]["selector"], container["name"]
    assert sorted(findings(worker)) == [
        "spec/replicas: Input should be a valid integer", "spec/selector: Field required",
        "spec/template/spec/containers/0/env: Input should be a valid list",
        "spec/template/spec/containers/0/name: Field required"]


def test_kustomizations_name_what_exists_and_all_of_it():
    named = set()
    for folder in FOLDERS:
        for resource in read_kustomization(folder)["resources"]:
            path = (folder / resource).resolve()
            assert path.is_file() or (path / "kustomization.yaml").is_file(), f"{folder}: {resource} is not there"
            named.add(path)
    there = {p for f in FOLDERS for p in f.glob("*.yaml") if p.name != "kustomization.yaml"}
    assert there - named == set()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here to compare with")
@pytest.mark.parametrize("folder", WHOLE, ids=name_of)
def test_kubectl_renders_the_same(folder, tmp_path):
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60,
                          env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": os.devnull})
    assert done.returncode == 0, done.stderr

    def key(document):
        return document["kind"], document["metadata"]["name"]
    assert sorted(yaml.safe_load_all(done.stdout), key=key) == sorted(render(folder), key=key)


def test_selectors_match_the_pods_they_are_for(group):
    pods = {role: t["metadata"]["labels"] for role, t, _ in templates(group)}
    assert set(pods) == {"leader", "worker"}

    def hit(selector):
        return {role for role, labels in pods.items() if selector.items() <= labels.items()}
    services = {d["metadata"]["name"]: d["spec"] for d in of_kind(group, "Service")}
    assert hit(services.pop("weft-grpc")["selector"]) == {"leader"}
    for spec in services.values():
        assert hit(spec["selector"]) == set(pods)
    for document in of_kind(group, "NetworkPolicy"):
        assert hit(document["spec"]["podSelector"]["matchLabels"]) == set(pods)
    for document in of_kind(group, "PodDisruptionBudget"):
        assert hit(document["spec"]["selector"]["matchLabels"]) == set(pods)
        if of_kind(group, "HorizontalPodAutoscaler") + of_kind(group, "ScaledObject"):
            assert document["spec"]["maxUnavailable"] == 0 and "minAvailable" not in document["spec"]
        else:
            assert document["spec"]["minAvailable"] == sum(n for _, _, n in templates(group))
    for document in of_kind(group, "PodMonitor"):
        assert hit(document["spec"]["selector"]["matchLabels"]) == {"leader"}
    for document in of_kind(group, "HorizontalPodAutoscaler") + of_kind(group, "ScaledObject"):
        target = document["spec"]["scaleTargetRef"]
        assert [d["apiVersion"] for d in of_kind(group, target["kind"])] == [target["apiVersion"]]
        assert of_kind(group, target["kind"])[0]["metadata"]["name"] == target["name"]
    for document in of_kind(group, "StatefulSet"):
        role = document["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]
        assert hit(document["spec"]["selector"]["matchLabels"]) == {role}
        assert document["spec"]["serviceName"] in services


def test_names_do_not_clash_with_what_the_operators_make(group):
    taken = {d["metadata"]["name"] for d in of_kind(group, "MPIJob") + of_kind(group, "LeaderWorkerSet")}
    assert not taken & {d["metadata"]["name"] for d in of_kind(group, "Service")}


def test_ports_agree(whole):
    ports = {(role, p["name"]): p["containerPort"] for role, t, _ in templates(whole)
             for c in t["spec"]["containers"] for p in c.get("ports", [])}
    for document in of_kind(whole, "Service"):
        for port in document["spec"].get("ports", []):
            assert ports[("leader", port["targetPort"])] == port["port"]
            assert (port["name"], port["appProtocol"]) in (("grpc", "kubernetes.io/h2c"), ("metrics", "http"))
    for document in of_kind(whole, "PodMonitor"):
        assert [(e["port"], e["path"]) for e in document["spec"]["podMetricsEndpoints"]] == [("metrics", "/metrics")]
    for document in of_kind(whole, "ClusterServingRuntime"):
        assert document["spec"]["annotations"] == {
            "prometheus.kserve.io/port": str(next(p["containerPort"] for p in document["spec"]["containers"][0]["ports"]
                                                  if p["name"] == "metrics")), "prometheus.kserve.io/path": "/metrics"}
    for document in of_kind(whole, "NetworkPolicy"):
        named = [p["port"] for rule in document["spec"]["ingress"] for p in rule.get("ports", [])]
        assert set(named) == {name for role, name in ports if role == "leader"}
    for container in containers(whole):
        words = [*container["command"], *container.get("args", [])]
        mine = [p["containerPort"] for p in container.get("ports", [])]
        if "--grpc" in words:
            for option, name in (("--grpc", "grpc|h2c"), ("--http", "metrics")):
                host, port = words[words.index(option) + 1].rsplit(":", 1)
                assert host == "0.0.0.0"  # the kubelet and Prometheus come to the pod's address
                assert [p["containerPort"] for p in container["ports"] if re.fullmatch(name, p["name"])] == [int(port)]
            # KServe and Knative take the first.
            assert container["ports"][0]["name"] in ("grpc", "h2c")
        if "/usr/sbin/sshd" in words:
            sshd = (LAUNCH / "docker" / "sshd_config").read_text()
            assert mine == [int(re.search(r"^Port (\d+)$", sshd, re.M)[1])]


def test_probes_name_services_that_the_server_knows(whole):
    source = (ROOT / "runtime" / "serve" / "grpc_health.c").read_text()
    known = set(re.findall(r'\{"([\w.]*)", PROBE_\w+\}', source))
    assert {"startup", "readiness", "liveness"} <= known
    serving = [c for c in containers(whole) if "--grpc" in c.get("args", [])]
    assert len(serving) == (len(of_kind(whole, "ClusterServingRuntime")) or 1)
    for container in serving:
        for kind in ("startup", "readiness", "liveness"):
            probe = container[kind + "Probe"]["grpc"]
            assert probe["service"] == kind and kind in known
            assert probe["port"] in [p["containerPort"] for p in container["ports"]]


def metrics_named_in(documents):
    """Of Weft's metrics, those that autoscalers go by."""
    queries = [m["pods"]["metric"]["name"] for d in of_kind(documents, "HorizontalPodAutoscaler") for m in d["spec"]["metrics"]]
    queries += [t["metadata"]["query"] for d in of_kind(documents, "ScaledObject") for t in d["spec"]["triggers"]]
    return {name for query in queries for name in re.findall(r"\bweft_\w+", query)}


def test_autoscalers_go_by_metrics_that_exist():
    if not WEFT.exists():
        pytest.skip(f"no {WEFT}: build it first")
    named = {name_of(f): metrics_named_in(render(f)) for f in GROUPS}
    assert {folder for folder, names in named.items() if names} == {"k8s/overlays/lws-hpa", "k8s/overlays/lws-keda"}
    with Server("--http", "127.0.0.1:0") as server:
        families = Scrape(server.http_port).families
    for name in set.union(*named.values()):
        assert families[name].type == "gauge", name


def options_of(*command):
    done = subprocess.run([*map(str, command), "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"--[a-z][a-z-]+", done.stdout)), set(re.findall(r"\bWEFT_[A-Z_]+", done.stdout))


def test_every_option_exists_in_the_binary(whole):
    if not WEFT.exists():
        pytest.skip(f"no {WEFT}: build it first")
    serve, variables = options_of(WEFT, "serve")
    mpirun, more = options_of(LAUNCH / "mpirun.sh")
    for container in containers(whole):
        words = " ".join([*container["command"], *container.get("args", [])]).split()
        if words[0] == "weft-mpirun":
            start = words.index("serve")
            assert {w for w in words[:start] if w.startswith("--")} <= mpirun
            words = ["weft", *words[start:]]
        if "weft" in words:
            start = words.index("weft")
            assert words[start + 1] == "serve"
            used = {w for w in words[start + 2:] if w.startswith("--")}
            assert used and used <= serve, used - serve
        names = {e["name"] for e in container.get("env", []) if e["name"].startswith("WEFT_")}
        assert names <= variables | more, names - variables - more


def test_pods_are_locked_down_and_complete(whole):
    for _, template, _ in templates(whole):
        pod = template["spec"]
        volumes = {v["name"] for v in pod["volumes"]}
        for container in pod["containers"]:
            rights = {**pod.get("securityContext", {}), **container["securityContext"]}
            assert rights["runAsNonRoot"] is True and rights["runAsUser"] == 1000
            assert rights["seccompProfile"] == {"type": "RuntimeDefault"}
            assert rights["allowPrivilegeEscalation"] is False and rights["readOnlyRootFilesystem"] is True
            assert rights["capabilities"] == {"drop": ["ALL"]}
            mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
            assert set(mounts) == volumes and mounts["tmp"] == "/tmp" and mounts["shm"] == "/dev/shm"
            words = [*container["command"], *container.get("args", [])]
            if "--drain" in words:
                drain = int(words[words.index("--drain") + 1].rstrip("s"))
                assert drain < pod.get("terminationGracePeriodSeconds", 30)


def settings_of(container):
    return {e["name"]: e.get("value") for e in container.get("env", [])}


def test_rank_count_fits_pods_gpus_and_leaves(group):
    pods = sum(n for _, _, n in templates(group))
    ranks_per_pod = 1
    for job in of_kind(group, "MPIJob"):
        assert job["spec"]["runLauncherAsWorker"]
        ranks_per_pod = job["spec"]["slotsPerWorker"]
    for container in containers(of_kind(group, "StatefulSet")):
        assert settings_of(container)["WEFT_RANK_COUNT"] == str(pods)
    for container in containers(of_kind(group, "LeaderWorkerSet")):
        ranks_per_pod = int(settings_of(container).get("WEFT_LOCAL_RANKS", "1"))
    for container in containers(group):
        gpus = int(container["resources"]["limits"].get("nvidia.com/gpu", "0"))
        assert gpus in (0, ranks_per_pod)
        if container["command"] != ["/usr/sbin/sshd", "-De"]:
            assert (settings_of(container).get("WEFT_DEVICE") == "cuda") == (gpus > 0)
            assert int(settings_of(container).get("WEFT_LEAVES", "8")) >= pods * ranks_per_pod


def test_variables_in_arguments_are_set(whole):
    """$(NAME) of an unknown variable would reach the program as it stands."""
    for document in whole:
        is_lws = document["kind"] == "LeaderWorkerSet"
        given = {"LWS_LEADER_ADDRESS", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX"} if is_lws else set()
        if "workerSpec" in document.get("spec", {}):  # KServe on several nodes
            given = {"REQUEST_GPU_COUNT", "RAY_NODE_COUNT"}
        for container in containers([document]):
            words = " ".join([*container["command"], *container.get("args", [])])
            used = set(re.findall(r"\$\((.*?)\)", words))
            assert used <= given | {e["name"] for e in container.get("env", [])}, used


def test_a_worker_of_the_stateful_set_finds_its_rank(tmp_path):
    worker = [c for c in containers(render(LAUNCH / "k8s/statefulset")) if c["name"] == "worker"][0]
    (tmp_path / "weft").write_text("#!/bin/sh\necho \"$@\"\n")
    (tmp_path / "weft").chmod(0o755)
    done = subprocess.run([*worker["command"], *worker["args"]], capture_output=True, text=True, timeout=60, env={
        "PATH": f"{tmp_path}:/usr/bin:/bin", "POD_NAME": "weft-worker-11", "WEFT_RANK_COUNT": "13"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["serve", "--drain", "60s", "--leader", "weft-leader-0.weft-ranks:20000", "--rank", "12",
                                   "--ranks", "13", "--secret-file", "/run/secrets/weft/secret", "--rendezvous-timeout", "5m"]


def test_no_secret_is_committed():
    assert all(d["kind"] != "Secret" for f in WHOLE for d in render(f))
