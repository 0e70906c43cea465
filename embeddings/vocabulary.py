"""One rank's part of one table's vocabulary: the buckets it holds, and which id has which of their rows."""

from __future__ import annotations

import logging

import numpy as np

from embeddings.specs import RESERVED_ROWS, UNKNOWN_ROW, TableSpec, seed_of
from pipelines.batch import Int64
from pipelines.hashing import mix
from pipelines.schema import MISSING_ID

log = logging.getLogger(__name__)

# Newly admitted ids are merged into the large sorted array once they are this many, or this share of it.
MERGE_AT = 1 << 14
MERGE_SHARE = 8


def bucket_of(spec: TableSpec, ids: Int64) -> Int64:
    """The bucket of each id: a hash, for ever the same."""
    return (mix(ids, seed_of("bucket", spec.name)) % np.uint64(spec.buckets)).astype(np.int64)


class Vocabulary:
    """Buckets `buckets` of a table. A bucket hands its rows out from the first on and never takes one back, so that
    how many rows each bucket has used says which ids the map held at any earlier time.

    id_of_row: int64 [local buckets, rows per bucket], MISSING_ID where none. used: int64 [local buckets], rows handed
               out.
    """

    def __init__(self, spec: TableSpec, buckets: range) -> None:
        self.spec = spec
        self.buckets = buckets
        self.id_of_row = np.full((len(buckets), spec.rows_per_bucket), MISSING_ID)
        self.used = np.zeros(len(buckets), np.int64)
        if 0 in buckets:
            self.used[0] = RESERVED_ROWS
        self._settled = _Index.empty()
        self._recent = _Index.empty()
        self._warned = False

    def rows_of(self, ids: Int64) -> Int64:
        """Rows of ids of these buckets, in any order; ids without a row → the unknown row."""
        rows = self._settled.rows_of(ids)
        return np.where(rows == UNKNOWN_ROW, self._recent.rows_of(ids), rows)

    def admit(self, ids: Int64) -> None:
        """Gives rows to the ids that have none, in ascending order of id, until their bucket is full. ids:
        ascending, each once.
        """
        new = ids[self.rows_of(ids) == UNKNOWN_ROW]
        if not len(new):
            return
        bucket = bucket_of(self.spec, new) - self.buckets.start
        order = np.argsort(bucket, kind="stable")  # by bucket, ascending ids inside
        new, bucket = new[order], bucket[order]
        counts = np.bincount(bucket, minlength=len(self.buckets))
        first = np.cumsum(counts) - counts
        slot = self.used[bucket] + np.arange(len(new)) - first[bucket]
        fits = slot < self.spec.rows_per_bucket
        if not fits.all():
            self._warn()
        new, bucket, slot = new[fits], bucket[fits], slot[fits]
        self.id_of_row[bucket, slot] = new
        self.used = np.minimum(self.used + counts, self.spec.rows_per_bucket)
        self._recent = self._recent.merged(new, self._row(bucket, slot))
        if len(self._recent.ids) > max(MERGE_AT, len(self._settled.ids) // MERGE_SHARE):
            self._settled = self._settled.merged(self._recent.ids, self._recent.rows)
            self._recent = _Index.empty()

    def load(self, id_of_row: Int64, used: Int64) -> None:
        """Takes over saved buckets, shaped as this rank's."""
        self.id_of_row, self.used = id_of_row.copy(), used.copy()
        bucket, slot = np.nonzero(np.arange(self.spec.rows_per_bucket) < self.used[:, None])
        ids, rows = self.id_of_row[bucket, slot], self._row(bucket, slot)
        taken = rows >= RESERVED_ROWS
        self._settled = _Index.empty().merged(ids[taken], rows[taken])
        self._recent = _Index.empty()

    def _row(self, bucket: Int64, slot: Int64) -> Int64:
        rows: Int64 = (bucket + self.buckets.start) * self.spec.rows_per_bucket + slot
        return rows

    def _warn(self) -> None:
        if not self._warned:
            log.warning(
                "vocabulary of table %r: a bucket of %d rows is full → its new ids share the unknown row → more rows, "
                "or mapping = 'hash'",
                self.spec.name,
                self.spec.rows_per_bucket,
            )
        self._warned = True


class _Index:
    """Sorted ids and their rows."""

    def __init__(self, ids: Int64, rows: Int64) -> None:
        self.ids = ids
        self.rows = rows

    @classmethod
    def empty(cls) -> _Index:
        return cls(np.empty(0, np.int64), np.empty(0, np.int64))

    def rows_of(self, ids: Int64) -> Int64:
        if not len(self.ids):
            return np.full(len(ids), UNKNOWN_ROW)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[at] == ids, self.rows[at], UNKNOWN_ROW)

    def merged(self, ids: Int64, rows: Int64) -> _Index:
        all_ids = np.concatenate([self.ids, ids])
        order = np.argsort(all_ids, kind="stable")
        return _Index(all_ids[order], np.concatenate([self.rows, rows])[order])
