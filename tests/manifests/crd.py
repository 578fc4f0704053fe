"""Validating manifests offline: custom resources against their CRD, the rest against what their kinds may hold.

Unknown fields are errors, as they are for `kubectl apply --server-side`; the schemas of CRDs alone would let them pass.
"""
import functools
import pathlib

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


def text(fields, required=()):
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
SELECTOR = text({"matchLabels": STRINGS}, ["matchLabels"])
METADATA = text({"name": {"type": "string"}, "namespace": {"type": "string"}, "labels": STRINGS, "annotations": STRINGS},
                ["name"])
PORT = {"type": ["integer", "string"]}
PROTOCOL = {"enum": ["TCP", "UDP"]}
PEERS = {"type": "array", "items": text({"podSelector": SELECTOR}, ["podSelector"])}
POLICY_PORTS = {"type": "array", "items": text({"port": PORT, "protocol": PROTOCOL}, ["port"])}


def plain(api_version, kind, **fields):
    return text({"apiVersion": {"enum": [api_version]}, "kind": {"enum": [kind]}, "metadata": METADATA, **fields},
                ["apiVersion", "kind", "metadata", *fields])


# Kinds of Kubernetes itself: the fields used here and no others; a new one is looked up in the API reference and added.
PLAIN = {
    "Service": plain("v1", "Service", spec=text({
        "clusterIP": {"enum": ["None"]}, "publishNotReadyAddresses": {"type": "boolean"}, "selector": STRINGS,
        "ports": {"type": "array", "items": text({
            "name": {"type": "string"}, "port": {"type": "integer"}, "targetPort": PORT, "protocol": PROTOCOL,
            "appProtocol": {"type": "string"}}, ["name", "port"])}}, ["selector"])),
    "ServiceAccount": plain("v1", "ServiceAccount", automountServiceAccountToken={"type": "boolean"}),
    "PodDisruptionBudget": plain("policy/v1", "PodDisruptionBudget", spec=text({
        "minAvailable": {"type": "integer"}, "selector": SELECTOR}, ["minAvailable", "selector"])),
    "NetworkPolicy": plain("networking.k8s.io/v1", "NetworkPolicy", spec=text({
        "podSelector": SELECTOR, "policyTypes": {"type": "array", "items": {"enum": ["Ingress", "Egress"]}},
        "ingress": {"type": "array", "items": text({"from": PEERS, "ports": POLICY_PORTS})},
        "egress": {"type": "array", "items": text({"to": PEERS, "ports": POLICY_PORTS})}},
        ["podSelector", "policyTypes"])),
    "StatefulSet": plain("apps/v1", "StatefulSet", spec=text({
        "replicas": {"type": "integer"}, "serviceName": {"type": "string"},
        "podManagementPolicy": {"enum": ["OrderedReady", "Parallel"]}, "selector": SELECTOR,
        "template": {"type": "object"}}, ["serviceName", "selector", "template"])),
}


@functools.lru_cache(maxsize=None)
def pod_template_validator():
    """The pod template of Kubernetes, as the LeaderWorkerSet CRD spells it out."""
    whole = crd_validator("LeaderWorkerSet", "leaderworkerset.x-k8s.io/v1").schema
    group = whole["properties"]["spec"]["properties"]["leaderWorkerTemplate"]
    return jsonschema.Draft4Validator(group["properties"]["workerTemplate"])


def needs_crd(document):
    return document["kind"] in CRD_OF or document["kind"] == "StatefulSet"


def findings(document):
    """One line for each error of a manifest; CRDs are at hand when needs_crd()."""
    kind = document["kind"]
    if kind in CRD_OF:
        document = {**document, "kind": CRD_OF[kind][1]}
        errors = list(crd_validator(kind, document["apiVersion"]).iter_errors(document))
    elif kind in PLAIN:
        errors = list(jsonschema.Draft4Validator(PLAIN[kind]).iter_errors(document))
    else:
        return [f"kind {kind}: no schema for it"]
    lines = ["/".join(map(str, e.absolute_path)) + ": " + e.message[:200] for e in errors]
    if kind == "StatefulSet":
        lines += ["spec/template/" + "/".join(map(str, e.absolute_path)) + ": " + e.message[:200]
                  for e in pod_template_validator().iter_errors(document["spec"]["template"])]
    return lines


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
        found = [({"metadata": {"labels": {}}, "spec": spec}, 1)]
    else:
        found = []
    return [(t["metadata"]["labels"].get("app.kubernetes.io/component"), t, pods) for t, pods in found]
