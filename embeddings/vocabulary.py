"""One rank's part of one table's vocabulary: the buckets it holds, and which id has which of their rows."""

from __future__ import annotations

import logging

import numpy as np

from embeddings.buckets import bucket_of, by_bucket, sums_of
from embeddings.row_index import RowIndex
from embeddings.specs import RESERVED_ROWS, UNKNOWN_ROW, TableSpec
from pipelines.batch import Int64
from pipelines.schema import MISSING_ID

log = logging.getLogger(__name__)


class Vocabulary:
    """Buckets `buckets` of a table. A bucket hands its rows out from the first on and never takes one back, so that
    how many rows each bucket has used says which ids the map held at any earlier time.

    used: int64 [local buckets], rows handed out. admissions: ids given a row, since this process began.
    """

    evictions = 0
    parts = ("ids", "used")

    def __init__(self, spec: TableSpec, buckets: range) -> None:
        self.spec = spec
        self.buckets = buckets
        self._id_of_row = np.zeros(len(buckets) * spec.rows_per_bucket, np.int64)
        self.used = np.zeros(len(buckets), np.int64)
        if 0 in buckets:
            self.used[0] = RESERVED_ROWS
        self._index = RowIndex(spec.name, self._id_of_row, 1)
        self._used_at: dict[int, Int64] = {}
        self._warned = False
        self.admissions = 0

    def learn(self, ids: list[Int64], counts: list[Int64], now: int) -> list[Int64]:
        """Gives rows to the ids of a global batch that have none, in ascending order of id, until their bucket is full;
        rows of all of them, list by list. Counts and time do not matter here."""
        local = [self._index.rows_of(each) for each in ids]
        unknown = [each[rows < 0] for each, rows in zip(ids, local, strict=True)]
        if any(len(each) for each in unknown):
            self._admit(sums_of(unknown, unknown)[0])
            for rows, new in zip(local, unknown, strict=True):
                rows[rows < 0] = self._index.rows_of(new)
        return [self._global(rows) for rows in local]

    def rows_of(self, ids: Int64, upto_step: int | None = None) -> Int64:
        """Rows of ids of these buckets, in any order; ids without a row → the unknown row."""
        local = self._index.rows_of(ids)
        if upto_step is not None:
            bucket, slot = np.divmod(local, self.spec.rows_per_bucket)
            local = np.where((local >= 0) & (slot < self._used_at[upto_step][bucket]), local, -1)
        return self._global(local)

    def mark(self, step: int) -> None:
        """What has been learnt so far is up to this step."""
        self._used_at[step] = self.used.copy()

    def forget_before(self, step: int) -> None:
        """States as of earlier steps are no longer asked for."""
        self._used_at = {marked: used for marked, used in self._used_at.items() if marked >= step}

    def evicted(self, step: int) -> Int64:
        """None ever."""
        return np.empty(0, np.int64)

    def state(self, upto_step: int | None = None) -> dict[str, Int64]:
        """ "ids": [local buckets, rows per bucket], MISSING_ID where none; "used". Copies."""
        used = self.used if upto_step is None else self._used_at[upto_step]
        slots = np.arange(self.spec.rows_per_bucket)
        ids = np.where(slots < used[:, None], self._id_of_row.reshape(len(used), len(slots)), MISSING_ID)
        if 0 in self.buckets:
            ids[0, :RESERVED_ROWS] = MISSING_ID
        return {"ids": ids, "used": used.copy()}

    def load(self, state: dict[str, Int64]) -> None:
        """Takes over saved buckets, shaped as this rank's."""
        self._id_of_row[:] = state["ids"].ravel()
        self.used = state["used"].copy()
        self._index.clear()
        self._index.enter(rows_in_use(self.spec, self.buckets, self.used))
        self._used_at.clear()

    def _admit(self, new: Int64) -> None:
        """new: ascending, each once, none with a row."""
        rows_per_bucket = self.spec.rows_per_bucket
        bucket = bucket_of(self.spec, new) - self.buckets.start
        order = by_bucket(bucket)  # ascending ids inside
        new, bucket = new[order], bucket[order]
        counts = np.bincount(bucket, minlength=len(self.buckets))
        first = np.cumsum(counts) - counts
        slot = self.used[bucket] + np.arange(len(new)) - first[bucket]
        fits = slot < rows_per_bucket
        if not fits.all():
            self._warn()
        rows = (bucket * rows_per_bucket + slot)[fits]
        self._id_of_row[rows] = new[fits]
        self._index.enter(rows)
        self.used = np.minimum(self.used + counts, rows_per_bucket)
        self.admissions += len(rows)

    def _global(self, local: Int64) -> Int64:
        return np.where(local < 0, UNKNOWN_ROW, local + self.buckets.start * self.spec.rows_per_bucket)

    def _warn(self) -> None:
        if not self._warned:
            log.warning(
                "vocabulary of table %r: a bucket of %d rows is full → its new ids share the unknown row → more rows, "
                "or mapping = 'managed' or 'hash'",
                self.spec.name,
                self.spec.rows_per_bucket,
            )
        self._warned = True


def rows_in_use(spec: TableSpec, buckets: range, used: Int64) -> Int64:
    """Local rows that have been handed out to ids. used: [local buckets]."""
    taken = np.arange(spec.rows_per_bucket) < used[:, None]
    if 0 in buckets:
        taken[0, :RESERVED_ROWS] = False
    return np.flatnonzero(taken)
