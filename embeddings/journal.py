"""What the steps mapped ahead have changed in a managed table, so that it can be told as of the step trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.batch import Int64
from pipelines.schema import MISSING_ID


@dataclass(frozen=True)
class Change:
    """Of one batch. Rows are local, each at most once.

    sighted [n] had (sightings, last seen) as in `sighted_before` [n, 2]. admitted [m] went to the ids `new_ids` [m],
    their records having been `admitted_before` [m, 3] (id MISSING_ID: free). places [p] of candidates were
    `places_before` [p, 3]; in order of the changes, a place may have been changed more than once. used [local buckets],
    clock: before.
    """

    sighted: Int64
    sighted_before: Int64
    admitted: Int64
    admitted_before: Int64
    new_ids: Int64
    places: Int64
    places_before: Int64
    used: Int64
    clock: int

    @property
    def evicted(self) -> Int64:
        """Local rows taken from one id and given to another, ascending."""
        return np.sort(self.admitted[self.admitted_before[:, 0] != MISSING_ID])

    def undo(self, records: Int64, candidates: Int64) -> None:
        """In place. records: [rows, 3]; candidates: [places, 3]; as they were after this change."""
        records[self.sighted, 1:] = self.sighted_before
        records[self.admitted] = self.admitted_before
        candidates[self.places[::-1]] = self.places_before[::-1]  # where a place repeats, the last written stays


class Journal:
    """Changes by the step they belong to: those since a mark belong to the next one."""

    def __init__(self) -> None:
        self._open: list[Change] = []
        self._sealed: dict[int, list[Change]] = {}  # in order of steps

    def add(self, change: Change) -> None:
        """Of the batch just mapped."""
        self._open.append(change)

    def mark(self, step: int) -> None:
        """Changes so far belong to `step`."""
        self._sealed[step] = self._sealed.get(step, []) + self._open
        self._open = []

    def forget_before(self, step: int) -> None:
        """Changes up to those of `step` will not be undone."""
        self._sealed = {marked: changes for marked, changes in self._sealed.items() if marked > step}

    def clear(self) -> None:
        """Nothing has been changed."""
        self._open, self._sealed = [], {}

    def of(self, step: int) -> list[Change]:
        """Changes of a step."""
        return self._sealed.get(step, [])

    def since(self, step: int | None) -> Iterator[Change]:
        """Changes after `step`, the newest first; None = nothing is to be undone."""
        if step is None:
            return
        yield from reversed(self._open)
        for sealed, changes in reversed(self._sealed.items()):
            if sealed > step:
                yield from reversed(changes)

    def rows_before(self, step: int) -> tuple[Int64, Int64]:
        """(ids ascending, their local rows or −1, as of `step`): of those ids that have another row now."""
        ids, rows = [], []
        for change in self.since(step):
            given = change.admitted_before[:, 0] != MISSING_ID
            ids += [change.new_ids, change.admitted_before[given, 0]]
            rows += [np.full(len(change.new_ids), -1), change.admitted[given]]
        if not ids:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        oldest_first = np.concatenate(ids)[::-1]
        found, first = np.unique(oldest_first, return_index=True)
        return found, np.concatenate(rows)[::-1][first]
