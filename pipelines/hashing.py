"""64-bit ids: integers as they are, strings by a stable hash. This holds for ever: ids live in checkpoints.

`hash_strings` is FNV-1a 64 over the UTF-8 bytes, read as a signed integer: "" → 0xCBF29CE484222325,
"a" → 0xAF63DC4C8601EC8C, "foobar" → 0x85944171F73967E8.

`mix(id, seed)` is splitmix64's output function on the state id + (seed + 1) · 0x9E3779B97F4A7C15 (mod 2^64):
mix(0, 0) = 0xE220A8397B1DCDAF, mix(1, 0) = 0x910A2DEC89025CC1, mix(-1, 7) = 0x405DA438A39E8064.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.schema import MISSING_ID

FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)
GOLDEN = 0x9E3779B97F4A7C15
ArrowArray: TypeAlias = pa.Array | pa.ChunkedArray


def mix(ids: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.uint64]:
    """A uniform 64-bit hash of each id, independent between seeds (0 ≤ seed < 2^63)."""
    z = ids.astype(np.int64, copy=False).view(np.uint64) + np.uint64((seed + 1) * GOLDEN % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def derive_seed(*parts: int | str) -> int:
    """One seed (63 bits) from several numbers and names, in this order."""
    state = 0
    for part in parts:
        number = _hash_text(part) if isinstance(part, str) else part
        state = int(mix(np.array([(state ^ number) % 2**64], np.uint64).view(np.int64), 1)[0])
    return state >> 1


def _hash_text(text: str) -> int:
    """`hash_strings` of one, in plain Python: seeds need no kernels."""
    state = 0xCBF29CE484222325
    for octet in text.encode():
        state = (state ^ octet) * 0x100000001B3 % 2**64
    return state


def permutation(count: int, seed: int) -> npt.NDArray[np.int64]:
    """A seeded order of 0 … count − 1 that no library version changes."""
    return np.argsort(mix(np.arange(count), seed), kind="stable")


def hash_strings(array: ArrowArray) -> npt.NDArray[np.int64]:
    """FNV-1a 64 of each string (string, large_string, or a dictionary of them); null → MISSING_ID."""
    array = _one_array(array)
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    hashes_D = _fnv1a(array.dictionary.cast(pa.large_string()))
    missing = array.dictionary.null_count
    if missing:
        hashes_D[np.asarray(array.dictionary.is_null())] = MISSING_ID
    hashes_D = np.append(hashes_D, np.int64(MISSING_ID))
    codes = pc.fill_null(array.indices.cast(pa.int64()), len(hashes_D) - 1)
    hashes: npt.NDArray[np.int64] = hashes_D[codes.to_numpy(zero_copy_only=False)]
    return hashes


def ids_of(array: ArrowArray) -> npt.NDArray[np.int64]:
    """Ids of a column of integers (uint64 reinterpreted), booleans (0, 1) or strings (hashed); null → MISSING_ID.

    Raises TypeError for any other Arrow type.
    """
    array = _one_array(array)
    kind = array.type
    if pa.types.is_dictionary(kind) and not _is_string(kind.value_type):
        return ids_of(array.dictionary_decode())
    if pa.types.is_dictionary(kind) or _is_string(kind):
        return hash_strings(array)
    if pa.types.is_null(kind):
        return np.full(len(array), MISSING_ID)
    if pa.types.is_uint64(kind):
        array = array.view(pa.int64())
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        array = array.cast(pa.int64())
    else:
        raise TypeError(f"ids of Arrow type {kind} → ids are integers, booleans or strings")
    filled = array.fill_null(MISSING_ID) if array.null_count else array
    result: npt.NDArray[np.int64] = filled.to_numpy()
    return result


def _one_array(array: ArrowArray) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _fnv1a(strings: pa.LargeStringArray) -> npt.NDArray[np.int64]:
    """One pass per byte position over the strings still that long: they are sorted by length, so these are a prefix."""
    _, offsets, data = strings.buffers()
    count = len(strings)
    hashes = np.full(count, FNV_OFFSET)
    if count == 0 or data is None or data.size == 0:
        return hashes.view(np.int64)
    bounds = np.frombuffer(offsets, np.int64)[strings.offset : strings.offset + count + 1]
    octets = np.frombuffer(data, np.uint8)
    lengths = np.diff(bounds)
    order = np.argsort(-lengths, kind="stable")
    starts, sorted_lengths = bounds[:-1][order], lengths[order]
    running = hashes[order]
    ends = np.searchsorted(-sorted_lengths, -np.arange(1, int(sorted_lengths[0]) + 1), side="right")
    for position, alive in enumerate(ends):
        running[:alive] = (running[:alive] ^ octets[starts[:alive] + position]) * FNV_PRIME
    hashes[order] = running
    return hashes.view(np.int64)
