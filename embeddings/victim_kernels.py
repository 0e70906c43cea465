"""Who is evicted next: each full bucket has a binary heap of its rows, ordered by what eviction goes by.

Sightings only add to that, so a sighting touches no heap: its keys are lower bounds, brought up to date when they come
to the top. The top is the bucket's next victim once its key is the row's own.

Records are (id, sightings, last seen). A heap is of row numbers in the bucket, whose first local row is `base`; its
keys are one int64 a row (last seen), under "lfu" two (sightings, last seen).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.compiled import inline

LRU, LFU, TTL = 0, 1, 2


@inline
def _less(a: Any, b: Any, policy: Any, heap: Any, keys: Any, base: Any, records: Any) -> Any:
    """Whether place a of the heap comes before place b; the last tie goes by ascending id."""
    width = 2 if policy == LFU else 1
    if keys[width * a] != keys[width * b]:
        return keys[width * a] < keys[width * b]
    if policy == LFU and keys[2 * a + 1] != keys[2 * b + 1]:
        return keys[2 * a + 1] < keys[2 * b + 1]
    return records[3 * (base + heap[a])] < records[3 * (base + heap[b])]


@inline
def _swap(a: Any, b: Any, policy: Any, heap: Any, keys: Any) -> Any:
    heap[a], heap[b] = heap[b], heap[a]
    width = 2 if policy == LFU else 1
    for k in range(width):
        keys[width * a + k], keys[width * b + k] = keys[width * b + k], keys[width * a + k]


@inline
def _down(at: Any, size: Any, policy: Any, heap: Any, keys: Any, base: Any, records: Any) -> Any:
    while True:
        child = 2 * at + 1
        if child >= size:
            return
        if child + 1 < size and _less(child + 1, child, policy, heap, keys, base, records):
            child += 1
        if not _less(child, at, policy, heap, keys, base, records):
            return
        _swap(at, child, policy, heap, keys)
        at = child


@inline
def up(at: Any, policy: Any, heap: Any, keys: Any, base: Any, records: Any) -> Any:
    while at > 0:
        parent = (at - 1) // 2
        if not _less(at, parent, policy, heap, keys, base, records):
            return
        _swap(at, parent, policy, heap, keys)
        at = parent


@inline
def refresh(at: Any, policy: Any, heap: Any, keys: Any, base: Any, records: Any) -> Any:
    """Brings a place's key up to date; whether it was not."""
    row = base + heap[at]
    if policy != LFU:
        seen = records[3 * row + 2]
        stale = keys[at] != seen
        keys[at] = seen
        return stale
    stale = keys[2 * at] != records[3 * row + 1] or keys[2 * at + 1] != records[3 * row + 2]
    keys[2 * at], keys[2 * at + 1] = records[3 * row + 1], records[3 * row + 2]
    return stale


@inline
def fill_heap(size: Any, skipped: Any, policy: Any, heap: Any, keys: Any, base: Any, records: Any) -> Any:
    """The heap of a full bucket, whose first `skipped` rows no id can have."""
    for k in range(size):
        heap[k] = skipped + k
        refresh(k, policy, heap, keys, base, records)
    for k in range(size // 2, -1, -1):
        _down(k, size, policy, heap, keys, base, records)


@inline
def victim(size: Any, policy: Any, clock: Any, ttl: Any, heap: Any, keys: Any, base: Any, records: Any) -> Any:
    """(local row to evict, −1 if none, the heap's size then). Rows seen at this clock are in the batch: they are put
    behind the heap's end, and so is the victim."""
    while size > 0:
        if refresh(0, policy, heap, keys, base, records):
            _down(0, size, policy, heap, keys, base, records)
            continue
        row = np.int64(base + heap[0])
        seen = records[3 * row + 2]
        if policy == TTL and clock - seen < ttl:
            break
        size -= 1
        _swap(0, size, policy, heap, keys)
        _down(0, size, policy, heap, keys, base, records)
        if seen != clock:
            return row, size
    return np.int64(-1), size
