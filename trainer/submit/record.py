"""What was launched and what became of it: one small file in the run directory, and the run's own last word."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.errors import ConfigError
from trainer.run_dir import RunDir, write_atomic
from trainer.submit.order import launch_folder

State = Literal["waiting", "running", "finished", "stopped", "failed", "unknown"]
OVER: tuple[State, ...] = ("finished", "stopped", "failed", "unknown")
ENDS = ("finished", "stopped")  # names of the events that a run closes with


@dataclass(frozen=True)
class Launched:
    """to: kind of cluster, or its address. job: the cluster's own id. submitted: UTC, ISO 8601."""

    to: str
    job: str
    run_dir: str
    workers: int
    submitted: str

    @property
    def output(self) -> Path:
        """What the job's processes said."""
        return launch_folder(Path(self.run_dir)) / "output.log"

    @property
    def stop_file(self) -> Path:
        """There when a person asked the run to end: it is not begun again."""
        return launch_folder(Path(self.run_dir)) / "stop"


@dataclass(frozen=True)
class Status:
    """reason: why it waits or failed, in the cluster's words. progress: the newest line of metrics.jsonl that tells of
    training, {} before."""

    state: State
    reason: str
    progress: dict[str, Any]

    def line(self) -> str:
        """For a person."""
        parts = [self.state + (f" ({self.reason})" if self.reason else "")]
        if self.progress:
            parts.append(f"step {self.progress['step']}")
            loss, speed = self.progress.get("loss"), self.progress.get("examples_per_second")
            parts += [f"loss {loss:.3f}"] if loss is not None else []
            parts += [f"{speed:.0f} ex/s"] if speed is not None else []
        return " · ".join(parts)


def write(launched: Launched) -> None:
    """Durable when this returns."""
    write_atomic(_path(launched.run_dir), json.dumps(asdict(launched), indent=2) + "\n")


def read(run_dir: str) -> Launched:
    """Raises ConfigError: nothing was submitted from there."""
    try:
        found = json.loads(_path(run_dir).read_text(encoding="utf-8"))
        return Launched(**found)
    except (OSError, ValueError, TypeError):
        raise ConfigError(
            f"run directory {run_dir} has no record of a submitted job → `submit` writes one → name the run directory "
            "that it printed"
        ) from None


def last_lines(run_dir: str, since: float = 0.0) -> tuple[str, dict[str, Any]]:
    """(the event that closed the newest start of the run, "" where there is none since then; its newest train line or
    {}). Lines that are half written are passed over. since: seconds since 1970."""
    end, progress = "", {}
    try:
        lines = RunDir(run_dir, "").metrics.read_text(encoding="utf-8").splitlines()
    except OSError:
        return "", {}
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line.get("kind") == "train":
            progress = line
        if line.get("kind") in ("train", "checkpoint") or line.get("event") in ("resumed", "init_from"):
            end = ""
        elif line.get("event") in ENDS and line["time"] >= since:
            end = line["event"]
    return end, progress


def _path(run_dir: str) -> Path:
    return launch_folder(Path(run_dir)) / "launch.json"
