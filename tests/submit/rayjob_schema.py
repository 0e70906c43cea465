"""The fields of KubeRay's RayJob that we use, strictly: none of another name. Written by hand after KubeRay's API
reference (ray.io/v1, release 1.6); the CRD itself is 1.1 MB and was not taken. Pod templates are Kubernetes' own:
tests/submit/test_manifests.py holds them against its schemas where kubernetes-validate is installed."""

from __future__ import annotations

from typing import Any


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }


TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = _object({"name": {**TEXT, "maxLength": 47}, "namespace": TEXT, "labels": TEXTS})
TEMPLATE = _object({"metadata": _object({"labels": TEXTS}), "spec": {"type": "object"}})
HEAD = _object({"rayStartParams": TEXTS, "template": TEMPLATE})
WORKERS = _object(
    {
        "groupName": TEXT,
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "rayStartParams": TEXTS,
        "template": TEMPLATE,
    }
)
CLUSTER = _object(
    {
        "rayVersion": TEXT,
        "authOptions": _object({"mode": {"enum": ["disabled", "token"]}}),
        "headGroupSpec": HEAD,
        "workerGroupSpecs": {"type": "array", "items": WORKERS, "minItems": 1},
    }
)
SPEC = _object(
    {
        "entrypoint": TEXT,
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        "backoffLimit": COUNT,
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": COUNT,
        "submitterPodTemplate": TEMPLATE,
        "rayClusterSpec": CLUSTER,
    },
    {"suspend": {"type": "boolean"}},
)
RAY_JOB = _object(
    {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": "RayJob"}, "metadata": METADATA, "spec": SPEC}
)
