"""`checkpoint list`: what a run has, from the small files alone: no tensor is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import storage
from pipelines.batch import Position
from trainer.checkpoint import manifest
from trainer.checkpoint.folder import COMMIT, Folder, StepDir, below
from trainer.checkpoint.manifest import Commit
from trainer.checkpoint.state import read_state
from trainer.checkpoint_verbs.source import Place
from trainer.errors import CheckpointError

Metrics = Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class Listed:
    """One checkpoint. problem: why it is not complete, "" where it is; the rest is then what is known. kind: "full" or
    "delta". base: what a delta is read over, "" = nothing. time: of its commit, seconds since 1970. bytes: of its own
    files. tasks: {task: metrics} of the evaluation at its step, None where there was none. resumed_from: checkpoints
    its model went on from, oldest first."""

    name: str
    location: str
    step: int
    problem: str = ""
    kind: str = ""
    base: str = ""
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
        known = {"path": self.location, "step": self.step, "complete": not self.problem}
        if self.problem:
            return known | {"problem": self.problem}
        return known | {
            "kind": self.kind,
            "base": self.base or None,
            "examples": self.examples,
            "rows": self.rows,
            "time": self.time,
            "bytes": self.bytes,
            "world_size": self.world_size,
            "position": None if self.position is None else vars(self.position),
            "tasks": self.tasks,
            "resumed_from": list(self.resumed_from),
        }


def list_checkpoints(place: Place) -> list[Listed]:
    """Every checkpoint of a place, oldest first, incomplete ones too."""
    tasks = {} if place.run is None else _evaluations(place.run.metrics)
    digests: dict[str, str] = {}  # sha256 of the COMMIT of each that can be built on
    listed = []
    for step_dir in place.found:
        listed.append(_listed(step_dir, tasks.get(step_dir.step), digests))
        if not listed[-1].problem:
            digests[step_dir.name] = hashlib.sha256(Folder(step_dir.path).read(COMMIT)).hexdigest()
    return listed


def _listed(step_dir: StepDir, tasks: Metrics | None, digests: Mapping[str, str]) -> Listed:
    name, location, step = step_dir.name, step_dir.path, step_dir.step
    if not step_dir.complete:
        return Listed(name, str(location), step, f"no {COMMIT}: its writing was interrupted, or goes on")
    try:
        commit = manifest.read_commit(location)
        state = read_state(location, commit)
    except CheckpointError as error:
        return Listed(name, str(location), step, error.problems[0])
    files = [COMMIT, *commit.files]
    found = storage.stat_files([str(below(location, file)) for file in files])
    for file, there in zip(files[1:], found[1:], strict=True):
        if there is None or there.size != commit.files[file].bytes:
            held = "missing" if there is None else f"of {there.size} bytes, {commit.files[file].bytes} were committed"
            return Listed(name, str(location), step, f"{file} is {held}")
    base = "" if commit.base is None else commit.base.name
    if commit.base is not None and digests.get(base) != commit.base.sha256:
        return Listed(name, str(location), step, f"its base {base} is not there, not complete, or another one")
    return Listed(
        name=name,
        location=str(location),
        step=step,
        kind=commit.kind,
        base=base,
        examples=state.examples,
        rows=state.rows,
        position=state.position,
        time=found[0].changed / 1e9 if found[0] is not None else 0.0,
        bytes=commit.total_bytes(),
        world_size=state.world_size,
        tasks=tasks or _scores(commit),
        resumed_from=state.resumed_from,
    )


def _scores(commit: Commit) -> Metrics | None:
    """{TASK.METRIC: score} by task."""
    tasks: dict[str, dict[str, float | None]] = {}
    for name, score in commit.scores.items():
        task, _, metric = name.rpartition(".")
        tasks.setdefault(task, {})[metric] = score
    return tasks or None


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
