"""What telemetry may ask of an id map: how much of a batch is known, how much is shared, what comes and goes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from embeddings.specs import RESERVED_ROWS, UNKNOWN_ROW, TableSpec
from pipelines.batch import Int64, TableIds

EVERY = 64  # one training batch in so many is looked at
SAMPLE = 1 << 16  # ids that a table's collision rate is estimated on


@dataclass(frozen=True)
class MapStats:
    """Of one table, as one rank sees it; sums over ranks are the whole's.

    ids: unique ids of one training batch in EVERY since last asked, batch after batch; unknown_ids: of them without a
    row of their own. sampled_ids: distinct ids on a sample of the rows, of all batches looked at since the process
    began; colliding_ids: of them those that share their row with another (hash tables only). admissions, evictions: all
    since last asked, in the buckets that this rank holds. rows_in_use, rows: of these buckets now (0 for stateless
    tables).
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
class CollisionSample:
    """All distinct ids that share of the rows has been given: an unbiased sample of rows, with all their ids. Twice as
    many rows are left out whenever the sample has become too large."""

    every: int = 1  # one row in so many
    ids: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    rows: Int64 = field(default_factory=lambda: np.empty(0, np.int64))

    def add(self, ids: Int64, rows: Int64) -> None:
        """One batch's ids and their rows."""
        ids, rows = np.concatenate([self.ids, ids]), np.concatenate([self.rows, rows])
        taken = (rows >= RESERVED_ROWS) & (rows % self.every == 0)
        self.ids, first = np.unique(ids[taken], return_index=True)
        self.rows = rows[taken][first]
        while len(self.ids) > SAMPLE:
            self.every *= 2
            kept = self.rows % self.every == 0
            self.ids, self.rows = self.ids[kept], self.rows[kept]

    def counts(self) -> tuple[int, int]:
        """(ids in the sample, of them those that share a row)."""
        _, sharing = np.unique(self.rows, return_counts=True)
        return len(self.ids), int(sharing[sharing > 1].sum())


class MapWatch:
    """Looks at some of the training batches, and keeps none of their arrays: they may lie in a store that is shared."""

    def __init__(self, specs: dict[str, TableSpec]) -> None:
        self._samples = {name: CollisionSample() for name, spec in specs.items() if spec.mapping == "hash"}
        self._counts = {name: [0, 0] for name in specs}  # unique ids, unknown ones
        self._batches = 0

    def saw(self, tables: dict[str, TableIds], rows: dict[str, Int64]) -> None:
        """One training batch: its unique ids and their rows."""
        self._batches += 1
        if self._batches % EVERY != 1 % EVERY:
            return
        for name, table in tables.items():
            self._counts[name][0] += len(table.ids)
            self._counts[name][1] += int(np.count_nonzero(rows[name] == UNKNOWN_ROW))
            if name in self._samples:
                self._samples[name].add(table.ids, rows[name])

    def take(self) -> dict[str, MapStats]:
        """{table: ids, unknown_ids, sampled_ids, colliding_ids}; the first two anew from here on."""
        found = {}
        for name, (ids, unknown) in self._counts.items():
            sampled, colliding = self._samples[name].counts() if name in self._samples else (0, 0)
            found[name] = MapStats(ids, unknown, sampled, colliding)
            self._counts[name] = [0, 0]
        return found
