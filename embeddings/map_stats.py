"""What telemetry may ask of an id map: how much of a batch is known, how much is shared, what comes and goes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from embeddings.specs import RESERVED_ROWS, UNKNOWN_ROW
from pipelines.batch import Int64

SAMPLE = 1 << 16  # ids that a table's collision rate is estimated on


@dataclass(frozen=True)
class MapStats:
    """Of one table, as one rank sees it; sums over ranks are the whole's. Counts are since last asked.

    ids: unique ids of this rank's training batches, batch after batch; unknown_ids: of them without a row of their own.
    sampled_ids: distinct ids on a sample of the rows since the process began, colliding_ids: of them those that share
    their row with another (hash tables only). admissions, evictions: in the buckets that this rank holds. rows_in_use,
    rows: of these buckets now (0 for stateless tables).
    """

    ids: int = 0
    unknown_ids: int = 0
    sampled_ids: int = 0
    colliding_ids: int = 0
    admissions: int = 0
    evictions: int = 0
    rows_in_use: int = 0
    rows: int = 0

    def __add__(self, other: MapStats) -> MapStats:
        return MapStats(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def unknown_rate(self) -> float:
        """Share of the unique ids of a batch that have no row of their own."""
        return self.unknown_ids / max(1, self.ids)

    @property
    def collision_rate(self) -> float:
        """Share of the distinct ids that share their row with another one."""
        return self.colliding_ids / max(1, self.sampled_ids)

    @property
    def fill(self) -> float:
        """Share of the rows that an id has, or had."""
        return self.rows_in_use / max(1, self.rows)


@dataclass
class Sightings:
    """Counts of one table's ids as they are mapped."""

    ids: int = 0
    unknown_ids: int = 0

    def add(self, rows: Int64) -> None:
        """Rows of one batch's unique ids."""
        self.ids += len(rows)
        self.unknown_ids += int(np.count_nonzero(rows == UNKNOWN_ROW))


@dataclass
class CollisionSample:
    """All distinct ids that share of the rows has been given: an unbiased sample of rows, with all their ids. Twice as
    many rows are left out whenever the sample has become too large."""

    every: int = 1  # one row in so many
    ids: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    rows: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    _new: list[tuple[Int64, Int64]] = field(default_factory=list)
    _waiting: int = 0

    def add(self, ids: Int64, rows: Int64) -> None:
        """One batch's ids and their rows."""
        taken = (rows >= RESERVED_ROWS) & (rows % self.every == 0)
        self._new.append((ids[taken], rows[taken]))
        self._waiting += len(self._new[-1][0])
        if self._waiting > SAMPLE:
            self._settle()

    def counts(self) -> tuple[int, int]:
        """(ids in the sample, of them those that share a row)."""
        self._settle()
        _, sharing = np.unique(self.rows, return_counts=True)
        return len(self.ids), int(sharing[sharing > 1].sum())

    def _settle(self) -> None:
        ids = np.concatenate([self.ids, *(each for each, _ in self._new)])
        rows = np.concatenate([self.rows, *(each for _, each in self._new)])
        self._new, self._waiting = [], 0
        self.ids, first = np.unique(ids, return_index=True)
        self.rows = rows[first]
        while len(self.ids) > SAMPLE:
            self.every *= 2
            kept = self.rows % self.every == 0
            self.ids, self.rows = self.ids[kept], self.rows[kept]
