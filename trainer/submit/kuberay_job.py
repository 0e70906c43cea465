"""A run as Kubernetes objects: a RayJob with one trainer a worker pod, and the run file beside it.

They are built as plain data and written by PyYAML, never by a template: no text of a run file can become structure.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import yaml

from trainer.config import Config, dump_config
from trainer.config_sections import Launch
from trainer.launch_ray import OBJECT_STORE_BYTES, TRAINER

RUNS = "/runs"  # where pods see launch.volume
RUN_FILE = "/etc/tokenformer/run.toml"
METRICS_PORT = 9400
HEAD_CPUS, HEAD_MEMORY = 2, "6Gi"  # the command, Ray's own services and its dashboard
SHM_SPARE = 256 * 2**20
NAME_LENGTH = 47  # what KubeRay allows a RayJob
LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
LABEL_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
OWNED = ("tokenformer/", "ray.io/", "kueue.x-k8s.io/")
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


def problems(config: Config) -> list[str]:
    """What of the run file no pod can do, a line each."""
    launch = config.launch
    found = [
        f"launch.{key} is not set → {rule} → --launch.{key.replace('_', '-')} {remedy}"
        for key, rule, remedy in (
            ("image", "pods run an image that holds this code", "REGISTRY/tokenformer:TAG"),
            ("volume", "nothing may live on a pod only", "CLAIM, a PersistentVolumeClaim that many pods can write"),
            ("memory_gb", "a pod without a limit takes its node's memory", "N, of one worker"),
        )
        if not getattr(launch, key)
    ]
    if launch.time_limit_minutes:
        found.append(
            f"launch.time_limit_minutes = {launch.time_limit_minutes} → Kubernetes ends what is over its time "
            "unsaved → leave it 0"
        )
    for name, held in (("labels", launch.labels), ("node_selectors", launch.node_selectors)):
        found += [
            f"launch.{name} {key!r} = {value!r} → Kubernetes wants letters, digits, '-', '_' and '.', 63 at most, "
            "and a key's prefix not one of ours → rename it"
            for key, value in held.items()
            if not (LABEL_KEY.fullmatch(key) and LABEL.fullmatch(value)) or (name == "labels" and key.startswith(OWNED))
        ]
    places = {"data.rows": config.data.rows, "checkpoint.store": config.checkpoint.store, "init.run": config.init.run}
    found += [
        f"{key} = '{place}' → pods see object stores and launch.volume at {RUNS} → name it s3://… or {RUNS}/…"
        for key, place in places.items()
        if place and "://" not in place and not place.startswith(f"{RUNS}/")
    ]
    return found


def job_name(text: str, suffix: str) -> str:
    """A name that Kubernetes takes, of this text and a suffix."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return f"{plain[: NAME_LENGTH - len(suffix) - 1].rstrip('-')}-{suffix}"


def in_pods(config: Config) -> Config:
    """The run file of the pods: it joins the Ray that KubeRay started, and its endpoints can be reached from outside
    the pod, where the network policy lets Prometheus in."""
    launch = config.launch
    there = {"backend": "ray", "ray_address": "auto", "threads": launch.threads or max(1, launch.cpus)}
    reached = {"host": "0.0.0.0", "port": METRICS_PORT}  # noqa: S104 - of a pod
    return replace(
        config, launch=launch.model_copy(update=there), telemetry=config.telemetry.model_copy(update=reached)
    )


def config_map(config: Config, name: str) -> dict[str, Any]:
    """The run file, which all pods mount."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(config.launch, name),
        "data": {"run.toml": dump_config(in_pods(config))},
    }


def ray_job(config: Config, name: str, run_dir: str) -> dict[str, Any]:
    """One job. run_dir: as the pods see it."""
    launch = config.launch
    command = ["tokenformer", "train", "--config", RUN_FILE, "--run-dir", run_dir, "--resume", "auto"]
    metadata = _metadata(launch, name)
    if launch.queue:
        metadata["labels"][QUEUE_LABEL] = launch.queue
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            "entrypoint": shlex.join(command),
            "submissionMode": "K8sJobMode",
            "backoffLimit": launch.max_restarts,  # of whole clusters: a lost head
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 60,
            **({"suspend": True} if launch.queue else {}),  # until Kueue admits it
            "submitterPodTemplate": _pod(launch, name, _submitter(launch), ()),
            "rayClusterSpec": {
                "rayVersion": version("ray"),
                "authOptions": {"mode": "token"},
                "headGroupSpec": _head(config, name),
                "workerGroupSpecs": [_workers(config, name)],
            },
        },
    }


def _head(config: Config, name: str) -> dict[str, Any]:
    """Ray's services and the command; nothing trains or reads there."""
    launch, store = config.launch, _store_bytes(config)
    container = _ray_container(launch, "ray-head", {"cpu": str(HEAD_CPUS), "memory": HEAD_MEMORY})
    container["env"].append({"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": str(launch.grace_seconds)})
    container |= _probes("/api/gcs_healthz", 8265)
    return {
        "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0", "object-store-memory": str(store)},  # noqa: S104 - of a pod
        "template": _pod(launch, name, container, _volumes(launch, name, store)),
    }


