"""Scores the newest checkpoint of a run on some rows, as `tokenformer evaluate` does, and writes the scores down.

    python -m tests.benchmarks.accuracy_score --run D --scores F.json [--rows P] [--predictions F.npz] [--collapse N]

A process of its own, because a process trains or scores one model.
"""

from __future__ import annotations

import json
from dataclasses import replace
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
@click.option("--collapse", type=int, default=0, help="Rows whose tokens are looked at (docs/collapse.md).")
def main(run: str, scores: str, rows: str, predictions: str, collapse: int) -> None:
    """One thread, as the training had."""
    set_threads(1)
    kept: list[Predictions] = []
    config = load_config(RunDir(run).config)
    config = replace(config, train=config.train.model_copy(update={"collapse_rows": collapse}))
    job = Job(config, run, LocalStop(), resume="must", threads=1)
    result = run_evaluation(job, rows, keep=kept.append)
    assert result is not None, "this process is rank 0"
    found = result["evals"][-1]
    if predictions:
        of_task = kept[0].tasks[TASK]
        part = Path(predictions).with_suffix(".part.npz")
        np.savez_compressed(part, **{name: of_task[name] for name in ("probability", "label", "user")})
        part.replace(predictions)
    write_atomic(Path(scores), json.dumps({name: found.get(name) for name in ("tasks", "collapse")}))


if __name__ == "__main__":
    main()
