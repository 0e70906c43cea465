"""Ids → local rows of one table's records on one rank: the hash table of `id_kernels`, grown as it fills."""

from __future__ import annotations

import numpy as np

from embeddings.buckets import bucket_salt
from embeddings.errors import PlanError
from embeddings.id_kernels import enter, find
from pipelines.batch import Int32, Int64

SMALLEST = 1 << 10
MOST = 2**31 - 1


class RowIndex:
    """records: flat int64, `stride` of them a row, the id first; whoever owns them writes the id before it is entered.

    slots: the hash table, int32. shift: 64 − log2 of its length. count: of ids in it. Raises PlanError for more rows
    than it can number.
    """

    def __init__(self, table: str, records: Int64, stride: int) -> None:
        if len(records) // stride > MOST:
            raise PlanError(
                [
                    f"table {table!r}: {len(records) // stride:,} rows on one rank → a rank's buckets hold {MOST:,} at "
                    "most → more ranks, fewer rows, or mapping = 'hash'"
                ]
            )
        self.salt = bucket_salt(table)
        self._records, self._stride = records, stride
        self.count = 0
        self._allot(SMALLEST)

    def rows_of(self, ids: Int64) -> Int64:
        """Local rows, −1 where there is none."""
        rows = np.empty(len(ids), np.int64)
        find(np.ascontiguousarray(ids), self.salt, self.slots, self.shift, self._records, self._stride, rows)
        return rows

    def enter(self, rows: Int64) -> None:
        """Enters the ids of these records. None of them is there yet."""
        self.reserve(len(rows))
        enter(np.ascontiguousarray(rows), self.salt, self.slots, self.shift, self._records, self._stride)
        self.count += len(rows)

    def reserve(self, more: int) -> None:
        """Room for so many ids more, with half of the places free."""
        if 2 * (self.count + more) <= len(self.slots):
            return
        known = self.slots[self.slots >= 0].astype(np.int64)
        self._allot(1 << int(2 * (self.count + more) - 1).bit_length())
        enter(known, self.salt, self.slots, self.shift, self._records, self._stride)

    def clear(self) -> None:
        """Forgets all ids."""
        self.count = 0
        self._allot(SMALLEST)

    def _allot(self, length: int) -> None:
        self.slots: Int32 = np.full(length, -1, np.int32)
        self.shift = 64 - (length.bit_length() - 1)
