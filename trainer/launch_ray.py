"""Training processes under Ray Train v2: an embedded Ray on this machine, or the cluster of `launch.ray_address`.

Everything Ray runs off the main thread, which keeps the signals: neither `ray.init` nor `fit` then installs handlers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import logs, machine
from trainer.errors import ConfigError
from trainer.job import Job
from trainer.launch import thread_environment, train
from trainer.lines import Line
from trainer.ray_errors import lost_workers, original_error
from trainer.restarts import Restarts
from trainer.stalls import Report
from trainer.stop import Interrupts, LocalStop
from trainer.telemetry.updates import At, Phase

if TYPE_CHECKING:
    from trainer.launch import Choice, Entry
    from trainer.ray_link import Message, WorkerEnd

log = logging.getLogger(__name__)
ROOT = str(Path(__file__).resolve().parent.parent)
WATCH_SECONDS = 0.1
TRAINER = "trainer"  # a resource of nodes that are made for training, one a trainer
OBJECT_STORE_BYTES = 2 * 2**30  # windows in flight are smaller; Ray's default would take a third of the memory
# By module, warnings that state what is meant to be: signals stay with the command, a token guards the embedded Ray.
EXPECTED_WARNINGS = {
    "ray._private.worker": "SIGTERM handler is not set",
    "ray._private.authentication.authentication_token_setup": "Token authentication is enabled",
}
QUIET_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths in a run file are relative to where the command was started
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the end, or a lost worker, is noticed
}


def run_on_ray(
    job: Job, choice: Choice, stop: LocalStop, interrupts: Interrupts, entry: Entry
) -> dict[str, Any] | None:
    """Start Ray, run `entry(job)` on the workers, pass on their lines and a stop request, and shut Ray down.

    Returns what rank 0 returned; raises what a worker raised (our own errors as they were), or KeyboardInterrupt when
    asked to stop before Ray was there.
    """
    driver = _Driver(job, choice, stop, entry)
    thread = threading.Thread(target=driver.run, name="ray-driver", daemon=True)
    thread.start()
    interrupts.hand_over()
    armed = False
    while thread.is_alive():  # short waits: a signal handler runs between them
        thread.join(WATCH_SECONDS)
        if driver.connected.is_set() and not armed:
            interrupts.arm()  # connecting, Ray's C++ core puts a crash reporter on SIGTERM
            armed = True
    if driver.error is not None:
        raise driver.error
    return driver.result


class _Driver:
    """The part that runs off the main thread."""

    def __init__(self, job: Job, choice: Choice, stop: LocalStop, entry: Entry) -> None:
        self._job = job
        self._entry = entry
        self._choice = choice
        self._stop = stop
        self._at: At | None = None
        self.connected = threading.Event()
        self.result: dict[str, Any] | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            config = self._job.config
            memory_mb = config.data.memory_mb
            self._show("starting Ray" if not config.launch.ray_address else "joining the Ray of launch.ray_address")
            with ray_session(config.launch.ray_address, self._choice.workers, self._choice.threads, memory_mb):
                self.connected.set()
                if self._stop.requested():
                    raise KeyboardInterrupt
                self.result = self._train_to_the_end()
        except BaseException as error:  # handed to the main thread, which raises it
            self.error = original_error(error)

    def _show(self, phase: str) -> None:
        if self._job.screen is not None:
            self._job.screen.show(Phase(phase))

    def _train_to_the_end(self) -> dict[str, Any] | None:
        """Start after start, each with a link, a feed and processes of its own.

        Not by Ray Train's own retries: they would repeat what no repetition mends, count without looking at the
        checkpoints, and give each start the very order of the first.
        """
        job = self._job
        if not _is_a_run(job, self._entry):
            return self._train(job)
        restarts = Restarts(job, job.config.launch.max_restarts)
        while True:
            try:
                return self._train(job)
            except Exception as error:
                again = None if self._stop.requested() else restarts.next_job(job, error)
                if again is None:
                    raise
                job = again

    def _train(self, job: Job) -> dict[str, Any] | None:
        import ray  # noqa: PLC0415
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

        from trainer.ray_link import Link  # noqa: PLC0415

        workers = f"{self._choice.workers} worker{'s' if self._choice.workers > 1 else ''}"
        self._show(f"starting {workers}: processes, imports")
        self._at = None
        # Beside the command: a worker's host may be lost, and the link must outlive it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        link = ray.remote(num_cpus=0, scheduling_strategy=here)(Link).remote()
        if self._job.screen is not None:
            self._job.screen.follow(lambda: self._at)
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(link, over), name="ray-watch", daemon=True)
        watcher.start()
        try:
            self._fit(link, job)
        except BaseException as error:
            reports: dict[int, Report] = {}
            with contextlib.suppress(ray.exceptions.RayError):
                reports = ray.get(link.reports.remote())
            raise lost_workers(error, reports) or error from error
        finally:
            over.set()
            watcher.join()
        result: dict[str, Any] | None = ray.get(link.result.remote())
        return result

    def _fit(self, link: Any, job: Job) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig  # noqa: PLC0415
        from ray.train.torch import TorchConfig, TorchTrainer  # noqa: PLC0415

        launch, gpus = job.config.launch, self._choice.gpus > 0 or job.config.launch.gpus
        storage = tempfile.mkdtemp(
            prefix="tokenformer-ray-train-"
        )  # Ray Train wants one; our checkpoints go to the run directory
        job = replace(job, stop=None, screen=None, feed_name=f"tokenformer-feed-{uuid.uuid4().hex[:12]}")  # type: ignore[arg-type]
        try:
            TorchTrainer(
                work,
                train_loop_config={
                    "entry": self._entry,
                    "job": job,
                    "link": link,
                    "columns": shutil.get_terminal_size((120, 24)).columns,
                },
                torch_config=TorchConfig(
                    backend="nccl" if gpus else "gloo", timeout_s=max(1, int(launch.timeout_seconds))
                ),
                scaling_config=ScalingConfig(
                    num_workers=self._choice.workers,
                    use_gpu=gpus,
                    resources_per_worker=worker_resources(gpus),
                ),
                run_config=RunConfig(
                    name=f"run-{uuid.uuid4().hex[:8]}",
                    storage_path=storage,
                    failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
                ),
            ).fit()
        finally:
            shutil.rmtree(storage, ignore_errors=True)

    def _watch(self, link: Any, over: threading.Event) -> None:
        """Carry the stop request to the workers, and what they say to the terminal."""
        import ray  # noqa: PLC0415

        told = False
        while True:
            last = over.wait(WATCH_SECONDS)
            if self._stop.requested() and not told:
                ray.get(link.request_stop.remote())
                told = True
            messages, self._at = ray.get(link.take.remote())
            for message in messages:
                self._pass_on(message)
            if last:
                return

    def _pass_on(self, message: Message) -> None:
        screen = self._job.screen
        if isinstance(message, str):
            print(message, flush=True)
        elif isinstance(message, Line):
            if screen is not None:
                screen.line(message)
            else:
                print(message.plain(), file=sys.stderr, flush=True)
        elif screen is not None:
            screen.show(message)


def worker_resources(gpus: bool) -> dict[str, float]:
    """What each training process asks of its node. Nodes that say how many trainers they are for are taken at their
    word; CPUs would let several into one."""
    import ray  # noqa: PLC0415

    counted = {TRAINER: 1.0} if TRAINER in ray.cluster_resources() else {}
    return {"CPU": 1.0, **({"GPU": 1.0} if gpus else {}), **counted}


def _is_a_run(job: Job, entry: Entry) -> bool:
    """And not an evaluation or a dry run, which leave nothing to go on from."""
    return entry is train and not job.dry_run


def work(settings: dict[str, Any]) -> None:
    """In each Ray Train worker: join the link, then the entry. Rank 0's prints and log lines reach the user, and of the
    others what they warn of."""
    import ray  # noqa: PLC0415

    from trainer.ray_link import WorkerEnd  # noqa: PLC0415

    os.environ["COLUMNS"] = str(settings["columns"])
    job: Job = settings["job"]
    link = settings["link"]
    rank = int(os.environ["RANK"])
    with WorkerEnd(link) as end, _speaking_to(end, rank):
        result = settings["entry"](replace(job, stop=end, screen=end if rank == 0 else None))
        if rank == 0:
            ray.get(link.finish.remote(result))


@contextlib.contextmanager
def _speaking_to(end: WorkerEnd, rank: int) -> Iterator[None]:
    """Our log lines into the link; of other ranks than the first only warnings, which are in Ray's log files as well.
    stdout of the first too, that of others is left to those files."""

    def also_here(line: Line) -> None:
        print(line.plain(), file=sys.stderr, flush=True)
        end.line(line)

    host = socket.gethostname()
    logs.to_lines(*((end.line, logging.INFO) if rank == 0 else (also_here, logging.WARNING)), rank, host)
    with contextlib.redirect_stdout(end) if rank == 0 else contextlib.nullcontext():
        yield


def _expected(record: logging.LogRecord) -> bool:
    """False drops the record."""
    return not any(text in record.getMessage() for text in EXPECTED_WARNINGS.values())


def embedded_settings(num_cpus: int, memory_mb: int) -> dict[str, Any]:
    """`ray.init` of a Ray of the command's own. memory_mb: of windows in flight."""
    wanted = max(OBJECT_STORE_BYTES, 2 * memory_mb * 2**20)
    return {
        "num_cpus": num_cpus,
        "include_dashboard": False,
        "object_store_memory": min(wanted, machine.memory_bytes() // 4),
        "_system_config": {
            "enable_metrics_collection": False,
            # What is read is freed at once, not once a second: the next window then gets warm pages, and fresh ones
            # cost more than what is written into them (docs/benchmarks/ingest.md).
            "free_objects_period_milliseconds": 0,
            # Idle readers stay: trainers and actors count as workers too, and a new process imports for seconds.
            "num_workers_soft_limit": 2 * num_cpus + 8,
        },
    }


@contextlib.contextmanager
def ray_session(address: str, workers: int, threads: int, memory_mb: int = 512) -> Iterator[None]:
    """A Ray for one command: embedded and ended with it, or a cluster that is joined and left."""
    quiet = dict(QUIET_ENVIRONMENT)
    if address:
        del quiet["RAY_AUTH_MODE"]  # whether a cluster wants a token is its own affair
    else:
        quiet["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # nobody takes this machine back: a process less a start
    os.environ.update({key: value for key, value in quiet.items() if key not in os.environ})
    import ray  # noqa: PLC0415 - 1.5 s, and it reads the environment when imported

    for name in EXPECTED_WARNINGS:
        logging.getLogger(name).addFilter(_expected)
    search_path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH", "")]))
    if address:
        settings: dict[str, Any] = {
            "address": address,
            "runtime_env": {"env_vars": {**quiet, **thread_environment(threads)}},
        }
    else:
        os.environ["PYTHONPATH"] = search_path  # an embedded Ray's processes inherit the environment
        # Logical CPUs are ours to give: one a worker, and one a core for reading, so that neither starves.
        settings = embedded_settings(workers + machine.cores(), memory_mb)
    try:
        ray.init(log_to_driver=False, logging_level=logging.WARNING, **settings)
    except ConnectionError as error:
        raise ConfigError(
            f"launch.ray_address = '{address}' does not answer ({error}) → it is a running Ray's address "
            "→ correct it, or '' for a Ray of the command's own"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()
