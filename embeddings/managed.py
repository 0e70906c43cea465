"""One rank's part of one managed table: a vocabulary whose full buckets evict.

An id has a row once it was sighted `admit_after` times. A full bucket takes the row of another id for it: under "lru"
of the one not seen for longest, under "lfu" of the one with fewest sightings (of these the one not seen for longest),
under "ttl" of one unseen for `ttl_days`, and of none else. The last tie goes by ascending id. An id in the batch is not
evicted for another one of it; where there is none to evict the new id remains unknown.

All of it is a function of the global batches, whatever the number of ranks: sightings are summed over ranks, new ids
come in ascending order, and time is the clock of `learn`.
"""

from __future__ import annotations

import numpy as np

from embeddings import admission_kernels as kernels
from embeddings.buckets import bucket_of, by_bucket, sums_of
from embeddings.id_kernels import sight
from embeddings.journal import Change, Journal
from embeddings.row_index import RowIndex
from embeddings.specs import RESERVED_ROWS, UNKNOWN_ROW, TableSpec
from embeddings.victim_kernels import LFU, LRU, TTL
from embeddings.vocabulary import rows_in_use
from pipelines.batch import Int32, Int64
from pipelines.schema import MISSING_ID

POLICIES = {"lru": LRU, "lfu": LFU, "ttl": TTL}
DAY = 86_400_000_000  # microseconds


