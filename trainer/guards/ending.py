"""Why a run ended before its data did, and which of its checkpoints is the best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from trainer.checkpoint.folder import spoken
from trainer.checkpoint.manifest import Commit, read_commit
from trainer.checkpoint.retention import best_first, best_metric
from trainer.config import Config
from trainer.errors import CheckpointError, NonFiniteError
from trainer.run_dir import RunDir


@dataclass(frozen=True)
class Ending:
    """error: what to raise once the run is saved; None = it is a good end."""

    reason: Literal["early_stop", "nonfinite"]
    words: str
    error: NonFiniteError | None = None


def how_it_ended(result: dict[str, Any], ending: Ending | None, run_dir: RunDir, config: Config) -> dict[str, Any]:
    """result, of Telemetry.finish, with what the closing words say of this: `ended`, and among the places the best
    checkpoint, where one is kept. Reads the COMMIT files."""
    if config.checkpoint.keep_best:
        result["places"] |= _best_place(run_dir, config)
    return result if ending is None else result | {"ended": ending.words}


def _best_place(run_dir: RunDir, config: Config) -> dict[str, str]:
    commits: dict[str, Commit] = {}
    places = {}
    for found in run_dir.step_dirs():
        if found.complete:
            try:
                commits[found.name] = read_commit(found.path)
            except CheckpointError:  # whoever needs it says what is wrong with it
                continue
            places[found.name] = spoken(found.path)
    task = next(iter(config.schema.tasks), "")
    best = next(iter(best_first(commits, config.checkpoint, task)), None)
    if best is None:
        return {}
    metric, _ = best_metric(config.checkpoint, task)
    return {"best checkpoint": f"{places[best]} ({metric} {commits[best].scores[metric]:.6g})"}
