"""The ids of each batch, each once: gathered from the window's columns, ranked and counted, table by table.

Sizes: B batches · C id columns, those of one table side by side · T tables · G groups (0 = static) · R rows, of all
batches · V values, batch after batch, column after column · U unique ids, batch after batch, table after table.
"""

from __future__ import annotations

import threading

import numpy as np

from pipelines.batch import Int32, Int64
from pipelines.compiled import I32, I64, I64_GR, READ_I64, inline, int64_at, kernel

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
DENSE_BITS = 64  # a bit for each possible id is worth it up to this many bits a value
DIGIT = 11  # bits that the radix sort takes at a time
CROWD = 16  # keys a bucket may hold to be sorted by insertion

ONE, SIX, LOW6, ALL = np.uint64(1), np.uint64(6), np.uint64(63), np.uint64(2**64 - 1)


class Scratch(threading.local):
    """Each thread's working memory, kept from batch to batch: fresh pages cost more than the work done in them."""

    def __init__(self) -> None:
        self._wide, self._narrow = np.empty(0, np.int64), np.empty(0, np.int32)

    def room(self, total: int, largest: int) -> tuple[Int64, Int64, Int64, Int32]:
        """For `total` values, the largest table having `largest` of them: (ids [V], counts [V], int64, int32)."""
        wide, narrow = 2 * total + 2 * largest + 64, 7 * largest + (1 << DIGIT) + 64
        if len(self._wide) < wide:
            self._wide = np.empty(wide + wide // 4, np.int64)
        if len(self._narrow) < narrow:
            self._narrow = np.empty(narrow + narrow // 4, np.int32)
        return self._wide[:total], self._wide[total : 2 * total], self._wide[2 * total :], self._narrow


SCRATCH = Scratch()


@inline
def _gather(group, values_at, inner_starts, inner_lengths, starts_R, lengths_R, raw_V, at):  # type: ignore[no-untyped-def]
    """Writes one column's values of these rows from raw_V[at] on; returns where they end."""
    values = int64_at(values_at)
    if inner_starts:
        first, many = int64_at(inner_starts), int64_at(inner_lengths)
        for r in range(len(starts_R)):
            for position in range(starts_R[r], starts_R[r] + lengths_R[r]):
                for v in range(first[position], first[position] + many[position]):
                    raw_V[at] = values[v]
                    at += 1
        return at
    if group == 0:
        for r in range(len(starts_R)):
            raw_V[at + r] = values[starts_R[r]]
        return at + len(starts_R)
    for r in range(len(starts_R)):
        start = starts_R[r]
        for k in range(lengths_R[r]):
            raw_V[at + k] = values[start + k]
        at += lengths_R[r]
    return at


@inline
def _rank_by_bitmap(raw_V, lowest, span, bits_W, ranks_W, inverse_V, ids_U, counts_U):  # type: ignore[no-untyped-def]
    """A bit for each possible id; an id's rank is the number of bits before its own. Returns the unique ids."""
    base = np.uint64(lowest)
    words = int(span >> SIX) + 1
    bits_W[:words] = 0
    for v in range(len(raw_V)):
        offset = np.uint64(raw_V[v]) - base
        bits_W[np.int64(offset >> SIX)] |= np.int64(ONE << (offset & LOW6))
    used = 0
    for word in range(words):
        ranks_W[word] = used
        bits = np.uint64(bits_W[word])
        while bits:
            low = bits & (~bits + ONE)
            ids_U[used] = np.int64(base + np.uint64(word * 64) + _ones(low - ONE))
            counts_U[used] = 0
            used += 1
            bits ^= low
    for v in range(len(raw_V)):
        offset = np.uint64(raw_V[v]) - base
        at = np.int64(offset >> SIX)
        below = np.uint64(bits_W[at]) & ((ONE << (offset & LOW6)) - ONE)
        rank = ranks_W[at] + np.int32(_ones(below))
        inverse_V[v] = rank
        counts_U[rank] += 1
    return used


@inline
def _rank_by_table(raw_V, lowest, span, rank_S, inverse_V, ids_U, counts_U):  # type: ignore[no-untyped-def]
    """A place for each possible id, where there are no more of them than values. Returns the unique ids."""
    rank_S[: np.int64(span) + 1] = 0
    for v in range(len(raw_V)):
        rank_S[raw_V[v] - lowest] = 1
    used = 0
    for place in range(np.int64(span) + 1):
        ids_U[used] = lowest + place
        counts_U[used] = 0
        present = rank_S[place]
        rank_S[place] = used
        used += present
    for v in range(len(raw_V)):
        rank = rank_S[raw_V[v] - lowest]
        inverse_V[v] = rank
        counts_U[rank] += 1
    return used


@inline
def _ones(bits):  # type: ignore[no-untyped-def]
    """How many bits are set: the compiler knows the pattern and writes one instruction."""
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (bits * np.uint64(0x0101010101010101)) >> np.uint64(56)


@inline
def _rank_by_hash(raw_V, wide, narrow, inverse_V, ids_U, counts_U):  # type: ignore[no-untyped-def]
    """An open hash table hands out numbers in order of sight; then the unique ids are sorted. Returns their number."""
    count = len(raw_V)
    shift, slots = np.uint64(63), 2
    while slots < 2 * count:
        slots *= 2
        shift -= ONE
    spare_U = wide[:count]
    places_S, order_U, rank_U = narrow[:slots], narrow[slots : slots + count], narrow[slots + count : slots + 2 * count]
    places_S[:] = -1
    used = 0
    for v in range(count):
        key = raw_V[v]
        mixed = np.uint64(key)
        mixed = (mixed ^ (mixed >> np.uint64(32))) * MULTIPLIER
        slot = np.int64(mixed >> shift)
        place = places_S[slot]
        while place >= 0 and ids_U[place] != key:
            slot = (slot + 1) & (slots - 1)
            place = places_S[slot]
        if place < 0:
            place = np.int32(used)
            places_S[slot] = place
            ids_U[used] = key
            counts_U[used] = 0
            used += 1
        counts_U[place] += 1
        inverse_V[v] = place
    _sort(used, ids_U, order_U, spare_U, rank_U, narrow[slots + 2 * count :])
    for u in range(used):
        spare_U[u] = counts_U[order_U[u]]
        rank_U[order_U[u]] = u
    counts_U[:used] = spare_U[:used]
    for v in range(count):
        inverse_V[v] = rank_U[inverse_V[v]]
    return used


@inline
def _sort(count, keys_U, order_U, spare_U, spare_order_U, starts):  # type: ignore[no-untyped-def]
    """Distinct keys ascending, in place; order_U: where each one was."""
    lowest, highest = keys_U[0], keys_U[0]
    for u in range(count):
        order_U[u] = u
        lowest, highest = min(lowest, keys_U[u]), max(highest, keys_U[u])
    base, shift = np.uint64(lowest), np.uint64(0)
    span = np.uint64(highest) - base
    fullest = CROWD + 1
    if span >> np.uint64(2 * DIGIT):  # else two digits are all there is
        while span >> shift >= np.uint64(count):
            shift += ONE
        buckets = np.int64(span >> shift) + 1
        fullest = _scatter(count, keys_U, order_U, spare_U, spare_order_U, base, shift, buckets, starts)
    if fullest > CROWD:
        _sort_by_digits(count, keys_U, order_U, spare_U, spare_order_U, base, span, starts)
        return
    for u in range(count):
        key, place, at = spare_U[u], spare_order_U[u], u
        while at and keys_U[at - 1] > key:
            keys_U[at], order_U[at] = keys_U[at - 1], order_U[at - 1]
            at -= 1
        keys_U[at], order_U[at] = key, place


@inline
def _sort_by_digits(count, keys_U, order_U, spare_U, spare_order_U, base, span, starts):  # type: ignore[no-untyped-def]
    """The lowest digit first, as far as the keys differ: whatever the keys are."""
    shift = np.uint64(0)
    while shift < np.uint64(64) and span >> shift:
        _scatter(count, keys_U, order_U, spare_U, spare_order_U, base, shift, 1 << DIGIT, starts)
        keys_U[:count] = spare_U[:count]
        order_U[:count] = spare_order_U[:count]
        shift += np.uint64(DIGIT)


@inline
def _scatter(count, keys_U, order_U, spare_U, spare_order_U, base, shift, buckets, starts):  # type: ignore[no-untyped-def]
    """Keys and order into spare, by the bits from `shift` on (modulo a power of two of buckets, unless they are all
    there are). Returns the fullest bucket's keys."""
    mask = np.uint64((1 << DIGIT) - 1) if buckets == 1 << DIGIT else ALL
    starts[:buckets] = 0
    for u in range(count):
        starts[np.int64(((np.uint64(keys_U[u]) - base) >> shift) & mask)] += 1
    begin, fullest = np.int32(0), np.int32(0)
    for bucket in range(buckets):
        here = starts[bucket]
        fullest = max(fullest, here)
        starts[bucket] = begin
        begin += here
    for u in range(count):
        place = np.int64(((np.uint64(keys_U[u]) - base) >> shift) & mask)
        at = starts[place]
        starts[place] = at + np.int32(1)
        spare_U[at], spare_order_U[at] = keys_U[u], order_U[u]
    return fullest


@inline
def _rank(raw_V, wide, narrow, inverse_V, ids_V, counts_V):  # type: ignore[no-untyped-def]
    """Unique ids, counts and inverse of these values, the way that suits their range. Returns the unique ids."""
    count = len(raw_V)
    if not count:
        return 0
    lowest, highest = raw_V[0], raw_V[0]
    for v in range(count):
        lowest = min(lowest, raw_V[v])
        highest = max(highest, raw_V[v])
    span = np.uint64(highest) - np.uint64(lowest)
    if span < np.uint64(count):
        return _rank_by_table(raw_V, lowest, span, narrow, inverse_V, ids_V, counts_V)
    if span < np.uint64(DENSE_BITS * count):
        return _rank_by_bitmap(raw_V, lowest, span, wide, narrow, inverse_V, ids_V, counts_V)
    return _rank_by_hash(raw_V, wide, narrow, inverse_V, ids_V, counts_V)


@kernel(READ_I64, READ_I64, READ_I64, I64_GR, I64_GR, READ_I64, I64_GR)
def count_values(inner_starts_C, inner_lengths_C, group_C, starts_GR, lengths_GR, rows_B, begins_BC):  # type: ignore[no-untyped-def]
    """Where each column's values begin, batch after batch; at [b, C] the batch ends. [B, C + 1]

    inner_…: addresses, of `ids` columns (else 0). starts, lengths: of the rows of all batches. rows_B: first row of
    each batch, and R.
    """
    total = 0
    for b in range(len(rows_B) - 1):
        for c in range(len(group_C)):
            begins_BC[b, c] = total
            g = group_C[c]
            for r in range(rows_B[b], rows_B[b + 1]):
                if inner_starts_C[c]:
                    many = int64_at(inner_lengths_C[c])
                    for position in range(starts_GR[g, r], starts_GR[g, r] + lengths_GR[g, r]):
                        total += many[position]
                else:
                    total += lengths_GR[g, r]
        begins_BC[b, len(group_C)] = total


@kernel(
    READ_I64, READ_I64, READ_I64, READ_I64, READ_I64, I64_GR, I64_GR, READ_I64, I64_GR,
    I64, I32, I32, I64, I64, I64_GR,
)  # fmt: skip
def unique_values(  # type: ignore[no-untyped-def]
    values_C, inner_starts_C, inner_lengths_C, group_C, first_T, starts_GR, lengths_GR, rows_B, begins_BC,
    wide, narrow, inverse_V, ids_V, counts_V, used_BT,
):  # fmt: skip
    """Fills inverse_V, and from where a table's values begin ids_V (ascending) and counts_V, used_BT of each.

    A table's columns are gone through for all batches while they are in the cache. values_C, inner_…: addresses.
    first_T: first column of each table, and C. wide, narrow: working memory.
    """
    for t in range(len(first_T) - 1):
        for b in range(len(rows_B) - 1):
            begin, end = begins_BC[b, first_T[t]], begins_BC[b, first_T[t + 1]]
            raw_V, at = wide[: end - begin], 0
            for c in range(first_T[t], first_T[t + 1]):
                g = group_C[c]
                starts_R = starts_GR[g][rows_B[b] : rows_B[b + 1]]
                lengths_R = lengths_GR[g][rows_B[b] : rows_B[b + 1]]
                at = _gather(g, values_C[c], inner_starts_C[c], inner_lengths_C[c], starts_R, lengths_R, raw_V, at)
            inverse, ids, counts = inverse_V[begin:end], ids_V[begin:end], counts_V[begin:end]
            used_BT[b, t] = _rank(raw_V, wide[end - begin :], narrow, inverse, ids, counts)


@kernel(I64_GR, READ_I64, I64_GR, I64, I64, I64, I64)
def pack_used(begins_BC, first_T, used_BT, ids_V, counts_V, ids_U, counts_U):  # type: ignore[no-untyped-def]
    """What `unique_values` has left of ids and counts, without the gaps."""
    u = 0
    for b in range(len(used_BT)):
        for t in range(used_BT.shape[1]):
            begin = begins_BC[b, first_T[t]]
            for v in range(begin, begin + used_BT[b, t]):
                ids_U[u], counts_U[u] = ids_V[v], counts_V[v]
                u += 1
