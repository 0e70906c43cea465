"""Ids are for ever: published test vectors, and the same hash however Arrow stores the strings."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipelines.hashing import hash_strings, ids_of, mix
from pipelines.schema import MISSING_ID

STRINGS = ["", "a", "foobar", None, "a", "日本", "x" * 300]


def fnv1a(text: str) -> int:
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value - 2**64 if value >= 2**63 else value


def test_published_vectors() -> None:
    assert [hex(v) for v in mix(np.array([0, 1]), 0)] == ["0xe220a8397b1dcdaf", "0x910a2dec89025cc1"]
    assert hex(mix(np.array([-1]), 7)[0]) == "0x405da438a39e8064"
    hashes = hash_strings(pa.array(["", "a", "foobar"])).view(np.uint64)
    assert [hex(v) for v in hashes] == ["0xcbf29ce484222325", "0xaf63dc4c8601ec8c", "0x85944171f73967e8"]


def test_strings_hash_alike_however_they_are_stored() -> None:
    expected = [MISSING_ID if s is None else fnv1a(s) for s in STRINGS]
    plain = pa.array(STRINGS)
    encoded = plain.dictionary_encode()
    split = pa.chunked_array([plain.slice(0, 3).dictionary_encode(), plain.slice(3).dictionary_encode()])
    for array in (plain, plain.cast(pa.large_string()), encoded, split, pa.chunked_array([plain])):
        assert ids_of(array).tolist() == expected
    assert ids_of(plain.slice(2, 4)).tolist() == expected[2:6]
    assert ids_of(encoded.slice(2, 4)).tolist() == expected[2:6]
    assert ids_of(pa.array([], pa.string())).tolist() == []


def test_numbers_are_their_own_ids() -> None:
    assert ids_of(pa.array([1, None, -3], pa.int32())).tolist() == [1, MISSING_ID, -3]
    assert ids_of(pa.array([2**64 - 1], pa.uint64())).tolist() == [-1]
    assert ids_of(pa.array([True, False, None])).tolist() == [1, 0, MISSING_ID]
    assert ids_of(pa.array([7, 8, 7]).dictionary_encode()).tolist() == [7, 8, 7]
    with pytest.raises(TypeError, match="integers, booleans or strings"):
        ids_of(pa.array([0.5]))
