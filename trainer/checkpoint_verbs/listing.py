"""`checkpoint list`: what a run has, from the small files alone: no tensor is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.batch import Position
from trainer.checkpoint import manifest
from trainer.checkpoint.manifest import Commit
from trainer.checkpoint.state import read_state
from trainer.errors import CheckpointError
from trainer.run_dir import COMMIT, RunDir, StepDir

Metrics = Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class Listed:
    """One checkpoint. problem: why it is not complete, "" where it is; the rest is then what is known. time: seconds
    since 1970 of its commit. bytes: of all its files. tasks: {task: metrics} of the evaluation at its step, None where
    there was none. resumed_from: checkpoints its model went on from, oldest first."""

    path: Path
    step: int
    problem: str = ""
    kind: str = ""
    examples: int = 0
    rows: int = 0
    position: Position | None = None
    time: float = 0.0
    bytes: int = 0
    world_size: int = 0
    tasks: Metrics | None = None
    resumed_from: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not known is left out."""
        known = {"path": str(self.path), "step": self.step, "complete": not self.problem}
        if self.problem:
            return known | {"problem": self.problem}
        position = self.position
        return known | {
            "kind": self.kind,
            "examples": self.examples,
            "rows": self.rows,
            "time": self.time,
            "bytes": self.bytes,
            "world_size": self.world_size,
            "position": None if position is None else vars(position),
            "tasks": self.tasks,
            "resumed_from": list(self.resumed_from),
        }


def list_checkpoints(run: RunDir) -> list[Listed]:
    """Every checkpoint of a run, oldest first, incomplete ones too."""
    tasks = _evaluations(run.metrics)
    return [_listed(step_dir, tasks.get(step_dir.step)) for step_dir in run.step_dirs()]


def kind_of(commit: Commit) -> str:
    """Whether it stands alone."""
    return "full"


def _listed(step_dir: StepDir, tasks: Metrics | None) -> Listed:
    path, step = step_dir.path, step_dir.step
    if not step_dir.complete:
        return Listed(path, step, problem=f"no {COMMIT}: its writing was interrupted, or goes on")
    try:
        commit = manifest.read_commit(path)
        state = read_state(path, commit)
    except CheckpointError as error:
        return Listed(path, step, problem=error.problems[0])
    wrong = [name for name, record in commit.files.items() if _size(path / name) != record.bytes]
    if wrong:
        held = "missing" if _size(path / wrong[0]) is None else "of another size than was committed"
        return Listed(path, step, problem=f"{wrong[0]} is {held}")
    return Listed(
        path=path,
        step=step,
        kind=kind_of(commit),
        examples=state.examples,
        rows=state.rows,
        position=state.position,
        time=(path / COMMIT).stat().st_mtime,
        bytes=commit.total_bytes(),
        world_size=state.world_size,
        tasks=tasks,
        resumed_from=state.resumed_from,
    )


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _evaluations(metrics: Path) -> dict[int, Metrics]:
    """{step: {task: metrics}} of the evaluations in metrics.jsonl; lines that are not whole are passed over."""
    found: dict[int, Metrics] = {}
    if not metrics.is_file():
        return found
    with metrics.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict) and value.get("kind") == "eval" and isinstance(value.get("tasks"), dict):
                found[int(value["step"])] = value["tasks"]
    return found
