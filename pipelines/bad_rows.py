"""Rows that hold what their schema does not allow: which, in which column, why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.batch import Int64
from pipelines.compiled import address
from pipelines.kernels import count_outside
from pipelines.schema import MISSING_ID, Column

if TYPE_CHECKING:
    from pipelines.decode import Values


Fault = tuple[Int64, Callable[[int], str], str]  # positions of a column, words for the value at one, the rule


@dataclass(frozen=True)
class Bad:
    """Rows of a table, ascending, that are bad in one column. values: what each holds, in words; line: for a person,
    of the first."""

    column: str
    rows: Int64
    values: list[str]
    rule: str
    line: str

    @staticmethod
    def of(column: str, rows: Int64, values: list[str], rule: str, remedy: str, path: str, row: Int64) -> Bad:
        """row: of the table's rows in their file."""
        where = f"'{path}' row {row[rows[0]]}"
        return Bad(column, rows, values, rule, f"column '{column}' holds {values[0]} in {where} → {rule} → {remedy}")


def absurd_ids(columns: Mapping[str, Values], specs: Mapping[str, Column]) -> dict[str, Fault]:
    """Of integer columns, the ids that are none: the number kept for nulls, or beyond the column's `max_id`."""
    if not specs:
        return {}
    held = [np.ascontiguousarray(columns[name].values) for name in specs]
    limits = [spec.max_id for spec in specs.values()]
    lowest = [MISSING_ID + 1 if limit is None else 0 for limit in limits]
    highest = [2**63 - 1 if limit is None else limit for limit in limits]
    places, counts = [address(values) for values in held], [len(values) for values in held]
    outside = count_outside(*(np.array(part, np.int64) for part in (places, counts, lowest, highest)))
    found = {}
    for c in np.flatnonzero(outside):
        name = list(specs)[c]
        fault = _absurd(columns[name], int(lowest[c]), int(highest[c]))
        if fault is not None:
            found[name] = fault
    return found


def _absurd(column: Values, lowest: int, highest: int) -> Fault | None:
    """Positions that hold such an id; nulls are no ids."""
    values = column.values
    wrong = (values < lowest) | (values > highest)
    wrong &= ~column.null if column.lengths is None else values != MISSING_ID
    at = np.flatnonzero(wrong)
    if not len(at):
        return None
    ids = values[at]
    if column.lengths is not None:
        at = np.searchsorted(np.cumsum(column.lengths), at, side="right")
    at, first = np.unique(at, return_index=True)
    words = dict(zip(at.tolist(), ids[first].tolist(), strict=True))
    rule = f"ids are 0 to {highest}, the column's max_id" if lowest == 0 else f"the id {MISSING_ID} stands for null"
    return at, lambda position: str(words[position]), rule
