"""Validating manifests offline: custom resources against their CRD, Kubernetes' own kinds against its API (core_types.py).

Unknown fields are errors, as they are for `kubectl apply --server-side`; the schemas of CRDs alone would let them pass.
"""
import functools
import pathlib

import core_types
import jsonschema
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
CRDS = ROOT.parent / "shared" / "data" / "k8s"

# kind -> (file, kind in that file). A ClusterServingRuntime's spec is that of a ServingRuntime.
CRD_OF = {
    "MPIJob": ("mpijob-crd-v2beta1.yaml", "MPIJob"),
    "LeaderWorkerSet": ("leaderworkerset-crd.yaml", "LeaderWorkerSet"),
    "InferenceService": ("serving.kserve.io_inferenceservices.yaml", "InferenceService"),
    "ClusterServingRuntime": ("serving.kserve.io_servingruntimes.yaml", "ServingRuntime"),
}
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def strict(node):
    """A copy of a CRD's schema as plain JSON schema, in which an object holds only the named fields."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string") is True:
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    copy = {key: strict(value) for key, value in node.items()}
    is_schema = isinstance(copy.get("properties"), dict) and copy.get("type", "object") == "object"
    if is_schema and not node.get("x-kubernetes-preserve-unknown-fields"):
        copy.setdefault("additionalProperties", False)
    return copy


@functools.lru_cache(maxsize=None)
def crd_validator(kind, api_version):
    file, kind_there = CRD_OF[kind]
    with open(CRDS / file, encoding="utf-8") as stream:
        crds = [c for c in yaml.load_all(stream, Loader) if c and c["spec"]["names"]["kind"] == kind_there]
    group, version = api_version.split("/")
    assert crds and crds[0]["spec"]["group"] == group, f"{file} is not of {group}"
    versions = {v["name"]: v for v in crds[0]["spec"]["versions"]}
    schema = strict(versions[version]["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft4Validator(schema)


def only(required=(), **fields):
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


TEXT, NUMBER = {"type": "string"}, {"type": "integer"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
METADATA = only(["name"], name=TEXT, namespace=TEXT, labels=TEXTS)
# No CRD at hand: the fields in use, by the documentation of the Prometheus operator and of KEDA, and no others.
BY_HAND = {
    ("monitoring.coreos.com/v1", "PodMonitor"): only(
        ["selector", "podMetricsEndpoints"], selector=only(["matchLabels"], matchLabels=TEXTS),
        podMetricsEndpoints={"type": "array", "items": only(["port"], port=TEXT, path=TEXT, interval=TEXT)}),
    ("keda.sh/v1alpha1", "ScaledObject"): only(
        ["scaleTargetRef", "triggers"], scaleTargetRef=only(["name"], apiVersion=TEXT, kind=TEXT, name=TEXT),
        minReplicaCount=NUMBER, maxReplicaCount=NUMBER, pollingInterval=NUMBER, cooldownPeriod=NUMBER,
        triggers={"type": "array", "items": only(["type", "metadata"], type={"enum": ["prometheus"]}, metadata=only(
            ["serverAddress", "query", "threshold"], serverAddress=TEXT, query=TEXT, threshold=TEXT))}),
}


def needs_crd(document):
    return document["kind"] in CRD_OF


def findings(document):
    """One line for each error of a manifest; CRDs are at hand when needs_crd()."""
    kind = document["kind"]
    if kind in CRD_OF:
        document = {**document, "kind": CRD_OF[kind][1]}
        errors = list(crd_validator(kind, document["apiVersion"]).iter_errors(document))
        return ["/".join(map(str, e.absolute_path)) + ": " + e.message[:200] for e in errors]
    if core_types.class_of(document) is not None:
        return core_types.findings(document)
    schema = BY_HAND.get((document["apiVersion"], kind))
    if schema is None:
        return [f"kind {kind}: no schema for it"]
    whole = only(["metadata", "spec"], apiVersion=TEXT, kind=TEXT, metadata=METADATA, spec=schema)
    return ["/".join(map(str, e.absolute_path)) + ": " + e.message for e in jsonschema.Draft4Validator(whole).iter_errors(document)]


def pod_templates(document):
    """(role, template, pods) of everything in a manifest that becomes a pod; role is a label or None."""
    spec = document.get("spec", {})
    if document["kind"] == "MPIJob":
        found = [(r["template"], r["replicas"]) for r in spec["mpiReplicaSpecs"].values()]
    elif document["kind"] == "LeaderWorkerSet":
        group = spec["leaderWorkerTemplate"]
        found = [(group["leaderTemplate"], spec["replicas"]),
                 (group["workerTemplate"], spec["replicas"] * (group["size"] - 1))]
    elif document["kind"] == "StatefulSet":
        found = [(spec["template"], spec["replicas"])]
    elif document["kind"] == "ClusterServingRuntime":
        specs = [spec] + ([spec["workerSpec"]] if "workerSpec" in spec else [])
        found = [({"metadata": {"labels": {}}, "spec": one}, 1) for one in specs]
    else:
        found = []
    return [(t["metadata"]["labels"].get("app.kubernetes.io/component"), t, pods) for t, pods in found]
