"""What a page's plots are made of, in plain values: panels of curves, each curve a list of moments and numbers.

The page draws them; nothing here knows how. A moment is a line of metrics.jsonl of a run (lines.py). All curves of a
run share its axes: step, examples, time, trained-through time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trainer.report.lines import Column
from trainer.report.read import Run
from trainer.report.thin import extremes

Style = Literal["line", "faint", "points", "area"]
Unit = Literal["", "share", "seconds", "bytes", "rate"]

MOST_POINTS = 600  # of a curve, on a page of one run
FEWEST_POINTS = 200  # on a page of many
MOST_MARKS = 200  # of a curve of single points, such as evaluations


@dataclass(frozen=True)
class Curve:
    """run: its number on the page. at: moments, or layers. group: curves that are one thing to the reader, such as a
    task before updates and in evaluations. colour, dash: numbers of the palette. text: said of each point."""

    run: int
    name: str
    at: list[int]
    values: list[float | None]
    colour: int
    dash: int = 0
    style: Style = "line"
    group: str = ""
    text: list[str] | None = None


@dataclass
class Panel:
    """A plot. section: where on the page. x: "run" is the axis that the reader chooses. run: of which alone, None =
    of all. note: what to know when reading it. top: where the axis ends, where the highest values would make all others
    flat."""

    section: str
    title: str
    unit: Unit = ""
    note: str = ""
    x: Literal["run", "layer"] = "run"
    run: int | None = None
    top: float | None = None
    curves: list[Curve] = field(default_factory=list)


class Thinned:
    """Cuts curves to a number of points that depends on how many runs share the page."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.most = max(FEWEST_POINTS, MOST_POINTS // max(1, len(runs)))
        self.thinned = False  # any curve

    def curve(self, run: int, name: str, column: Column, **look: Any) -> Curve:
        """A column, cut where it is long."""
        values = np.frombuffer(column.values, dtype=np.float64)
        kept = self.kept(values)
        at = np.frombuffer(column.at, dtype=np.int64)[kept]
        return Curve(run, name, at.tolist(), rounded(values[kept]), **look)

    def kept(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Places that stay."""
        self.thinned |= len(values) > self.most
        return extremes(values, self.most)

    def points(self, run: int, name: str, known: Sequence[tuple[int, float]], **look: Any) -> Curve:
        """Single points as (moment, value), cut where they are many. text: of each, is cut alike."""
        values = np.array([value for _, value in known])
        kept = extremes(values, MOST_MARKS).tolist()
        self.thinned |= len(kept) < len(known)
        if look.get("text"):
            look["text"] = [look["text"][place] for place in kept]
        return Curve(run, name, [known[place][0] for place in kept], rounded(values[kept]), **look)

    def look(self, run: int, number: int) -> dict[str, Any]:
        """Colour and dash of the so many-th curve of a run: the colour says which run, where there are several."""
        if len(self.runs) == 1:
            return {"colour": number, "dash": 0}
        return {"colour": run, "dash": number}


def rounded(values: Iterable[float]) -> list[float | None]:
    """Six digits: more than a plot shows. None for what is not defined."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def axes(run: Run, moments: Sequence[int]) -> dict[str, list[float | int | None]]:
    """Of these moments. hours: since the run's first line. through: milliseconds since 1970."""
    lines = run.lines
    began = min(lines.time) if lines.time else 0.0
    return {
        "step": [lines.step[at] for at in moments],
        "examples": [lines.examples[at] for at in moments],
        "hours": [round((lines.time[at] - began) / 3600, 5) for at in moments],
        "through": [None if math.isnan(lines.through[at]) else round(lines.through[at] / 1e3) for at in moments],
    }


def cut_top(panel: Panel, values: npt.NDArray[np.float64], say: Callable[[float], str]) -> None:
    """Ends the axis, from 0, somewhat above nearly all of the values where few are far higher, as a run's first lines
    are; and says so."""
    known = values[np.isfinite(values)]
    if not len(known):
        return
    usual, highest = float(np.quantile(known, 0.97)), float(known.max())
    if 0 < 2 * usual < highest:
        panel.top = 1.25 * usual
        panel.note += f"; the axis ends below the highest, {say(highest)}"
