"""The inner loop of managed tables: who is admitted, who is evicted for them, and who remains a candidate.

L local buckets · R rows of each · C candidates of each · N ids. Records are (id, sightings, last seen): [L · R · 3] of
rows, [L · C · 3] of candidates, where a place without sightings is free.

Candidates: a bucket's places for ids with too few sightings, in sets of WAYS. An id has the set its hash says; where
the set is full, the one not seen for longest goes (then the one with fewest sightings, then the lowest id).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from embeddings.id_kernels import drop_one, mixed, put_one
from embeddings.victim_kernels import LFU, fill_heap, refresh, up, victim
from pipelines.compiled import I32, I64, READ_I64, inline, kernel
from pipelines.schema import MISSING_ID

WAYS = 8

# Places of `admit`'s settings.
ROWS, RESERVED, ROOM, BUCKETS, ADMIT_AFTER, POLICY, TTL_US, SALT, SHIFT, CLOCK, SETTINGS = range(11)


@inline
def _set_of(key: Any, bucket: Any, room: Any, buckets: Any, salt: Any) -> Any:
    """First place of the id's set, in its local bucket."""
    sets = np.uint64(room // WAYS)
    return bucket * room + WAYS * np.int64((mixed(key, salt) // np.uint64(buckets)) % sets)


@inline
def _place_of(key: Any, first: Any, candidates: Any) -> Any:
    """The place of a candidate in the set from `first` on, −1 if it is none."""
    for place in range(first, first + WAYS):
        if candidates[3 * place] == key and candidates[3 * place + 1] > 0:
            return place
    return np.int64(-1)


@inline
def _give_way(first: Any, candidates: Any) -> Any:
    """The place of a set for one more candidate: a free one, or that of the one longest unseen."""
    best = first
    for place in range(first, first + WAYS):
        if candidates[3 * place + 1] == 0:
            return place
        for part in (2, 1, 0):
            mine, other = candidates[3 * place + part], candidates[3 * best + part]
            if mine != other:
                if mine < other:
                    best = place
                break
    return best


@inline
def _write(record: Any, place: Any, key: Any, count: Any, seen: Any) -> Any:
    record[3 * place], record[3 * place + 1], record[3 * place + 2] = key, count, seen


@inline
def _note(record: Any, place: Any, before: Any, at: Any) -> Any:
    for part in range(3):
        before[3 * at + part] = record[3 * place + part]


@inline
def _count(begin: Any, settings: Any, ids_N: Any, counts_N: Any, bucket_N: Any, candidates: Any, total_N: Any,
           place_N: Any) -> Any:  # fmt: skip
    """Each id's sightings so far and its place among the candidates, if any. Returns where the bucket's ids end."""
    bucket, room = bucket_N[begin], settings[ROOM]
    end = begin
    while end < len(ids_N) and bucket_N[end] == bucket:
        total_N[end], place_N[end] = counts_N[end], -1
        if room:
            first = _set_of(ids_N[end], bucket, room, settings[BUCKETS], settings[SALT])
            place_N[end] = _place_of(ids_N[end], first, candidates)
            if place_N[end] >= 0:
                total_N[end] += candidates[3 * place_N[end] + 1]
        end += 1
    return end


@inline
def _give_rows(begin: Any, end: Any, settings: Any, ids_N: Any, bucket: Any, slots_S: Any, records: Any, used_L: Any,
               heap: Any, keys: Any, ready_L: Any, total_N: Any, row_N: Any, before: Any) -> Any:  # fmt: skip
    """Rows for those that have been sighted often enough: free ones, then those of victims."""
    rows, policy, clock, salt, shift = (
        settings[ROWS], settings[POLICY], settings[CLOCK], settings[SALT], settings[SHIFT],
    )  # fmt: skip
    base = bucket * rows
    skipped = settings[RESERVED] if bucket == 0 else 0
    whole = rows - skipped
    size = whole
    for i in range(begin, end):
        row_N[i] = -1
        if total_N[i] < settings[ADMIT_AFTER]:
            continue
        if used_L[bucket] < rows:
            row = np.int64(base + used_L[bucket])
            used_L[bucket] += 1
            _write(before, i, MISSING_ID, 0, 0)
        else:
            if not ready_L[bucket]:
                fill_heap(whole, skipped, policy, heap, keys, base, records)
                ready_L[bucket] = 1
            row, size = victim(size, policy, clock, settings[TTL_US], heap, keys, base, records)
            if row < 0:
                continue
            _note(records, row, before, i)
            drop_one(row, salt, slots_S, shift, records, 3)
        _write(records, row, ids_N[i], total_N[i], clock)
        put_one(ids_N[i], row, salt, slots_S, shift)
        row_N[i] = row
    for k in range(size, whole):  # those put behind the heap's end
        refresh(k, policy, heap, keys, base, records)
        up(k, policy, heap, keys, base, records)


@inline
def _remember(begin: Any, end: Any, settings: Any, ids_N: Any, bucket: Any, candidates: Any, total_N: Any, row_N: Any,
              place_N: Any, place_before: Any) -> Any:  # fmt: skip
    """Those that were given rows leave the candidates; then the others are written down as such."""
    for i in range(begin, end):
        if row_N[i] >= 0 and place_N[i] >= 0:
            _note(candidates, place_N[i], place_before, i)
            _write(candidates, place_N[i], 0, 0, 0)
    if not settings[ROOM]:
        return
    for i in range(begin, end):
        if row_N[i] < 0:
            first = _set_of(ids_N[i], bucket, settings[ROOM], settings[BUCKETS], settings[SALT])
            place = _place_of(ids_N[i], first, candidates)
            if place < 0:
                place = _give_way(first, candidates)
            place_N[i] = place
            _note(candidates, place, place_before, i)
            _write(candidates, place, ids_N[i], total_N[i], settings[CLOCK])


@kernel(
    I64, READ_I64, READ_I64, READ_I64, I32, I64, I64, I32, I64, I64, I64, I64, I64, I64, I64, I64
)  # fmt: skip
def admit(
    settings: Any, ids_N: Any, counts_N: Any, bucket_N: Any, slots_S: Any, records: Any, used_L: Any, heaps: Any,
    keys: Any, ready_L: Any, candidates: Any, total_N: Any, row_N: Any, before: Any, place_N: Any, place_before: Any,
) -> None:  # fmt: skip
    """Ids without a row, by local bucket and then ascending, with their sightings in this batch: some get one.

    row_N: local rows, −1 where the id remains unknown. before: what the record of row_N was, its id MISSING_ID where it
    was free. place_N: the candidate's place that was changed on account of an id (−1: none), place_before: what it was.
    total_N: working memory. heaps, keys, ready_L: which need not hold anything before a bucket is full.
    """
    rows = settings[ROWS]
    width = 2 if settings[POLICY] == LFU else 1
    begin = 0
    while begin < len(ids_N):
        bucket = bucket_N[begin]
        end = _count(begin, settings, ids_N, counts_N, bucket_N, candidates, total_N, place_N)
        heap = heaps[bucket * rows : (bucket + 1) * rows]
        own_keys = keys[width * bucket * rows : width * (bucket + 1) * rows]
        _give_rows(
            begin, end, settings, ids_N, bucket, slots_S, records, used_L, heap, own_keys, ready_L, total_N, row_N,
            before,
        )  # fmt: skip
        _remember(begin, end, settings, ids_N, bucket, candidates, total_N, row_N, place_N, place_before)
        begin = end