def _workers(config: Config, name: str) -> dict[str, Any]:
    launch, store = config.launch, _store_bytes(config)
    cpus = launch.cpus or launch.threads or 1
    resources = {"cpu": str(cpus), "memory": f"{round(launch.memory_gb * 1024)}Mi"}
    container = _ray_container(launch, "ray-worker", resources | ({"nvidia.com/gpu": "1"} if launch.gpus else {}))
    container["ports"] = [{"name": "metrics-0", "containerPort": METRICS_PORT}]
    container |= _probes("/api/local_raylet_healthz", 52365)
    pod = _pod(launch, name, container, _volumes(launch, name, store))
    return {
        "groupName": "trainers",
        "replicas": launch.workers,
        "minReplicas": launch.workers,
        "maxReplicas": launch.workers,
        # KubeRay pastes the values into a shell command, hence the second layer of quotes. One logical CPU more than a
        # trainer takes, so that reading is never starved.
        "rayStartParams": {
            "num-cpus": str(cpus + 1),
            "object-store-memory": str(store),
            "resources": json.dumps(json.dumps({TRAINER: 1})),
        },
        "template": {**pod, "spec": {**pod["spec"], **_placement(launch)}},
    }


def _placement(launch: Launch) -> dict[str, Any]:
    """Where trainers may be; head and submitter are nothing for a dear node."""
    tolerations = [_toleration(text) for text in launch.tolerations]
    return {
        **({"nodeSelector": dict(launch.node_selectors)} if launch.node_selectors else {}),
        **({"tolerations": tolerations} if tolerations else {}),
    }


def _ray_container(launch: Launch, name: str, resources: Mapping[str, str]) -> dict[str, Any]:
    mounts = {"tmp": "/tmp", "shm": "/dev/shm", "runs": RUNS}  # noqa: S108 - a folder of the pod's own
    return {
        **_container(launch, name, resources),
        "envFrom": [{"secretRef": {"name": secret}} for secret in launch.secrets],
        "volumeMounts": [
            *({"name": volume, "mountPath": path} for volume, path in mounts.items()),
            {"name": "config", "mountPath": RUN_FILE.rpartition("/")[0], "readOnly": True},
        ],
    }


def as_yaml(*objects: dict[str, Any]) -> str:
    """Documents of one file."""
    text: str = yaml.safe_dump_all(objects, sort_keys=False, width=120)
    return text


def _submitter(launch: Launch) -> dict[str, Any]:
    return _container(launch, "ray-job-submitter", {"cpu": "500m", "memory": "1Gi"}) | {
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - as above
    }


def _container(launch: Launch, name: str, resources: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "image": launch.image,
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}],  # noqa: S108 - as above
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _pod(launch: Launch, name: str, container: dict[str, Any], volumes: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """A pod template. Whoever may not reach Kubernetes' API needs no token for it."""
    spec: dict[str, Any] = {
        "serviceAccountName": launch.service_account or "tokenformer",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": launch.grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": list(volumes) or [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
    }
    spec |= {"priorityClassName": launch.priority} if launch.priority else {}
    return {"metadata": {"labels": _labels(launch, name)}, "spec": spec}


def _volumes(launch: Launch, name: str, store_bytes: int) -> tuple[dict[str, Any], ...]:
    return (
        {"name": "tmp", "emptyDir": {"sizeLimit": "16Gi"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(store_bytes + SHM_SPARE)}},
        {"name": "runs", "persistentVolumeClaim": {"claimName": launch.volume}},
        {"name": "config", "configMap": {"name": name}},
    )


def _probes(path: str, port: int) -> dict[str, Any]:
    """Ray's own answers, asked by the node: KubeRay's probes would need wget in the image."""
    return {
        name: {
            "httpGet": {"path": path, "port": port},
            "timeoutSeconds": 5,
            "periodSeconds": 5,
            "failureThreshold": times,
        }
        for name, times in (("startupProbe", 60), ("readinessProbe", 10), ("livenessProbe", 24))
    }


def _toleration(text: str) -> dict[str, str]:
    """KEY[=VALUE]:EFFECT, as `kubectl taint` has it."""
    key, _, effect = text.rpartition(":")
    key, equals, value = key.partition("=")
    return {
        "key": key,
        "operator": "Equal" if equals else "Exists",
        **({"value": value} if equals else {}),
        "effect": effect,
    }


def _metadata(launch: Launch, name: str) -> dict[str, Any]:
    return {"name": name, "namespace": launch.namespace, "labels": _labels(launch, name)}


def _labels(launch: Launch, name: str) -> dict[str, str]:
    return {**launch.labels, "tokenformer/run": name}


def _store_bytes(config: Config) -> int:
    """Ray's object store, which is in the shared memory of a pod: windows in flight."""
    return max(OBJECT_STORE_BYTES, 2 * config.data.memory_mb * 2**20)
