"""What is given to Kubernetes: it has the structure that KubeRay wants, pods may do little, and no text becomes more
than text. No cluster ran it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.submit.rayjob_schema import RAY_JOB
from trainer.config import Config, load_config
from trainer.launch_ray import TRAINER
from trainer.submit.kuberay_job import as_yaml, config_map, in_pods, job_name, problems, ray_job

K8S = Path(__file__).parents[2] / "deploy" / "k8s"
RUN_FILES = {"cpu": K8S / "base" / "run.toml", "gpu": K8S / "overlays" / "gpu" / "run.toml"}
NAME = "tokenformer-example"


def configured(overlay: str = "cpu", **launch: Any) -> Config:
    config = load_config(RUN_FILES[overlay])
    return replace(config, launch=config.launch.model_copy(update=launch))


def job(overlay: str = "cpu", **launch: Any) -> dict[str, Any]:
    return ray_job(configured(overlay, **launch), NAME, "/runs/example")


def templates(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = found["spec"]["rayClusterSpec"]
    return {
        "submitter": found["spec"]["submitterPodTemplate"],
        "head": cluster["headGroupSpec"]["template"],
        "workers": cluster["workerGroupSpecs"][0]["template"],
    }


@pytest.mark.parametrize("overlay", RUN_FILES)
def test_an_overlay_is_what_submit_would_make_of_its_run_file(overlay: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which renders kustomizations, is not installed")
    done = subprocess.run(
        [kubectl, "kustomize", K8S / "overlays" / overlay], capture_output=True, text=True, timeout=60, check=True
    )
    found = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
    assert set(found) == {
        "RayJob",
        "ConfigMap",
        "ServiceAccount",
        "PersistentVolumeClaim",
        "NetworkPolicy",
        "PodMonitor",
        "PrometheusRule",
    }
    assert found["RayJob"] == job(overlay)
    assert found["ConfigMap"]["metadata"]["name"] == NAME
    assert found["ConfigMap"]["data"] == {"run.toml": RUN_FILES[overlay].read_text()}
    assert found["PersistentVolumeClaim"]["metadata"]["name"] == configured(overlay).launch.volume
    assert found["ServiceAccount"]["metadata"]["name"] == "tokenformer"


def test_every_file_of_deploy_k8s_is_yaml_and_named_by_a_kustomization() -> None:
    for folder in (K8S / "namespace", K8S / "base", K8S / "overlays" / "cpu", K8S / "overlays" / "gpu"):
        held = yaml.safe_load((folder / "kustomization.yaml").read_text())
        named = {name for name in held["resources"] if not name.startswith("..")}
        named |= {name for each in held.get("configMapGenerator", ()) for name in each["files"]}
        assert {path.name for path in folder.iterdir() if path.is_file()} == named | {"kustomization.yaml"}
        assert all((folder / name).exists() for name in held["resources"])
        for path in folder.glob("*.yaml"):
            assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize("overlay", RUN_FILES)
def test_the_run_file_of_the_pods_is_one_that_submit_would_leave_as_it_is(overlay: str) -> None:
    config = configured(overlay)
    assert problems(config) == []
    assert in_pods(config) == config


@pytest.mark.parametrize("launch", [{}, {"queue": "ads", "priority": "high"}])
@pytest.mark.parametrize("overlay", RUN_FILES)
def test_the_job_has_kuberay_s_structure(overlay: str, launch: dict[str, Any]) -> None:
    found = job(overlay, **launch)
    jsonschema.validate(found, RAY_JOB)
    assert ("suspend" in found["spec"]) is bool(launch)
    for template in templates(found).values():
        spec = template["spec"]
        mounted = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}


@pytest.mark.parametrize("overlay", RUN_FILES)
def test_the_pods_are_kubernetes_own(overlay: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="Kubernetes' schemas are not installed")
    for template in templates(job(overlay, node_selectors={"pool": "train"}, priority="high")).values():
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
        kubernetes_validate.validate(pod, "1.34", strict=True)
    for path in (*(K8S / "namespace").glob("*.yaml"),):
        each = yaml.safe_load(path.read_text())
        if each["apiVersion"] in ("v1", "networking.k8s.io/v1"):
            kubernetes_validate.validate(each, "1.34", strict=True)


def test_pods_may_do_little() -> None:
    for name, template in templates(job()).items():
        spec = template["spec"]
        (container,) = spec["containers"]
        assert template["metadata"]["labels"]["tokenformer/run"] == NAME  # what policy and monitor look for
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec["automountServiceAccountToken"]
        allowed = container["securityContext"]
        assert allowed["readOnlyRootFilesystem"]
        assert not allowed["allowPrivilegeEscalation"]
        assert allowed["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert not any("hostPath" in volume for volume in spec["volumes"])
        assert ("envFrom" in container) is (name != "submitter")
        if name != "submitter":
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
            shm = next(volume for volume in spec["volumes"] if volume["name"] == "shm")["emptyDir"]
            store = job()["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["object-store-memory"]
            assert shm["medium"] == "Memory"
            assert int(shm["sizeLimit"]) > int(store)


def test_there_is_one_trainer_a_worker_pod_and_none_on_the_head() -> None:
    cluster = job("gpu", workers=6, node_selectors={"pool": "train"})["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 6
    # As a shell reads KubeRay's `ray start --resources=VALUE`.
    said = subprocess.run(
        ["/bin/sh", "-c", f"printf %s {workers['rayStartParams']['resources']}"], capture_output=True, check=True
    )
    assert json.loads(said.stdout) == {TRAINER: 1}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert workers["template"]["spec"]["nodeSelector"] == {"pool": "train"}
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert "nodeSelector" not in head
    assert "nvidia.com/gpu" not in head["containers"][0]["resources"]["limits"]


@given(text=st.text(max_size=60))
@settings(max_examples=40, deadline=None)
def test_text_stays_text(text: str) -> None:
    """Whatever somebody calls a run or writes into a run file."""
    config = configured(labels={"team": text}, image=text)
    config = replace(config, data=config.data.model_copy(update={"rows": f"s3://{text}"}))
    name = job_name(f"tokenformer-{text}", "0123abcd")
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", name)
    objects = [config_map(config, name), ray_job(config, name, f"/runs/{name}")]
    written = as_yaml(*objects)
    assert list(yaml.safe_load_all(written)) == objects
    assert len(objects[1]["spec"]["entrypoint"].split()) == 8
    if not re.fullmatch(r"[A-Za-z0-9._-]*", text, re.ASCII):
        assert any("launch.labels 'team'" in problem for problem in problems(config))


def test_what_no_pod_can_do_is_said_all_at_once() -> None:
    config = configured(
        image="", volume="", memory_gb=0.0, time_limit_minutes=5, labels={"ray.io/x": "y"}, node_selectors={"a b": ""}
    )
    config = replace(config, data=config.data.model_copy(update={"rows": "runs/rows"}))
    found = "\n".join(problems(config))
    for words in (
        "image is",
        "volume is",
        "memory_gb is",
        "time_limit",
        "'ray.io/x'",
        "'a b'",
        "data.rows = 'runs/rows'",
    ):
        assert words in found
    assert len(found.splitlines()) == 7
