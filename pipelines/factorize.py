"""Each id once: unique ids and, for every id, its place among them. Several times faster than sorting all of them."""

from __future__ import annotations

import numpy as np

from pipelines.batch import Int64

MULTIPLIERS = (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03, 0xAEF17502108EF2D9, 0x8CB92BA72F3D8DD7)
DENSE = 8  # a table of the ids' whole range is worth its memory up to this many places an id


def factorize(ids_V: Int64) -> tuple[Int64, Int64]:
    """(unique ids [U], ascending; inverse [V] with unique[inverse] = ids). Equals np.unique(ids, return_inverse=True).

    Ids are thrown into a table at a hash of theirs; whoever is read back speaks for all equal ids, and the others,
    which met a different id there, are thrown again elsewhere. Only the unique ids are sorted.
    """
    if not len(ids_V):
        return ids_V, np.zeros(0, np.int64)
    lowest, highest = int(ids_V.min()), int(ids_V.max())
    if highest - lowest < DENSE * len(ids_V):
        return _dense(ids_V, lowest, highest)
    speaker_V = np.empty(len(ids_V), np.int64)
    pending = np.arange(len(ids_V))
    bits = max(4, len(ids_V).bit_length() + 1)
    table = np.empty(1 << bits, np.int64)
    for throw in range(2 * len(MULTIPLIERS)):
        left = ids_V if len(pending) == len(ids_V) else ids_V[pending]
        slot = _slots(left, throw, bits)
        table[slot] = pending
        speaker = table[slot]
        same = ids_V[speaker] == left
        speaker_V[pending[same]] = speaker[same]
        pending = pending[~same]
        if not len(pending):
            break
    if len(pending):  # ids that share every slot: only by design of an adversary
        _, first, inverse = np.unique(ids_V[pending], return_index=True, return_inverse=True)
        speaker_V[pending] = pending[first][inverse]
    spoke = np.flatnonzero(speaker_V == np.arange(len(ids_V)))
    order = np.argsort(ids_V[spoke])  # distinct, so the fastest sort gives the one order there is
    place = np.empty(len(ids_V), np.int64)
    place[spoke[order]] = np.arange(len(spoke))
    return ids_V[spoke[order]], place[speaker_V]


def _dense(ids_V: Int64, lowest: int, highest: int) -> tuple[Int64, Int64]:
    """The same where ids lie close together: categories, buckets, numbered items. A place for each possible id."""
    offset_V = ids_V - lowest
    present = np.zeros(highest - lowest + 1, bool)
    present[offset_V] = True
    used_U = np.flatnonzero(present)
    place = np.empty(len(present), np.int64)
    place[used_U] = np.arange(len(used_U))
    return used_U + lowest, place[offset_V]


def _slots(ids: Int64, throw: int, bits: int) -> Int64:
    keys = ids.view(np.uint64)
    if throw >= len(MULTIPLIERS):
        keys = keys ^ (keys >> np.uint64(29))
    scaled = keys * np.uint64(MULTIPLIERS[throw % len(MULTIPLIERS)])
    return (scaled >> np.uint64(64 - bits)).astype(np.int64)
