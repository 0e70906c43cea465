"""What one training process is asked to do: the order that every launcher hands to `worker.run_worker`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.telemetry.updates import Screen

Resume = Literal["never", "auto", "must"]
BackendName = Literal["inline", "torchrun", "ray"]


class StopSignal(Protocol):
    """Somebody asked the run to end early (Ctrl-C, SIGTERM). Picklable; read once a step, so reading costs nothing."""

    def requested(self) -> bool:
        """True from the first request on."""
        ...


@dataclass(frozen=True)
class Job:
    """Picklable; the same on every rank. Rank, world size and the rendezvous come from the environment (RANK,
    WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT); when absent the process is alone.

    run_dir:   of the run, an absolute path or URI; it exists and has been checked against `resume`.
    resume:    "never": start anew; "auto": from the newest complete checkpoint, if any; "must": there has to be one.
    init_from: the run directory of `[init]`, an absolute path, or None.
    dry_run:   two real batches through plan, step, checkpoint and resume; `run_dir` is then a temporary folder.
    profile:   a trace of a few steps is written to the run directory.
    backend:   the launcher's name, for telling the user.
    feed_name: name of the Ray actor that hands out windows, "" where there is none.
    threads:   of this process for torch, chosen by the launcher.
    began:     when the command was given, seconds since 1970; 0 = when the process comes to train.
    screen:    where this process speaks, besides its log; None on ranks that have nobody to speak to.
    overrides: keys of the run file as typed, for env.json.
    """

    config: Config
    run_dir: str
    stop: StopSignal
    resume: Resume = "never"
    init_from: str | None = None
    dry_run: bool = False
    profile: bool = False
    backend: BackendName = "inline"
    feed_name: str = ""
    threads: int = 1
    began: float = 0.0
    screen: Screen | None = None
    overrides: tuple[str, ...] = ()
