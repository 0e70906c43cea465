"""metrics.jsonl as columns: whatever its lines hold, known or not, and however they end.

A number of a train line is a column by its path, `("tasks", "click", "ne")`: what a later version or another tool adds
is there as well. Columns are sparse, because most tables' figures are only in every hundredth line.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Key = tuple[str, ...]

MOST_COLUMNS = 20_000
DEEPEST = 6
NOT_FIGURES = ("time", "kind", "step", "examples", "epoch")


@dataclass
class Column:
    """at: of which moments. values: NaN where the line says null."""

    at: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    @property
    def last(self) -> float | None:
        """The newest value that is one."""
        return next((value for value in reversed(self.values) if math.isfinite(value)), None)


@dataclass(frozen=True)
class Line:
    """Of any kind but train: its moment, and what it says."""

    at: int
    kind: str
    values: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.values["step"])


@dataclass
class Lines:
    """A whole file. A moment is a line, by its place among those that could be read.

    step, examples, time (seconds since 1970), through (newest event time trained on by then, microseconds since 1970,
    NaN while it is not known): of every moment. columns: of train lines. others: the rest, in the file's order.
    unreadable: lines that are not ours, the last one apart, which a run that goes on may still be writing.
    """

    step: array[int] = field(default_factory=lambda: array("q"))
    examples: array[int] = field(default_factory=lambda: array("q"))
    time: array[float] = field(default_factory=lambda: array("d"))
    through: array[float] = field(default_factory=lambda: array("d"))
    columns: dict[Key, Column] = field(default_factory=dict)
    others: list[Line] = field(default_factory=list)
    newest: dict[str, Any] = field(default_factory=dict)  # train line
    unreadable: int = 0

    def of_kind(self, kind: str) -> list[Line]:
        """Lines that are not of kind train."""
        return [line for line in self.others if line.kind == kind]

    def column(self, *path: str) -> Column | None:
        """A column that holds at least one number."""
        found = self.columns.get(path)
        return found if found is not None and found.last is not None else None

    def names(self, *path: str) -> list[str]:
        """What follows `path` in columns, in the order in which it first came."""
        depth = len(path)
        return list(dict.fromkeys(key[depth] for key in self.columns if len(key) > depth and key[:depth] == path))


def read_lines(path: Path) -> Lines:
    """As far as it is there: a file that is missing has no lines."""
    lines = Lines()
    if not path.is_file():
        return lines
    broken_before = False
    with path.open("rb") as file:
        for raw in file:
            lines.unreadable += broken_before
            broken_before = bool(raw.strip()) and not _add(lines, raw)
    return lines


def _add(lines: Lines, raw: bytes) -> bool:
    """False where the line is not one of ours."""
    try:
        line = json.loads(raw)
        step, examples, time = int(line["step"]), int(line["examples"]), float(line["time"])
        kind = line["kind"]
        if not math.isfinite(time) or not isinstance(kind, str):
            return False
        at = len(lines.step)
        lines.step.append(step)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return False
    lines.examples.append(examples if abs(examples) < 1 << 62 else 0)
    lines.time.append(time)
    through = _number(line.get("data_through"))
    before = lines.through[-1] if lines.through else math.nan
    lines.through.append(before if through is None else through)
    if kind != "train":
        lines.others.append(Line(at, kind, line))
        return True
    lines.newest = line
    for key, value in _numbers(line, ()):
        column = lines.columns.get(key)
        if column is None:
            if len(lines.columns) >= MOST_COLUMNS:
                continue
            column = lines.columns[key] = Column()
        column.at.append(at)
        column.values.append(value)
    return True


def _numbers(value: dict[str, Any], path: Key) -> Iterator[tuple[Key, float]]:
    for name, inner in value.items():
        if not path and name in NOT_FIGURES:
            continue
        if isinstance(inner, dict):
            if len(path) < DEEPEST:
                yield from _numbers(inner, (*path, name))
        elif inner is None:
            yield (*path, name), math.nan
        elif (number := _number(inner)) is not None:
            yield (*path, name), number


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
