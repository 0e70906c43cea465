"""Scores the newest checkpoint of a run on some rows, as `tokenformer evaluate` does, and writes the scores down.

    python -m tests.benchmarks.accuracy_score --run D --scores F.json [--rows P] [--predictions F.npz]

A process of its own, because a process trains or scores one model.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np

from tests.benchmarks.accuracy_settings import TASK
from trainer.config import load_config
from trainer.evaluation import Predictions
from trainer.job import Job
from trainer.launch import set_threads
from trainer.run_dir import RunDir, write_atomic
from trainer.stop import LocalStop
from trainer.worker import run_evaluation


@click.command()
@click.option("--run", required=True)
@click.option("--scores", required=True)
@click.option("--rows", default="", help="Instead of the run's evaluation segments.")
@click.option("--predictions", default="")
def main(run: str, scores: str, rows: str, predictions: str) -> None:
    """One thread, as the training had."""
    set_threads(1)
    kept: list[Predictions] = []
    job = Job(load_config(RunDir(run).config), run, LocalStop(), resume="must", threads=1)
    result = run_evaluation(job, rows, keep=kept.append)
    assert result is not None, "this process is rank 0"
    if predictions:
        of_task = kept[0].tasks[TASK]
        part = Path(predictions).with_suffix(".part.npz")
        np.savez_compressed(part, **{name: of_task[name] for name in ("probability", "label", "user")})
        part.replace(predictions)
    write_atomic(Path(scores), json.dumps(result["evals"][-1]["tasks"]))


if __name__ == "__main__":
    main()
