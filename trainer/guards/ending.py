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


def how_it_ended(ending: Ending | None, run_dir: RunDir, config: Config) -> dict[str, Any]:
    """For the closing words: `ended`, a line each; what there is to say. Reads the COMMIT files."""
    lines = [] if ending is None else [ending.words]
    if config.checkpoint.keep_best:
        lines += _best_line(run_dir, config)
    return {"ended": lines} if lines else {}


def _best_line(run_dir: RunDir, config: Config) -> list[str]:
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
    best = best_first(commits, config.checkpoint, task)[:1]
    metric, _ = best_metric(config.checkpoint, task)
    return [f"best checkpoint: {places[name]} ({metric} {commits[name].scores[metric]:.6g})" for name in best]
