"""What happened, on the axes of the curves: checkpoints, evaluations, restarts, warnings, and events of any name."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from trainer.report.formats import count, number, plain, size, span
from trainer.report.learning import mapping
from trainer.report.lines import Line
from trainer.report.read import Run

USUAL = ("checkpoint", "evaluation", "segment")  # they come by the hundred, and are not marked in every plot
NOT_SAID = ("time", "kind", "step", "examples", "event")
MOST = 1_000  # of a run


@dataclass(frozen=True)
class Event:
    """run: its number on the page. at: moment. kind: the row it stands in. usual: part of every run."""

    run: int
    at: int
    step: int
    kind: str
    text: str

    @property
    def usual(self) -> bool:
        """Nothing to look into."""
        return self.kind in USUAL


def events_of(number: int, run: Run) -> tuple[list[Event], int]:
    """In the order of their steps; and how many of the usual ones were left out, because there are too many."""
    found = [*_told(number, run), *_warned(number, run), *_bad_steps(number, run)]
    found.sort(key=lambda event: (event.step, event.at))
    if len(found) <= MOST:
        return found, 0
    others = [event for event in found if not event.usual][:MOST]
    usual = [event for event in found if event.usual]
    room = max(1, MOST - len(others))
    kept = usual[:: max(1, -(-len(usual) // room))]
    return sorted([*others, *kept], key=lambda event: (event.step, event.at)), len(found) - len(others) - len(kept)


def _told(number_: int, run: Run) -> Iterator[Event]:
    for line in run.lines.others:
        if line.kind == "checkpoint":
            yield Event(number_, line.at, line.step, "checkpoint", _checkpoint(line))
        elif line.kind == "eval":
            text = f"{plain(line.values.get('split', ''))}: {scores(line.values)}"
            yield Event(number_, line.at, line.step, "evaluation", text)
        else:
            name = str(line.values.get("event", line.kind)).replace("_", " ")
            said = scores(line.values) if mapping(line.values.get("tasks")) else ""
            rest = {key: value for key, value in line.values.items() if key not in (*NOT_SAID, "tasks")}
            parts = [f"{key.replace('_', ' ')} {_value(value)}" for key, value in rest.items()]
            yield Event(
                number_, line.at, line.step, plain(name, 40), plain(" · ".join([*parts, said] if said else parts), 400)
            )


def _checkpoint(line: Line) -> str:
    values = line.values
    parts = [plain(values.get("path", "")), size(values.get("bytes")), str(values.get("checkpoint_kind", "full"))]
    parts += [f"written in {span(values.get('seconds'))}"]
    if values.get("stall_seconds"):
        parts.append(f"training waited {span(values['stall_seconds'])}")
    return " · ".join(parts)


def _warned(number_: int, run: Run) -> Iterator[Event]:
    steps = list(run.lines.step)
    ordered = sorted(range(len(steps)), key=steps.__getitem__)
    keys = [steps[at] for at in ordered]
    for warned in run.warned:
        if ordered:
            at = ordered[min(bisect_left(keys, warned.step), len(ordered) - 1)]
            yield Event(number_, at, steps[at], warned.level, plain(warned.text, 400))


def _bad_steps(number_: int, run: Run) -> Iterator[Event]:
    column = run.lines.column("bad_steps")
    if column is None:
        return
    for (_, before), (at, now) in pairwise([(-1, 0.0), *zip(column.at, column.values, strict=True)]):
        if now > before:
            text = f"{count(now - before)} skipped since the last log: loss or gradient was not finite"
            yield Event(number_, at, run.lines.step[at], "bad step", text)


def scores(values: dict[str, Any]) -> str:
    """`click NE 0.871 AUC 0.744 · purchase …` of a line's tasks."""
    parts = []
    for task, found in mapping(values.get("tasks")).items():
        of = mapping(found)
        words = [
            f"{name} {number(of[key])}" for key, name in (("ne", "NE"), ("auc", "AUC"), ("gauc", "GAUC")) if key in of
        ]
        parts.append(f"{task} {' '.join(words)}")
    return plain(" · ".join(parts), 400)


def _value(value: object) -> str:
    return number(value) if isinstance(value, float) else plain(value, 120)
