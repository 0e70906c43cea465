"""Which rows of a saved table the rows of a new one are, where the table has grown, shrunk or been dealt anew.

An identity table's ids keep their rows. A bucket's ids keep their places where it grows; where it shrinks, or where the
number of buckets differs, known ids are dealt anew. A hash table of another size has other ids in every row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from embeddings.specs import TableSpec
from pipelines.batch import Int64
from trainer.model_description import TableDescription


@dataclass(frozen=True)
class Piece:
    """Saved rows first … first + count − 1. source: which of these, counted from `first`; target: rows of the new table
    that they become."""

    first: int
    count: int
    source: Int64 | slice
    target: Int64 | slice


class RowMoves(Protocol):
    """carried: rows that are taken over, over all ranks."""

    @property
    def carried(self) -> int: ...

    def pieces(self, first: int, last: int, step: int) -> Iterator[Piece]:
        """For the new rows first … last − 1, at most `step` of them at a time."""
        ...


@dataclass(frozen=True)
class Kept:
    """Row r is row r, below `rows`."""

    rows: int

    @property
    def carried(self) -> int:
        return self.rows

    def pieces(self, first: int, last: int, step: int) -> Iterator[Piece]:
        for start in range(first, min(last, self.rows), step):
            count = min(step, min(last, self.rows) - start)
            yield Piece(start, count, slice(None), slice(start, start + count))


@dataclass(frozen=True)
class InBuckets:
    """Buckets have grown from `before` rows to `now`: place s of bucket b stays that."""

    buckets: int
    before: int
    now: int

    @property
    def carried(self) -> int:
        return self.buckets * self.before

    def pieces(self, first: int, last: int, step: int) -> Iterator[Piece]:
        """Some buckets at a time, or a part of one that is larger than `step`."""
        begin, end = first // self.now * self.before, min(self.buckets, -(-last // self.now)) * self.before
        for start in range(begin, end, step):
            old = np.arange(start, min(end, start + step))
            new = old // self.before * self.now + old % self.before
            mine = (new >= first) & (new < last)
            if mine.any():
                yield Piece(start, len(old), np.flatnonzero(mine), new[mine])


@dataclass(frozen=True)
class Dealt:
    """Rows of this rank and where they were, by ascending old row. moved, lost: of the part of the id map that this
    rank holds, rows that came along and ids that found no room."""

    old_N: Int64
    new_N: Int64
    moved: int
    lost: int

    @property
    def carried(self) -> int:
        """None that this rank alone could tell of."""
        return 0

    def pieces(self, first: int, last: int, step: int) -> Iterator[Piece]:
        mine = (self.new_N >= first) & (self.new_N < last)
        old_N, new_N = self.old_N[mine], self.new_N[mine]
        at = 0
        while at < len(old_N):
            begin = int(old_N[at])
            end = int(np.searchsorted(old_N, begin + step))
            yield Piece(begin, int(old_N[end - 1]) - begin + 1, old_N[at:end] - begin, new_N[at:end])
            at = end


def kept_rows(before: TableDescription, now: TableSpec, boundaries: tuple[float, ...]) -> RowMoves | str | None:
    """How rows are taken over; or a phrase: why they cannot be; or None: ids have to be dealt to other rows
    (init_id_maps). boundaries: of the new table's columns."""
    if before.mapping != now.mapping:
        return f"its mapping was {before.mapping!r}"
    if before.boundaries != boundaries:
        return "its boundaries were others"
    if now.is_bucketed:
        if before.buckets != now.buckets or before.rows > now.rows:
            return None
        return Kept(now.rows) if before.rows == now.rows else _grown(before, now)
    if now.mapping == "hash" and before.rows != now.rows:
        return f"it had {before.rows:,} rows, so that its ids were hashed to others"
    return Kept(min(before.rows, now.rows))


def _grown(before: TableDescription, now: TableSpec) -> InBuckets:
    return InBuckets(now.buckets, before.rows_per_bucket, now.rows_per_bucket)
