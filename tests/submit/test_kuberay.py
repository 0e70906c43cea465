"""`submit --to kuberay`, with kubectl replaced where the process begins: what it is asked, and what becomes of its
answers. No cluster is behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import Call, call  # noqa: F401 - a fixture
from tests.submit.kubectl import Kubectl
from trainer.config import load_config
from trainer.run_dir import RunDir
from trainer.submit import kuberay, record
from trainer.submit.order import Order
from trainer.submit.record import Launched

RUN_FILE = Path(__file__).parents[2] / "deploy" / "k8s" / "base" / "run.toml"
CLUSTER: dict[str, Any] = {"rayClusterName": "c-1", "jobId": "c-1-x"}
UNSCHEDULED = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes:  insufficient\nnvidia.com/gpu"}
UNADMITTED = {"type": "QuotaReserved", "status": "False", "message": "insufficient quota"}
BAD_IMAGE = [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kubectl:
    made = Kubectl(tmp_path / "bin")
    monkeypatch.setenv("PATH", made.path)
    return made


@pytest.fixture
def order(tmp_path: Path) -> Order:
    run_dir = tmp_path / "runs" / "My run"
    (run_dir / "launch").mkdir(parents=True)
    return Order(load_config(RUN_FILE), run_dir, "tokenformer-My run", "python", "/code", tmp_path)


@pytest.fixture
def launched(kubectl: Kubectl, order: Order) -> Launched:
    kubectl.answer("create -o", {"metadata": {"uid": "u-1"}})
    found = kuberay.submit(order)
    record.write(found)
    return found


def tell(kubectl: Kubectl, launched: Launched, suspend: bool = False, **status: Any) -> None:
    """How the RayJob is from now on."""
    name = launched.job.split("/")[1]
    kubectl.answer(f"get rayjob {name}", {"metadata": {"uid": "u-1"}, "spec": {"suspend": suspend}, "status": status})


def test_job_and_run_file_are_created_and_the_run_file_goes_with_the_job(
    kubectl: Kubectl, launched: Launched, order: Order
) -> None:
    (first, job), (second, config) = [(arguments, yaml.safe_load(text)) for arguments, text in kubectl.asked()]
    assert first == ["--namespace=default", "create", "-f", "-", "-o", "json"]
    assert second == ["--namespace=default", "create", "-f", "-"]
    assert (job["kind"], config["kind"]) == ("RayJob", "ConfigMap")
    name = job["metadata"]["name"]
    assert launched.job == f"default/{name}"
    assert name.startswith("tokenformer-my-run-")
    assert config["metadata"]["ownerReferences"][0] | {"uid": "u-1", "name": name} == {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "name": name,
        "uid": "u-1",
    }
    assert config["data"]["run.toml"].startswith("[schema]")
    volumes = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["volumes"]
    assert {"name": "config", "configMap": {"name": config["metadata"]["name"]}} in volumes
    assert f"--run-dir /runs/{name} --resume auto" in job["spec"]["entrypoint"]


def test_a_run_that_goes_on_keeps_its_place_and_another_name(
    kubectl: Kubectl, launched: Launched, order: Order
) -> None:
    again = kuberay.submit(order)
    before, after = [yaml.safe_load(text) for _, text in kubectl.asked() if "kind: RayJob\n" in text[:40]]
    assert again.job != launched.job
    assert before["spec"]["entrypoint"] == after["spec"]["entrypoint"]


def test_nothing_is_left_where_kubernetes_refuses(kubectl: Kubectl, order: Order) -> None:
    kubectl.answer("create", err="Error from server (Forbidden): no\nconfigmaps")
    kubectl.answer("create -o", {"metadata": {"uid": "u-1"}})
    with pytest.raises(kuberay.KubernetesError, match="no configmaps → Kubernetes refused"):
        kuberay.submit(order)
    assert kubectl.asked()[-1][0][1:3] == ["delete", "rayjob"]
    kubectl.answer("create -o", err="error: no matches for kind RayJob")
    with pytest.raises(kuberay.KubernetesError, match="no matches"):
        kuberay.submit(order)


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ({}, "waiting"),
        ({"jobDeploymentStatus": "Initializing", **CLUSTER}, "waiting (0/3 nodes: insufficient nvidia.com/gpu)"),
        ({"suspend": True, "jobDeploymentStatus": "Suspended"}, "waiting (insufficient quota)"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", **CLUSTER}, "running"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "finished"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "stopped"),
        ({"jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": "exit\ncode 3"}, "failed (exit code 3)"),
    ],
)
def test_status_says_where_it_is_and_why(
    kubectl: Kubectl, launched: Launched, found: dict[str, Any], line: str
) -> None:
    tell(kubectl, launched, **found)
    kubectl.answer("get pods", {"items": [{"status": {"conditions": [UNSCHEDULED]}}]})
    kubectl.answer("get workloads.kueue.x-k8s.io", {"items": [{"status": {"conditions": [UNADMITTED]}}]})
    assert kuberay.status(launched).line() == line


def test_a_bad_image_and_a_missing_kueue_are_not_mistaken(kubectl: Kubectl, launched: Launched) -> None:
    tell(kubectl, launched, jobDeploymentStatus="Initializing", **CLUSTER)
    kubectl.answer("get pods", {"items": [{"status": {"containerStatuses": BAD_IMAGE}}]})
    assert kuberay.status(launched).reason == "ImagePullBackOff"
    tell(kubectl, launched, suspend=True)
    kubectl.answer("get workloads.kueue.x-k8s.io", err='error: the server doesn\'t have a resource type "workloads"')
    assert kuberay.status(launched).reason == "suspended"
    kubectl.answer("get rayjob", err='Error from server (NotFound): rayjobs.ray.io "x" not found')
    assert kuberay.status(launched).state == "unknown"


def test_logs_are_added_once_each(kubectl: Kubectl, launched: Launched) -> None:
    stamp = "2026-11-25T16:00:0{}.000000001Z"
    kubectl.answer("logs", f"{stamp.format(1)} step 1\n{stamp.format(2)} step 2\n")
    kuberay.fetch_output(launched)
    kubectl.answer(
        "logs", f"{stamp.format(2)} step 2\n{stamp.format(2).replace('1Z', '2Z')} \n{stamp.format(3)} step  3\n"
    )
    kuberay.fetch_output(launched)
    kubectl.answer("logs", err="Error from server (NotFound): no pod")
    kuberay.fetch_output(launched)
    assert launched.output.read_text() == "step 1\nstep 2\n\nstep  3\n"
    assert f"--since-time={stamp.format(2)}" in kubectl.asked()[-2][0]


def test_a_stop_reaches_the_command_on_the_head_and_a_job_that_waits_is_taken_back(
    kubectl: Kubectl,
    launched: Launched,
    call: Call,  # noqa: F811
    tmp_path: Path,
) -> None:
    tell(kubectl, launched, jobDeploymentStatus="Running", **CLUSTER)
    kubectl.answer("get pods -l ray.io/cluster=c-1,ray.io/node-type=head", "pod/c-1-head\n")
    assert call(tmp_path, "submit", "--stop", launched.run_dir).code == 0
    asked = kubectl.asked()[-1][0]
    assert asked[1:6] == ["exec", "pod/c-1-head", "-c", "ray-head", "--"]
    assert asked[6:] == ["ray", "job", "stop", "--no-wait", "--address", "http://127.0.0.1:8265", "c-1-x"]
    tell(kubectl, launched, suspend=True)
    assert call(tmp_path, "submit", "--stop", launched.run_dir).code == 0
    assert kubectl.asked()[-1][0][1:] == ["delete", "rayjob", launched.job.split("/")[1], "--wait=false"]
    kubectl.answer("get rayjob", err="Error from server (NotFound): gone")
    ended = call(tmp_path, "submit", "--status", launched.run_dir)
    assert ended.out == f"{launched.job} on kuberay: stopped\n"


def test_a_job_is_followed_by_what_its_pods_say(
    kubectl: Kubectl,
    launched: Launched,
    call: Call,  # noqa: F811
    tmp_path: Path,
) -> None:
    tell(kubectl, launched, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    kubectl.answer("logs", "2026-11-25T16:00:00Z step 1\n")
    RunDir(launched.run_dir).metrics.write_text(json.dumps({"kind": "train", "step": 7, "time": 1.0}) + "\n")
    ended = call(tmp_path, "submit", "--logs", launched.run_dir)
    assert ended.out == f"step 1\n{launched.job}: finished · step 7\n"


def test_print_needs_neither_cluster_nor_kubectl_and_makes_nothing(
    call: Call,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    common = ("submit", "--config", str(RUN_FILE), "--print", "--to")
    ended = call(tmp_path, *common, "kuberay", "--launch.queue", "ads", "--launch.workers", "4")
    assert ended.code == 0, ended.err
    config, job = yaml.safe_load_all(ended.out)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "ads"
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 4
    assert config["data"]["run.toml"].startswith("[schema]")
    slurm = call(tmp_path, *common, "slurm")
    assert slurm.out.startswith("#!/bin/bash\n#SBATCH --job-name=tokenformer-run\n")
    assert list(tmp_path.iterdir()) == []
    refused = call(tmp_path, *common, "kuberay", "--launch.image", "", "--launch.tolerations", '["a b"]')
    assert refused.code == 2
    assert "launch.tolerations" in refused.err


def test_without_kubectl_it_is_said_how_to_go_on(order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(kuberay.KubernetesError, match="kubectl is not on this machine"):
        kuberay.submit(order)
