"""A managed table in plain, slow Python: what the rules say, id by id."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from embeddings.buckets import bucket_of
from embeddings.managed import candidates_per_bucket
from embeddings.specs import RESERVED_ROWS, UNKNOWN_ROW, TableSpec, seed_of
from pipelines.hashing import mix

WAYS = 8


@dataclass
class Bucket:
    """rows: {id: [slot, sightings, last seen]}. sets: {set: {id: [sightings, last seen]}} of candidates."""

    used: int
    rows: dict[int, list[int]] = field(default_factory=dict)
    sets: dict[int, dict[int, list[int]]] = field(default_factory=dict)


class Reference:
    """evicted: (id, its row) of every eviction so far, in order."""

    def __init__(self, spec: TableSpec) -> None:
        self.spec = spec
        self.buckets = [Bucket(RESERVED_ROWS if b == 0 else 0) for b in range(spec.buckets)]
        self.clock = 0
        self.evicted: list[tuple[int, int]] = []

    def learn(self, batch: dict[int, int], now: int) -> None:
        """batch: {id: occurrences in the global batch}."""
        self.clock = max(now, self.clock + 1)
        for index, bucket in enumerate(self.buckets):
            mine = {i: batch[i] for i in sorted(batch) if self._bucket(i) == index}
            for identifier, count in mine.items():
                if identifier in bucket.rows:
                    bucket.rows[identifier][1] += count
                    bucket.rows[identifier][2] = self.clock
            new = {i: n + self._sightings(bucket, i) for i, n in mine.items() if i not in bucket.rows}
            for identifier, total in new.items():
                if total >= self.spec.admit_after:
                    self._admit(index, identifier, total)
            for identifier, total in new.items():
                if identifier not in bucket.rows and self.spec.admit_after > 1:
                    self._keep(bucket, identifier, total)

    def row(self, identifier: int) -> int:
        """Its row in the whole table."""
        index = self._bucket(identifier)
        found = self.buckets[index].rows.get(identifier)
        return UNKNOWN_ROW if found is None else index * self.spec.rows_per_bucket + found[0]

    def _admit(self, index: int, identifier: int, total: int) -> None:
        bucket = self.buckets[index]
        if bucket.used < self.spec.rows_per_bucket:
            slot = bucket.used
            bucket.used += 1
        else:
            victim = self._victim(bucket)
            if victim is None:
                return
            slot = bucket.rows.pop(victim)[0]
            self.evicted.append((victim, index * self.spec.rows_per_bucket + slot))
        bucket.rows[identifier] = [slot, total, self.clock]
        bucket.sets.get(self._set(identifier), {}).pop(identifier, None)

    def _victim(self, bucket: Bucket) -> int | None:
        """Nobody of this batch."""
        others = [(i, count, seen) for i, (_, count, seen) in bucket.rows.items() if seen != self.clock]
        if self.spec.evict == "ttl":
            others = [o for o in others if self.clock - o[2] >= self.spec.ttl_days * 86_400_000_000]
        if self.spec.evict == "lfu":
            return min(((count, seen, i) for i, count, seen in others), default=(0, 0, None))[2]
        return min(((seen, i) for i, _, seen in others), default=(0, None))[1]

    def _keep(self, bucket: Bucket, identifier: int, total: int) -> None:
        of_set = bucket.sets.setdefault(self._set(identifier), {})
        if identifier not in of_set and len(of_set) == WAYS:
            del of_set[min((seen, count, i) for i, (count, seen) in of_set.items())[2]]
        of_set[identifier] = [total, self.clock]

    def _sightings(self, bucket: Bucket, identifier: int) -> int:
        return bucket.sets.get(self._set(identifier), {}).get(identifier, [0])[0]

    def _bucket(self, identifier: int) -> int:
        return int(bucket_of(self.spec, np.array([identifier]))[0])

    def _set(self, identifier: int) -> int:
        if self.spec.admit_after == 1:
            return 0
        hashed = int(mix(np.array([identifier]), seed_of("bucket", self.spec.name))[0])
        return hashed // self.spec.buckets % (candidates_per_bucket(self.spec) // WAYS)
