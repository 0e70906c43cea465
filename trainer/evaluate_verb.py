"""The `evaluate` verb: the newest checkpoint of a run, in this one process."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.segments import find_segments
from trainer import logs, machine
from trainer.closing_words import WIDE, say_result
from trainer.config import load_config
from trainer.errors import CheckpointError, ConfigError
from trainer.job import Job
from trainer.launch import set_threads
from trainer.prediction_files import read_manifest, require_free
from trainer.run_dir import RunDir
from trainer.stop import LocalStop
from trainer.telemetry.closing import NUMBERS
from trainer.telemetry.console import number
from trainer.wanted import OTHER, Wanted


def evaluate(
    run: str,
    rows: str | None,
    collapse: int | None = None,
    by: str = "",
    predictions: str = "",
    checkpoint: int | None = None,
) -> None:
    """Score the run's evaluation segments, or all of `rows`, and print the table. collapse: of
    `train.collapse_rows`, None for the run's own. by: also by the values of this field. predictions: a folder to write
    them to. checkpoint: of this step, None for the newest. Raises CheckpointError, DataError, or ConfigError where
    there is nothing to score, or the folder is not empty."""
    if predictions:
        require_free(predictions)
    job = evaluation_job(run, rows, collapse)
    from trainer.worker import run_evaluation  # noqa: PLC0415 - imports torch, which reads the thread settings

    result = run_evaluation(job, rows or "", wanted=Wanted(by, predictions, checkpoint))
    say_result(result, run)
    if result is not None:
        say_left_out(result)
        say_slices(result)
        if predictions:
            click.echo(f"predictions  {predictions}: {read_manifest(predictions).rows:,} positions")


def evaluation_job(run: str, rows: str | None, collapse: int | None = None) -> Job:
    """What `run_evaluation` is asked to do, with this process's threads set: before torch is imported. Raises
    CheckpointError: no run directory; ConfigError: nothing to score."""
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
    return Job(config, str(run_dir.path), LocalStop(), resume="must", threads=threads)


def say_left_out(result: Mapping[str, Any]) -> None:
    """Whom GAUC cannot rank."""
    tasks = result["evals"][-1]["tasks"] if result.get("evals") else {}
    parts = [
        f"{task} {of['gauc_one_class_share']:.1%} of users, {of['gauc_left_out_share']:.1%} of examples"
        for task, of in tasks.items()
        if of["gauc_one_class_users"]
    ]
    if parts:
        click.echo(f"GAUC leaves out users with one class: {' · '.join(parts)}")


def say_slices(result: Mapping[str, Any]) -> None:
    """The table of slices, where there is one."""
    slices = result["evals"][-1].get("slices") if result.get("evals") else None
    if not slices:
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(slices["by"], overflow="fold")
    table.add_column("task", overflow="ellipsis")
    for heading in NUMBERS:
        table.add_column(heading, justify="right", no_wrap=True)
    for value, tasks in slices["values"].items():
        for row, (task, values) in enumerate(tasks.items()):
            name = f"{OTHER}: {slices['others']:,} more" if value == OTHER and slices["others"] else value
            scores = [number(values[key], 4) for key in ("loss", "ne", "auc", "gauc")]
            examples = f"{values['examples']:,}".replace(",", " ")
            table.add_row(
                Text(name if row == 0 else ""), Text(task), *scores, number(values["calibration"], 3), examples
            )
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else max(console.width, WIDE)
    console.print(table)
