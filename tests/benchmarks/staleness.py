"""Does a dense gradient that comes one step late cost quality? MovieLens-1M, `sync` against `delayed`, seed by seed.

    python -m tests.benchmarks.staleness --zip ml-1m.zip [--folder runs/staleness] [--seeds 3]

Runs of some minutes each are not repeated lightly: each is a run directory of its own in the folder, one
that is done is not done again, one that was cut off goes on. Both modes of a seed begin with the same weights and see
the same batches; `delayed` is delayed from the first step on. Needs the archive, which is not part of this repository.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import click

from tests.benchmarks import harness
from trainer.run_dir import RunDir

RUN_FILE = Path(__file__).resolve().parents[2] / "trainer" / "configs" / "movielens.toml"
MODES = {
    "sync": ("--train.dense-sync", "sync"),
    "delayed": ("--train.dense-sync", "delayed", "--train.delayed-after-steps", "0"),
}
SPLIT, TASK = "3-test", "like"


def command(*words: str) -> list[str]:
    """The public command."""
    return [sys.executable, "-m", "trainer", *words]


def scores(run: Path) -> dict[str, float] | None:
    """{metric: value} on the test split at the end of a run; None where it has not come to it."""
    metrics = RunDir(run).metrics
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    found = [line["tasks"][TASK] for line in lines if line["kind"] == "eval" and line["split"] == SPLIT]
    return found[-1] if found else None


def train(run: Path, data: Path, seed: int, mode: str, threads: int) -> dict[str, float]:
    """A run to its end, unless it is there already."""
    if (done := scores(run)) is not None:
        return done
    subprocess.run(
        command(
            *("train", "--config", str(RUN_FILE), "--run-dir", str(run), "--resume", "auto", *MODES[mode]),
            *("--data.rows", str(data / "rows"), "--data.prepare.log", str(data / "log"), "--train.seed", str(seed)),
            *("--launch.workers", "1", "--launch.threads", str(threads), "--telemetry.prometheus", "false"),
            *("--checkpoint.every-minutes", "2"),
        ),
        check=True,
    )
    done = scores(run)
    assert done is not None, f"{run} ended without an evaluation"
    return done


@click.command()
@click.option("--zip", "archive", required=True, type=click.Path(exists=True), help="ml-1m.zip, as GroupLens has it.")
@click.option("--folder", default="runs/staleness", show_default=True, help="Data and runs; kept.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(archive: str, folder: str, seeds: int, threads: int) -> None:
    """AUC and NE of `delayed` against `sync`."""
    place = Path(folder)
    data = place / "data"
    if not (data / "log").exists():
        subprocess.run(command("data", "movielens", "--zip", archive, "--out", str(data / "log")), check=True)
    found: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for seed in range(1, seeds + 1):
        for mode in MODES:
            found[mode].append(train(place / f"{mode}-{seed}", data, seed, mode, threads))
    harness.table(
        ["seed", *(f"{metric}, {mode}" for metric in ("AUC", "NE") for mode in MODES), "AUC, delayed − sync"],
        [
            [
                str(seed + 1),
                *(f"{found[mode][seed][metric]:.5f}" for metric in ("auc", "ne") for mode in MODES),
                f"{found['delayed'][seed]['auc'] - found['sync'][seed]['auc']:+.5f}",
            ]
            for seed in range(seeds)
        ],
    )
    ratios = {}
    for metric in ("auc", "ne"):
        differences = [late[metric] - now[metric] for late, now in zip(found["delayed"], found["sync"], strict=True)]
        ratios[f"{metric}_difference"] = mean(differences)
        if seeds > 1:
            ratios[f"{metric}_difference_spread"] = stdev(differences)
            ratios[f"{metric}_spread_of_seeds"] = stdev(each[metric] for each in found["sync"])
    harness.show("in one line", {name: f"{value:+.5f}" for name, value in ratios.items()})
    harness.finish("staleness", ratios, threads)


if __name__ == "__main__":
    main()
