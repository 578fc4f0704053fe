"""Kubernetes' own kinds against its API, as the package `kubernetes` has it: unknown fields, types, fields that must be there."""
import pydantic
from kubernetes.client import models

GROUPS = {"": "V1", "apps": "V1", "policy": "V1", "networking.k8s.io": "V1", "autoscaling": "V2"}


def class_of(document):
    """The class of a kind, or None: it is not one of Kubernetes' own."""
    group, _, version = document["apiVersion"].rpartition("/")
    prefix = GROUPS.get(group, "none")
    return getattr(models, f"{prefix}{document['kind']}", None) if prefix.lower() == version else None


def findings(document):
    """One line for each error."""
    try:
        class_of(document).model_validate(document, by_alias=True, by_name=False)
    except pydantic.ValidationError as errors:
        # The last step of a place can be a type that was tried.
        return ["/".join(map(str, e["loc"])) + f": {e['msg']}" for e in errors.errors()]
    return []
