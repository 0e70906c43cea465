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

from pipelines.arrow_arrays import nulls_of, one_array, raw_values
from pipelines.schema import MISSING_ID

GOLDEN = 0x9E3779B97F4A7C15
ArrowArray: TypeAlias = pa.Array | pa.ChunkedArray


def mix(ids: npt.NDArray[np.int64], seed: int | npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A uniform 64-bit hash of each id, independent between seeds (0 ≤ seed < 2^63): one of all, or one of each."""
    step = (
        np.uint64((seed + 1) * GOLDEN % 2**64) if isinstance(seed, int) else (seed + np.uint64(1)) * np.uint64(GOLDEN)
    )
    z: npt.NDArray[np.uint64] = ids.astype(np.int64, copy=False).view(np.uint64) + step
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
    array = one_array(array)
    if not pa.types.is_dictionary(array.type):
        return _hash_plain(array)
    hashes_D = np.append(_hash_plain(array.dictionary), np.int64(MISSING_ID))
    codes = raw_values(array.indices)
    if codes is None:
        codes = array.indices.to_numpy()
    if array.indices.null_count:
        codes = np.where(nulls_of(array.indices), len(hashes_D) - 1, codes)
    return hashes_D[codes]


def ids_of(array: ArrowArray) -> npt.NDArray[np.int64]:
    """Ids of a column of integers (uint64 reinterpreted), booleans (0, 1) or strings (hashed); null → MISSING_ID.

    Raises TypeError for any other Arrow type.
    """
    array = one_array(array)
    kind = array.type
    if pa.types.is_dictionary(kind):
        return hash_strings(array) if _is_string(kind.value_type) else ids_of(array.dictionary_decode())
    if _is_string(kind):
        return hash_strings(array)
    if pa.types.is_null(kind):
        return np.full(len(array), MISSING_ID)
    if pa.types.is_boolean(kind):
        array = array.cast(pa.int8())
    values = raw_values(array) if not pa.types.is_floating(kind) else None
    if values is None:
        raise TypeError(f"ids of Arrow type {kind} → ids are integers, booleans or strings")
    ids: npt.NDArray[np.int64]
    ids = values.view(np.int64) if values.dtype == np.uint64 else values.astype(np.int64, copy=False)
    return np.where(nulls_of(array), np.int64(MISSING_ID), ids) if array.null_count else ids


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _hash_plain(strings: pa.Array) -> npt.NDArray[np.int64]:
    """Of strings that are no dictionary."""
    from pipelines.kernels import fnv1a  # noqa: PLC0415 - many need `mix` alone

    missing = nulls_of(strings) if strings.null_count else None
    if not pa.types.is_string(strings.type):
        strings = strings.cast(pa.large_string())
    width = np.int32 if pa.types.is_string(strings.type) else np.int64
    _, offsets, data = strings.buffers()
    count = len(strings)
    bounds = np.zeros(count + 1, np.int64)
    if count and offsets is not None:
        bounds = np.frombuffer(offsets, width, count + 1, strings.offset * width().itemsize).astype(np.int64)
    octets = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    hashes = fnv1a(bounds, octets)
    if missing is not None:
        hashes[missing] = MISSING_ID
    return hashes
