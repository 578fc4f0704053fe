"""The part of kustomize that launch/ uses: resources, namespace, images, JSON patches. Anything else is refused.

So that overlays are checked where there is no kubectl; test_manifests.py compares with the real one where there is.
"""
import copy

import yaml

KEYS = {"apiVersion", "kind", "namespace", "resources", "images", "patches"}
CLUSTER_WIDE = {"ClusterServingRuntime"}


def read_kustomization(folder):
    settings = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(settings) - KEYS
    assert not unknown, f"{folder}/kustomization.yaml: {sorted(unknown)} is not known here"
    return settings


def step_into(node, word):
    return node[int(word)] if isinstance(node, list) else node[word]


def apply(document, operation):
    words = operation["path"].strip("/").split("/")
    node = document
    for word in words[:-1]:
        node = step_into(node, word)
    value, last = copy.deepcopy(operation.get("value")), words[-1]
    if operation["op"] == "remove":
        node.pop(int(last) if isinstance(node, list) else last)
    elif operation["op"] == "add" and isinstance(node, list):
        node.insert(len(node) if last == "-" else int(last), value)
    elif operation["op"] == "add":
        node[last] = value
    else:
        assert operation["op"] == "replace", operation
        step_into(node, last)  # has to be there
        node[int(last) if isinstance(node, list) else last] = value


def set_images(node, images):
    if isinstance(node, list):
        for item in node:
            set_images(item, images)
    elif isinstance(node, dict):
        for container in node.get("containers", []):
            name = container.get("image", "").rsplit(":", 1)[0]
            if name in images:
                container["image"] = f"{images[name]['newName']}:{images[name]['newTag']}"
        for value in node.values():
            set_images(value, images)


def render(folder):
    """Every document of a kustomization, as it would be applied."""
    settings = read_kustomization(folder)
    documents = []
    for name in settings["resources"]:
        path = folder / name
        documents += render(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for patch in settings.get("patches", []):
        wanted = patch["target"]
        hit = [d for d in documents if d["kind"] == wanted["kind"] and d["metadata"]["name"] == wanted["name"]]
        assert len(hit) == 1, f"{folder}: patch of {wanted}: {len(hit)} targets"
        for operation in yaml.safe_load(patch["patch"]):
            apply(hit[0], operation)
    for document in documents:
        set_images(document, {i["name"]: i for i in settings.get("images", [])})
        if "namespace" in settings and document["kind"] not in CLUSTER_WIDE:
            document["metadata"]["namespace"] = settings["namespace"]
    return documents
