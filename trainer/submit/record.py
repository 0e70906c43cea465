"""What was launched and what became of it: one small file in the run directory, and the run's own last word."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.errors import ConfigError
from trainer.run_dir import RunDir, write_atomic
from trainer.submit.order import launch_folder, output_file, stop_file

State = Literal["waiting", "running", "finished", "stopped", "failed", "unknown"]
OVER: tuple[State, ...] = ("finished", "stopped", "failed", "unknown")
ENDS = ("finished", "stopped")  # names of the events that a run closes with
TAIL_BYTES = 4 << 20  # of metrics.jsonl: a followed job is asked every two seconds, and the file grows for months


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
        return output_file(Path(self.run_dir))

    @property
    def stop_file(self) -> Path:
        """There when a person asked the run to end: it is not begun again."""
        return stop_file(Path(self.run_dir))


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
    {}), from the end of metrics.jsonl. Lines that are half written are passed over. since: seconds since 1970."""
    end, progress = "", {}
    try:
        with RunDir(run_dir, "").metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            tail = file.read()
    except OSError:
        return "", {}
    for text in tail.decode(errors="replace").splitlines():
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
