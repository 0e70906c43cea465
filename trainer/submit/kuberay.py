"""KubeRay: the RayJob rendered from the run file, and kubectl for the rest, with its own context and credentials."""

from __future__ import annotations

import json
import subprocess
import uuid
from datetime import UTC, datetime
from typing import Any

from trainer.config import Config
from trainer.errors import UserError
from trainer.run_dir import write_atomic
from trainer.submit import kuberay_job
from trainer.submit.kuberay_job import as_yaml
from trainer.submit.order import Order, output_file, stop_file
from trainer.submit.record import Launched, Status, last_lines

ANSWER_SECONDS = 60.0
WAITING = ("", "Initializing", "Suspending", "Suspended", "Retrying", "Waiting", "Scheduling", "Scheduled")


class KubernetesError(UserError):
    """kubectl failed; its own words."""


class GoneError(KubernetesError):
    """What was asked for is not there."""


def problems(config: Config) -> list[str]:
    """What of the run file no pod can do, a line each."""
    return kuberay_job.problems(config)


def script(order: Order) -> str:
    """The objects of the run, as YAML."""
    name = kuberay_job.job_name(order.name, "example")
    return as_yaml(*_objects(order, name, _run_dir_there(order, name)))


def submit(order: Order) -> Launched:
    """Create them. Raises KubernetesError: nothing of them is left then."""
    name = kuberay_job.job_name(order.name, uuid.uuid4().hex[:8])
    there = _run_dir_there(order, name)
    write_atomic(order.folder / "run_dir_there", there)
    for left in (stop_file(order.run_dir), order.folder / "kuberay.at", output_file(order.run_dir)):
        left.unlink(missing_ok=True)
    config, job = _objects(order, name, there)
    write_atomic(order.folder / "kuberay.yaml", as_yaml(config, job))
    namespace = order.config.launch.namespace
    created = json.loads(call(namespace, "create", "-f", "-", "-o", "json", given=as_yaml(job)))
    # Pods wait for their configuration; it goes when the job is deleted.
    owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": name, "uid": created["metadata"]["uid"]}
    config["metadata"]["ownerReferences"] = [owner]
    try:
        call(namespace, "create", "-f", "-", given=as_yaml(config))
    except KubernetesError:
        call(namespace, "delete", "rayjob", name, "--wait=false")
        raise
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Launched("kuberay", f"{namespace}/{name}", str(order.run_dir), order.config.launch.workers, now)


def status(launched: Launched) -> Status:
    """Where the job is. Progress is known where the run directory is on a volume that is mounted here too. Raises
    KubernetesError."""
    namespace, name = launched.job.split("/")
    progress = last_lines(launched.run_dir)[1]
    try:
        job = _job(launched)
    except GoneError:
        if launched.stop_file.exists():
            return Status("stopped", "", progress)
        return Status("unknown", "Kubernetes has no such RayJob any more", progress)
    found = job.get("status", {})
    deployed = found.get("jobDeploymentStatus", "")
    if deployed in WAITING:
        return Status("waiting", _why_it_waits(namespace, name, job), progress)
    if deployed == "Running":
        return Status("running", "", progress)
    if deployed == "Complete":
        return Status("stopped" if found.get("jobStatus") == "STOPPED" else "finished", "", progress)
    return Status("failed", " ".join((found.get("message") or found.get("reason") or deployed).split()), progress)


def stop(launched: Launched) -> None:
    """Ask the run to save and leave; a job that waits is taken back. Raises KubernetesError."""
    namespace, _ = launched.job.split("/")
    found = _job(launched).get("status", {})
    write_atomic(launched.stop_file, "")
    deployed = found.get("jobDeploymentStatus", "")
    if deployed in WAITING:
        take_back(launched)
        return
    head = f"ray.io/cluster={found['rayClusterName']},ray.io/node-type=head"
    pod = next(iter(call(namespace, "get", "pods", "-l", head, "-o", "name").split()), "")
    if not pod:
        raise KubernetesError(
            f"{launched.job} has no head pod ({deployed}) → a stop goes through it → what is over needs none"
        )
    stopping = ("ray", "job", "stop", "--no-wait", "--address", "http://127.0.0.1:8265", found["jobId"])
    call(namespace, "exec", pod, "-c", "ray-head", "--", *stopping)


