"""Which checkpoints stay: the newest, the best, the last of each segment, and all that those are built on."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from trainer.checkpoint.folder import Folder, Location, StepDir, step_dirs
from trainer.checkpoint.manifest import Commit, read_commit
from trainer.config_sections import Checkpoint
from trainer.errors import CheckpointError

log = logging.getLogger(__name__)

# Metrics of an evaluation that checkpoints are compared by, and whether less is better.
LESS_IS_BETTER = {"ne": True, "loss": True, "auc": False, "gauc": False}


def prune(place: Location, newest: int, config: Checkpoint, task: str) -> None:
    """Removes what need not stay of the checkpoints up to step `newest`, and what interrupted saves left. task: the
    first one. One whose COMMIT cannot be read is left for its user to look at."""
    found = [step_dir for step_dir in step_dirs(place) if step_dir.step <= newest]
    commits = {}
    for step_dir in found:
        if step_dir.complete:
            try:
                commits[step_dir.name] = read_commit(step_dir.path)
            except CheckpointError as error:
                log.warning("left alone: %s", error)
    kept = keep(commits, config, task)
    for step_dir in _newest_first(found):  # a difference goes before its base
        if step_dir.complete and (step_dir.name in kept or step_dir.name not in commits):
            continue
        log.info("removed: %s checkpoint %s", "older" if step_dir.complete else "incomplete", step_dir.name)
        Folder(step_dir.path).remove()


def keep(commits: Mapping[str, Commit], config: Checkpoint, task: str) -> set[str]:
    """Names of those that stay."""
    names = sorted(commits, key=lambda name: commits[name].step)
    kept = set(names[-config.keep :])
    if config.keep_best:
        kept.update(best_first(commits, config, task)[: config.keep_best])
    last_of = {commits[name].segment: name for name in names}  # the last one of a segment wins
    by_step = sorted(last_of.values(), key=lambda name: commits[name].step)
    kept.update(by_step[-config.keep_segments :] if config.keep_segments else [])
    for name in reversed(names):  # a base is older than what is built on it
        base = commits[name].base
        if name in kept and base is not None:
            kept.add(base.name)
    return kept & commits.keys()


def best_metric(config: Checkpoint, task: str) -> tuple[str, int]:
    """(TASK.METRIC of `best`, the sign of what makes it better: 1 where less is). task: the first one."""
    metric = config.best if "." in config.best else f"{task}.{config.best}"
    return metric, 1 if LESS_IS_BETTER[metric.rpartition(".")[2]] else -1


def best_first(commits: Mapping[str, Commit], config: Checkpoint, task: str) -> list[str]:
    """Names of those with a score of `best`; of two that are equal the older one first."""
    metric, sign = best_metric(config, task)
    names = sorted(commits, key=lambda name: commits[name].step)
    scored = [name for name in names if metric in commits[name].scores]
    return sorted(scored, key=lambda name: sign * commits[name].scores[metric])


def _newest_first(found: list[StepDir]) -> list[StepDir]:
    return sorted(found, key=lambda step_dir: -step_dir.step)
