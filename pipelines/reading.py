"""What every reader of a run must know, the same in every process. Picklable, small enough to travel with a task."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.config import Data
from pipelines.schema import Schema


@dataclass(frozen=True)
class RowCost:
    """A row's work for the tower: fixed + linear · L + quadratic · L², L the kept positions of its lists.

    The default deals by length alone; the trainer knows its tower and says better.
    """

    fixed: float = 0.0
    linear: float = 1.0
    quadratic: float = 0.0


BY_LENGTH = RowCost()


@dataclass(frozen=True)
class Reading:
    """schema, data: of the run file. quarantine: folder (path or URI) of bad rows; "" = a bad row is an
    error. cost: rows are dealt to ranks by it."""

    schema: Schema
    data: Data
    quarantine: str = ""
    cost: RowCost = BY_LENGTH
