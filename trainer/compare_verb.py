"""The `compare` verb: two models on the same rows, and whether what differs is more than chance."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from trainer.closing_words import WIDE
from trainer.evaluate_verb import evaluation_job
from trainer.prediction_files import read_manifest
from trainer.run_dir import write_atomic
from trainer.wanted import Wanted


def compare_runs(
    runs: Sequence[str],
    rows: str | None,
    checkpoints: Sequence[int],
    by: str,
    resamples: int,
    seed: int,
    json_path: str | None,
) -> None:
    """Predicts `rows` (or each run's own evaluation segments) with both, one after the other, and compares.
    checkpoints: steps, one a run; none = the newest. Raises CheckpointError, ConfigError, DataError."""
    jobs = [evaluation_job(run, rows) for run in runs]
    from trainer.worker import run_evaluation  # noqa: PLC0415 - imports torch, which reads the thread settings

    with tempfile.TemporaryDirectory(prefix="tokenformer-compare-") as scratch:
        folders = [str(Path(scratch) / name) for name in ("A", "B")]
        for place, (job, folder) in enumerate(zip(jobs, folders, strict=True)):
            click.echo(f"scoring {'AB'[place]}: {runs[place]}", err=True)
            step = checkpoints[place] if checkpoints else None
            run_evaluation(job, rows or "", wanted=Wanted("" if place else by, folder, step))
        _compare(folders, list(runs), by, resamples, seed, json_path)


def compare_folders(folders: Sequence[str], by: str, resamples: int, seed: int, json_path: str | None) -> None:
    """Compares what `evaluate --predictions` has written. Raises CheckpointError, ConfigError, RunDataError."""
    names = [f"{folder} ({read_manifest(folder).run})" for folder in folders]
    _compare(folders, names, by, resamples, seed, json_path)


def _compare(
    folders: Sequence[str], names: list[str], by: str, resamples: int, seed: int, json_path: str | None
) -> None:
    from trainer.compare import compare_predictions  # noqa: PLC0415
    from trainer.compare_words import report, to_json  # noqa: PLC0415

    found = compare_predictions(folders[0], folders[1], by, resamples, seed)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDE)
    console.print(report(found, *names), crop=False)
    if json_path:
        write_atomic(Path(json_path), json.dumps(to_json(found), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
