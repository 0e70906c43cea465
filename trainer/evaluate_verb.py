"""The `evaluate` verb: the newest checkpoint of a run, in this one process."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from pipelines.segments import find_segments
from trainer import logs, machine
from trainer.closing_words import say_result
from trainer.config import load_config
from trainer.errors import CheckpointError, ConfigError
from trainer.job import Job
from trainer.launch import set_threads
from trainer.run_dir import RunDir
from trainer.stop import LocalStop


def evaluate(run: str, rows: str | None, collapse: int | None = None) -> None:
    """Score the run's evaluation segments, or all of `rows`, and print the table. collapse: of
    `train.collapse_rows`, None for the run's own. Raises CheckpointError, DataError, or
    ConfigError where there is nothing to score."""
    run_dir = RunDir(Path(run).absolute())
    if not run_dir.config.is_file():
        raise CheckpointError(
            f"'{run}' has no config.toml → every run directory that training began in has one → check --run"
        )
    config = load_config(run_dir.config)
    if collapse is not None:
        config = replace(config, train=config.train.model_copy(update={"collapse_rows": collapse}))
    if not rows and not find_segments(config.data).eval:
        raise ConfigError(
            f"run '{run}' has no evaluation segments → evaluation needs rows to score → name them with --data P"
        )
    logs.to_console(level=logging.WARNING)
    threads = machine.cores()
    set_threads(threads)
    from trainer.worker import run_evaluation  # noqa: PLC0415 - imports torch, which reads the thread settings

    job = Job(config, str(run_dir.path), LocalStop(), resume="must", threads=threads)
    say_result(run_evaluation(job, rows or ""), run)
