"""From one order to one or many training processes: which launcher, how many workers, how many threads, and why."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainer import machine
from trainer.config_sections import Launch
from trainer.errors import ConfigError
from trainer.job import BackendName, Job
from trainer.stop import Interrupts, LocalStop

log = logging.getLogger(__name__)
Entry = Callable[[Job], "dict[str, Any] | None"]


def train(job: Job) -> dict[str, Any] | None:
    """The entry of every training process; imports torch only there, after the thread settings."""
    from trainer.worker import run_worker  # noqa: PLC0415

    return run_worker(job)


@dataclass(frozen=True)
class Choice:
    """What was chosen. workers: training processes in all. gpus: used, one a worker. reasons: a line each."""

    backend: BackendName
    workers: int
    threads: int
    gpus: int
    reasons: tuple[str, ...]


def choose(launch: Launch, env: Mapping[str, str] | None = None) -> Choice:
    """Choose launcher, workers and threads from `[launch]`, the environment and the machine.

    Raises ConfigError when what is asked for contradicts the environment.
    """
    env = os.environ if env is None else env
    cores = machine.cores()
    gpus, gpu_reason = machine.gpus()
    if launch.ray_address and launch.gpus:  # this is not where it trains
        gpus, gpu_reason = launch.workers, "launch.gpus"
    under_torchrun = "RANK" in env and "WORLD_SIZE" in env
    if launch.backend == "torchrun" and not under_torchrun:
        raise ConfigError(
            "launch.backend = 'torchrun', but RANK and WORLD_SIZE are not in the environment → torchrun sets them "
            "→ start with `torchrun --nproc-per-node N -m trainer train …`, or use backend 'auto'"
        )
    if under_torchrun and launch.backend in ("auto", "torchrun"):
        return _torchrun(launch, env, cores, gpus, gpu_reason)
    if launch.workers:
        workers, why = launch.workers, "launch.workers"
    elif launch.backend == "inline":
        workers, why = 1, "inline is this one process"
    elif gpus:
        workers, why = gpus, gpu_reason
    else:
        workers, why = min(2, cores), f"{gpu_reason}; two where there are two cores"
    threads, threads_why = _threads(launch, cores, workers)
    if launch.backend != "auto":
        backend, backend_why = launch.backend, "launch.backend"
    elif workers > 1:
        backend, backend_why = "ray", f"{workers} workers and no torchrun environment"
    else:
        backend, backend_why = "inline", "one worker needs no launcher"
    return Choice(
        backend,
        workers,
        threads,
        gpus,
        (
            f"backend {backend} ({backend_why})",
            f"workers {workers} ({why})",
            f"threads {threads} a worker ({threads_why})",
        ),
    )


def run(
    job: Job, choice: Choice, stop: LocalStop, interrupts: Interrupts, entry: Entry = train
) -> dict[str, Any] | None:
    """Run `entry(job)` in every process as chosen, to its end. Returns what rank 0's returned, None elsewhere.

    Errors of the workers arrive as they were raised.
    """
    job = replace(job, backend=choice.backend, threads=choice.threads, stop=stop)
    set_threads(choice.threads)
    if choice.backend == "ray":
        from trainer.launch_ray import run_on_ray  # noqa: PLC0415 - Ray is imported where it is used

        return run_on_ray(job, choice, stop, interrupts, entry)
    interrupts.hand_over()
    return entry(job)


def announce(choice: Choice) -> None:
    """Say what was chosen, each with its reason."""
    for reason in choice.reasons:
        log.info("%s", reason)


def set_threads(threads: int) -> None:
    """Threads of the libraries that read them from the environment when imported. The user's own settings stand."""
    for name, value in thread_environment(threads).items():
        os.environ.setdefault(name, value)


def thread_environment(threads: int) -> dict[str, str]:
    """OpenMP's threads sleep while they wait for each other. By default they spin, and a spinning thread takes the core
    from the one it waits for as soon as a reader or a neighbour runs too: steps were ten times slower then
    (docs/benchmarks)."""
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}


def _torchrun(launch: Launch, env: Mapping[str, str], cores: int, gpus: int, gpu_reason: str) -> Choice:
    world_size = int(env["WORLD_SIZE"])
    overruled = (
        "" if launch.workers in (0, world_size) else f"; launch.workers = {launch.workers} is for other launchers"
    )
    here = int(env.get("LOCAL_WORLD_SIZE", world_size))
    threads, why = _threads(launch, cores, here)
    reasons = (
        "backend torchrun (RANK and WORLD_SIZE are in the environment)",
        f"workers {world_size} (torchrun started them{overruled}; {gpu_reason})",
        f"threads {threads} a worker ({why})",
    )
    return Choice("torchrun", world_size, threads, gpus, reasons)


def _threads(launch: Launch, cores: int, workers_here: int) -> tuple[int, str]:
    if launch.threads:
        return launch.threads, "launch.threads"
    return max(1, cores // workers_here), f"{cores} cores over {workers_here} worker{'s' if workers_here > 1 else ''}"
