"""Draws a run: loss, NE and AUC over steps, each taken before the update, from its metrics.jsonl.

Usage: python docs/plot_run.py RUN PICTURE.png
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen is needed
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLOURS = ("#1f5fa8", "#d2691e", "#3a8f5c", "#8a4fa0")
PANELS = (("loss", "loss"), ("ne", "NE (below 1 beats the base rate)"), ("auc", "AUC"))


@dataclass(frozen=True)
class Known:
    """Of a planted task: the best any model can do, and what a model blind to histories can. Drawn as lines."""

    task: str
    ceiling: dict[str, float]
    blind: dict[str, float]


def draw(run: Path, picture: Path, known: Known | None = None) -> None:
    """Writes `picture`. Raises ValueError where the run has no line of kind train yet."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    evals = [line for line in lines if line["kind"] == "eval"]
    if not train:
        raise ValueError(f"{run} has no train line")
    ends = [line["step"] for line in lines if line["kind"] == "event" and line["event"] == "segment"]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), constrained_layout=True)
    for axis, (key, title) in zip(axes, PANELS, strict=True):
        _draw_panel(axis, key, train, evals)
        for end in ends:
            axis.axvline(end, color="#dddddd", linewidth=0.8, zorder=0)
        if known is not None:
            _draw_known(axis, key, known)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(picture, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _draw_panel(axis: Axes, key: str, train: list[dict[str, Any]], evals: list[dict[str, Any]]) -> None:
    """A line a task, a dot where it was evaluated."""
    for colour, task in zip(COLOURS, train[0]["tasks"], strict=False):
        steps = [line["step"] for line in train]
        values = [line["tasks"][task][key] for line in train]
        axis.plot(steps, values, color=colour, linewidth=1.4, label=f"{task}, before each update")
        split = evals[-1]["split"] if evals else ""
        axis.plot(
            [line["step"] for line in evals],
            [line["tasks"][task][key] for line in evals],
            "o",
            color=colour,
            markersize=6,
            label=f"{task}, evaluation of {split}" if evals else None,
        )


def _draw_known(axis: Axes, key: str, known: Known) -> None:
    for values, style, words in ((known.ceiling, "--", "best possible"), (known.blind, ":", "fields alone")):
        if key in values:
            axis.axhline(values[key], color="#666666", linestyle=style, linewidth=0.9)
            axis.annotate(
                f"{known.task}, {words} {values[key]:.3f}",
                (0.02, values[key]),
                xycoords=("axes fraction", "data"),
                fontsize=7.5,
                color="#444444",
                va="bottom",
            )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python docs/plot_run.py RUN PICTURE.png")
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
