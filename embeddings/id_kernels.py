"""The inner loops of id maps: an open hash table from ids to the local rows of their records.

A record is `stride` int64 of which the first is the id. Records lie bucket after bucket, row after row; the table holds
int32 row numbers (−1: free), is at most half full, and is probed from the upper bits of the id's bucket hash on.
Like the readers' kernels these work on integers only, and let go of the GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from pipelines.compiled import I32, I64, READ_I64, inline, kernel

SCALAR = types.int64
MULTIPLY_1, MULTIPLY_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
BITS_30, BITS_27, BITS_31 = np.uint64(30), np.uint64(27), np.uint64(31)


@inline
def mixed(key: Any, salt: Any) -> Any:
    """pipelines.hashing.mix of one id, `salt` being (seed + 1) · golden ratio."""
    z = np.uint64(key) + np.uint64(salt)
    z = (z ^ (z >> BITS_30)) * MULTIPLY_1
    z = (z ^ (z >> BITS_27)) * MULTIPLY_2
    return z ^ (z >> BITS_31)


@inline
def home(key: Any, salt: Any, slots_S: Any, shift: Any) -> Any:
    """Where the probing for an id begins. shift: 64 − log2 S."""
    return np.int64(mixed(key, salt) >> np.uint64(shift))


@inline
def find_one(key: Any, salt: Any, slots_S: Any, shift: Any, records: Any, stride: Any) -> Any:
    """The id's row, −1 if it has none."""
    at = home(key, salt, slots_S, shift)
    row = slots_S[at]
    while row >= 0 and records[row * stride] != key:
        at = (at + 1) & (len(slots_S) - 1)
        row = slots_S[at]
    return np.int64(row)


@inline
def put_one(key: Any, row: Any, salt: Any, slots_S: Any, shift: Any) -> Any:
    """Enters an id that is not there."""
    at = home(key, salt, slots_S, shift)
    while slots_S[at] >= 0:
        at = (at + 1) & (len(slots_S) - 1)
    slots_S[at] = row


@inline
def drop_one(row: Any, salt: Any, slots_S: Any, shift: Any, records: Any, stride: Any) -> Any:
    """Takes the id of this row's record out, and moves those up that had to probe past it."""
    mask = len(slots_S) - 1
    hole = home(records[row * stride], salt, slots_S, shift)
    while slots_S[hole] != row:
        hole = (hole + 1) & mask
    at = hole
    while True:
        at = (at + 1) & mask
        mover = slots_S[at]
        if mover < 0:
            break
        wanted = home(records[mover * stride], salt, slots_S, shift)
        if ((at - wanted) & mask) >= ((at - hole) & mask):
            slots_S[hole] = mover
            hole = at
    slots_S[hole] = -1


@kernel(READ_I64, SCALAR, I32, SCALAR, I64, SCALAR, I64)
def find(ids: Any, salt: Any, slots_S: Any, shift: Any, records: Any, stride: Any, rows: Any) -> None:
    """Local rows of the ids, −1 where they have none, into `rows`."""
    for i in range(len(ids)):
        rows[i] = find_one(ids[i], salt, slots_S, shift, records, stride)


@kernel(READ_I64, SCALAR, I32, SCALAR, I64, SCALAR)
def enter(rows: Any, salt: Any, slots_S: Any, shift: Any, records: Any, stride: Any) -> None:
    """Enters the ids of these rows' records; none of them is there yet."""
    for i in range(len(rows)):
        put_one(records[rows[i] * stride], rows[i], salt, slots_S, shift)


@kernel(READ_I64, READ_I64, SCALAR, SCALAR, I32, SCALAR, I64, I64, I64, I64, returns=SCALAR)
def sight(
    ids: Any, counts: Any, clock: Any, salt: Any, slots_S: Any, shift: Any, records: Any,
    rows: Any, changed: Any, before: Any,
) -> Any:  # fmt: skip
    """Counts the sightings of the ids that have rows. Records are (id, sightings, last seen).

    rows: local rows, −1 where none. A record that is changed for the first time at this clock is noted: its row in
    `changed`, (sightings, last seen) as they were in `before`. Returns how many were.
    """
    noted = 0
    for i in range(len(ids)):
        row = find_one(ids[i], salt, slots_S, shift, records, 3)
        rows[i] = row
        if row < 0:
            continue
        if records[3 * row + 2] != clock:
            changed[noted] = row
            before[2 * noted] = records[3 * row + 1]
            before[2 * noted + 1] = records[3 * row + 2]
            noted += 1
            records[3 * row + 2] = clock
        records[3 * row + 1] += counts[i]
    return noted