def candidates_per_bucket(spec: TableSpec) -> int:
    """Places for ids with too few sightings: as many as rows, none where the first sighting is enough."""
    return -(-spec.rows_per_bucket // kernels.WAYS) * kernels.WAYS if spec.admit_after > 1 else 0


class ManagedMap:
    """Buckets `buckets` of a table, as they are after every batch learnt so far.

    used: int64 [local buckets], rows handed out, which never get fewer. admissions, evictions: since this process
    began.
    """

    def __init__(self, spec: TableSpec, buckets: range) -> None:
        self.spec = spec
        self.buckets = buckets
        self.room = candidates_per_bucket(spec)
        self._records = np.zeros((len(buckets) * spec.rows_per_bucket, 3), np.int64)  # id, sightings, last seen
        self._candidates = np.zeros((len(buckets) * self.room, 3), np.int64)
        self.used = np.zeros(len(buckets), np.int64)
        if 0 in buckets:
            self.used[0] = RESERVED_ROWS
        self._clock = 0
        self._index = RowIndex(spec.name, self._records.reshape(-1), 3)
        self._journal = Journal()
        self._heaps: Int32 = np.empty(0, np.int32)
        self._keys: Int64 = np.empty(0, np.int64)
        self._ready = np.zeros(len(buckets), np.int64)
        self._before: tuple[int, tuple[Int64, Int64]] | None = None  # (step, what differed then)
        self.admissions = self.evictions = 0

    @property
    def parts(self) -> tuple[str, ...]:
        """What `state` has."""
        kept = ("ids", "used", "counts", "last_seen", "clock")
        return (*kept, "candidate_ids", "candidate_counts", "candidate_last_seen") if self.room else kept

    def learn(self, ids: list[Int64], counts: list[Int64], now: int) -> list[Int64]:
        """Takes a global batch's ids of these buckets, from every rank a list in which each is once, with how often
        they occur (≥ 1); rows of all of them, list by list.

        now: the batch's newest event time, microseconds. The clock is that, or a microsecond after the batch before
        where that is later: time never runs back, and no two batches share one.
        """
        before = self._clock, self.used.copy()
        self._clock = max(now, self._clock + 1)
        sighted = [self._sight(each, often) for each, often in zip(ids, counts, strict=True)]
        local = [rows for rows, _, _ in sighted]
        unknown = [each[rows < 0] for each, rows in zip(ids, local, strict=True)]
        often = [each[rows < 0] for each, rows in zip(counts, local, strict=True)]
        admitted = self._admit(*sums_of(unknown, often))
        for rows, new in zip(local, unknown, strict=True):
            if len(new):
                rows[rows < 0] = self._index.rows_of(new)
        self._journal.add(
            Change(
                np.concatenate([changed for _, changed, _ in sighted]),
                np.concatenate([had for _, _, had in sighted]),
                *admitted,
                used=before[1],
                clock=before[0],
            )
        )
        self._before = None
        return [self._global(rows) for rows in local]

    def rows_of(self, ids: Int64, upto_step: int | None = None) -> Int64:
        """Rows of ids of these buckets, in any order, now or as of a step marked; ids without a row → the unknown
        row."""
        local = self._index.rows_of(ids)
        if upto_step is not None:
            if self._before is None or self._before[0] != upto_step:
                self._before = upto_step, self._journal.rows_before(upto_step)
            others, rows = self._before[1]
            if len(others):
                at = np.minimum(np.searchsorted(others, ids), len(others) - 1)
                local = np.where(others[at] == ids, rows[at], local)
        return self._global(local)

    def mark(self, step: int) -> None:
        """What has been learnt so far is up to this step."""
        self._journal.mark(step)
        self._before = None

    def forget_before(self, step: int) -> None:
        """States as of earlier steps are no longer asked for."""
        self._journal.forget_before(step)

    def evicted(self, step: int) -> Int64:
        """Rows that the step's batch took from one id for another: they begin anew with it. Ascending."""
        rows = [change.evicted for change in self._journal.of(step)]
        return self._global(np.concatenate(rows)) if rows else np.empty(0, np.int64)

    def state(self, upto_step: int | None = None) -> dict[str, Int64]:
        """As it is or was, in copies, by bucket: "ids", "counts", "last_seen" [local buckets, rows per bucket], ids
        MISSING_ID where no id has the row; "used", "clock" [local buckets]; with candidates "candidate_ids",
        "candidate_counts", "candidate_last_seen" [local buckets, places], counts 0 where a place is free."""
        records, candidates = self._records.copy(), self._candidates.copy()
        used, clock = self.used, self._clock
        for change in self._journal.since(upto_step):
            change.undo(records, candidates)
            used, clock = change.used, change.clock
        shape = (len(self.buckets), self.spec.rows_per_bucket)
        taken = np.zeros(len(records), bool)
        taken[rows_in_use(self.spec, self.buckets, used)] = True
        state = {
            "ids": np.where(taken, records[:, 0], MISSING_ID).reshape(shape),
            "used": used.copy(),
            "counts": np.where(taken, records[:, 1], 0).reshape(shape),
            "last_seen": np.where(taken, records[:, 2], 0).reshape(shape),
            "clock": np.full(len(self.buckets), clock),
        }
        if self.room:
            places = (len(self.buckets), self.room)
            for part, name in enumerate(("candidate_ids", "candidate_counts", "candidate_last_seen")):
                state[name] = np.ascontiguousarray(candidates[:, part]).reshape(places)
        return state

    def load(self, state: dict[str, Int64]) -> None:
        """Takes over saved buckets, shaped as this rank's."""
        for part, name in enumerate(("ids", "counts", "last_seen")):
            self._records[:, part] = state[name].ravel()
        self.used = state["used"].copy()
        self._clock = int(state["clock"].max(initial=0))
        if self.room:
            for part, name in enumerate(("candidate_ids", "candidate_counts", "candidate_last_seen")):
                self._candidates[:, part] = state[name].ravel()
        self._index.clear()
        self._index.enter(rows_in_use(self.spec, self.buckets, self.used))
        self._ready[:] = 0
        self._journal.clear()
        self._before = None

    def _sight(self, ids: Int64, counts: Int64) -> tuple[Int64, Int64, Int64]:
        """(local rows, rows whose record changed, (sightings, last seen) before)."""
        rows, changed, before = (np.empty(size * len(ids), np.int64) for size in (1, 1, 2))
        index, records = self._index, self._records.reshape(-1)
        noted = sight(
            np.ascontiguousarray(ids), np.ascontiguousarray(counts), self._clock, index.salt, index.slots, index.shift,
            records, rows, changed, before,
        )  # fmt: skip
        return rows, changed[:noted].copy(), before[: 2 * noted].copy().reshape(-1, 2)

    def _admit(self, ids: Int64, counts: Int64) -> tuple[Int64, Int64, Int64, Int64, Int64]:
        """ids: ascending, each once, none with a row. What `Change` wants to know of it."""
        bucket = bucket_of(self.spec, ids) - self.buckets.start
        order = by_bucket(bucket)  # ascending ids inside
        ids, counts, bucket = ids[order], counts[order], bucket[order]
        self._index.reserve(len(ids))
        self._make_heaps(bucket)
        total, rows, places = (np.empty(len(ids), np.int64) for _ in range(3))
        before, places_before = np.empty((len(ids), 3), np.int64), np.empty((len(ids), 3), np.int64)
        kernels.admit(
            self._settings(), ids, counts, bucket, self._index.slots, self._records.reshape(-1), self.used, self._heaps,
            self._keys, self._ready, self._candidates.reshape(-1), total, rows, before.reshape(-1), places,
            places_before.reshape(-1),
        )  # fmt: skip
        given = np.flatnonzero(rows >= 0)
        evictions = int(np.count_nonzero(before[given, 0] != MISSING_ID))
        self.admissions += len(given)
        self.evictions += evictions
        self._index.count += len(given) - evictions
        # Candidates that were admitted left their places before others took them.
        changed = np.concatenate([given, np.flatnonzero(rows < 0)])
        changed = changed[places[changed] >= 0]
        return rows[given], before[given], ids[given], places[changed], places_before[changed]

    def _make_heaps(self, bucket: Int64) -> None:
        """Memory for them, once a bucket might be full after these new ids."""
        if len(self._heaps) or not len(bucket):
            return
        wanted = self.used + np.bincount(bucket, minlength=len(self.used))
        if wanted.max() > self.spec.rows_per_bucket:
            self._heaps = np.empty(len(self._records), np.int32)
            self._keys = np.empty(len(self._records) * (2 if self.spec.evict == "lfu" else 1), np.int64)

    def _settings(self) -> Int64:
        settings = np.zeros(kernels.SETTINGS, np.int64)
        settings[kernels.ROWS], settings[kernels.ROOM], settings[kernels.BUCKETS] = (
            self.spec.rows_per_bucket,
            self.room,
            self.spec.buckets,
        )
        settings[kernels.RESERVED] = RESERVED_ROWS if 0 in self.buckets else 0
        settings[kernels.ADMIT_AFTER], settings[kernels.POLICY] = self.spec.admit_after, POLICIES[self.spec.evict]
        settings[kernels.TTL_US] = round(self.spec.ttl_days * DAY)
        settings[kernels.SALT], settings[kernels.SHIFT], settings[kernels.CLOCK] = (
            self._index.salt,
            self._index.shift,
            self._clock,
        )
        return settings

    def _global(self, local: Int64) -> Int64:
        return np.where(local < 0, UNKNOWN_ROW, local + self.buckets.start * self.spec.rows_per_bucket)