def take_back(launched: Launched) -> None:
    """Out of the queue."""
    namespace, name = launched.job.split("/")
    call(namespace, "delete", "rayjob", name, "--wait=false")


def fetch_output(launched: Launched) -> None:
    """Bring the run directory's output.log up to date with what the job said."""
    namespace, name = launched.job.split("/")
    mark = launched.output.with_name("kuberay.at")
    after = mark.read_text(encoding="utf-8") if mark.exists() else ""
    since = (f"--since-time={after}",) if after else ()
    try:
        said = call(namespace, "logs", f"job/{name}", "--timestamps", *since)
    except KubernetesError:
        return  # no pod of it yet, or no more: the status says which
    new = [line.partition(" ") for line in said.splitlines() if line.partition(" ")[0] > after]  # `since` is in seconds
    if new:
        with launched.output.open("a", encoding="utf-8") as file:
            file.writelines(f"{text}\n" for _, _, text in new)
        write_atomic(mark, new[-1][0])


def call(namespace: str, *words: str, given: str | None = None) -> str:
    """kubectl; its standard output. Raises KubernetesError with its words."""
    command = ["kubectl", f"--namespace={namespace}", *words]
    try:
        done = subprocess.run(  # noqa: S603 - no shell
            command, input=given, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
    except FileNotFoundError:
        raise KubernetesError(
            "kubectl is not on this machine → jobs are given to Kubernetes by it → install it, or look at what would "
            "be given with --print"
        ) from None
    except subprocess.TimeoutExpired:
        raise KubernetesError(
            f"kubectl did not answer within {ANSWER_SECONDS:.0f} s → the cluster may be out of reach → ask "
            "`kubectl cluster-info`"
        ) from None
    if done.returncode:
        words_of_it = " ".join(done.stderr.split())
        kind = GoneError if "(NotFound)" in words_of_it else KubernetesError
        raise kind(f"kubectl {words[0]}: {words_of_it} → Kubernetes refused → mend [launch] or your context")
    return done.stdout


def _objects(order: Order, name: str, there: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return kuberay_job.config_map(order.config, name), kuberay_job.ray_job(order.config, name, there)


def _run_dir_there(order: Order, name: str) -> str:
    """Where the pods see the run directory: the same place where the volume is mounted here too, that of the job
    before where a run goes on, else a new one."""
    if order.run_dir.is_relative_to(kuberay_job.RUNS):
        return str(order.run_dir)
    before = order.folder / "run_dir_there"
    return before.read_text(encoding="utf-8") if before.exists() else f"{kuberay_job.RUNS}/{name}"


def _job(launched: Launched) -> dict[str, Any]:
    namespace, name = launched.job.split("/")
    found: dict[str, Any] = json.loads(call(namespace, "get", "rayjob", name, "-o", "json"))
    return found


def _why_it_waits(namespace: str, name: str, job: dict[str, Any]) -> str:
    """Kueue's words about quota, or the scheduler's about a pod."""
    cluster = job.get("status", {}).get("rayClusterName")
    if job["spec"].get("suspend"):
        queued = f"kueue.x-k8s.io/job-uid={job['metadata']['uid']}"
        return _conditions(namespace, "workloads.kueue.x-k8s.io", queued) or "suspended"
    if cluster:
        return _conditions(namespace, "pods", f"ray.io/cluster={cluster}")
    return ""


def _conditions(namespace: str, kind: str, label: str) -> str:
    """What the first that is not ready says of it."""
    try:
        items = json.loads(call(namespace, "get", kind, "-l", label, "-o", "json"))["items"]
    except KubernetesError:
        return ""  # no Kueue, or no right to look
    for item in items:
        for container in item.get("status", {}).get("containerStatuses", ()):
            if (
                (waits := container.get("state", {}).get("waiting", {}))
                .get("reason", "")
                .endswith(("BackOff", "Error"))
            ):
                return str(waits["reason"])
        for condition in item.get("status", {}).get("conditions", ()):
            if condition["status"] == "False" and condition["type"] in ("QuotaReserved", "PodScheduled"):
                return " ".join(condition.get("message", condition.get("reason", "")).split())
    return ""
