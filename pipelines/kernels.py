"""The readers' other inner loops: list slices gathered, strings hashed, ids held against their range, rows dealt."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from pipelines.batch import Array, Float64, Int64
from pipelines.compiled import F64, I64, READ_I64, READ_U8, address, int32_at, int64_at, kernel

FNV_OFFSET, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)


def gather(values: Array, starts_R: Int64, lengths_R: Int64, total: int) -> Array:
    """values[starts[r] : starts[r] + lengths[r]], row after row. values: [P] or [P, size] of 4 or 8 bytes an item;
    total: Σ lengths."""
    values = np.ascontiguousarray(values)
    found = np.empty((total, *values.shape[1:]), values.dtype)
    width = found[:1].nbytes if total else 0
    if width % 8 == 0:
        _gather64(address(values), width // 8, starts_R, lengths_R, address(found))
    else:
        _gather32(address(values), width // 4, starts_R, lengths_R, address(found))
    return found


def deal_by_cost(cost_R: Float64, world_size: int) -> Int64:
    """The rank of each row: the dearest first, each to the rank that has least so far. [R]"""
    rank_R = np.empty(len(cost_R), np.int64)
    _deal(cost_R, np.argsort(-cost_R, kind="stable"), np.zeros(world_size), np.zeros(world_size, np.int64), rank_R)
    return rank_R


def fnv1a(offsets: Int64, octets: npt.NDArray[np.uint8]) -> Int64:
    """FNV-1a 64 of octets[offsets[i] : offsets[i + 1]]. [len(offsets) − 1]"""
    hashes = np.empty(len(offsets) - 1, np.int64)
    _fnv1a(offsets, octets, hashes)
    return hashes


def count_outside(places_C: Int64, counts_C: Int64, lowest_C: Int64, highest_C: Int64) -> Int64:
    """How many values of each column lie outside its range. places: addresses of int64 columns. [C]"""
    outside_C = np.empty(len(places_C), np.int64)
    _count_outside(places_C, counts_C, lowest_C, highest_C, outside_C)
    return outside_C


@kernel(types.int64, types.int64, READ_I64, READ_I64, types.int64)
def _gather64(values_at: Any, width: Any, starts_R: Any, lengths_R: Any, found_at: Any) -> None:
    values, found, at = int64_at(values_at), int64_at(found_at), 0
    for r in range(len(starts_R)):
        start = starts_R[r] * width
        for k in range(lengths_R[r] * width):
            found[at + k] = values[start + k]
        at += lengths_R[r] * width


@kernel(types.int64, types.int64, READ_I64, READ_I64, types.int64)
def _gather32(values_at: Any, width: Any, starts_R: Any, lengths_R: Any, found_at: Any) -> None:
    values, found, at = int32_at(values_at), int32_at(found_at), 0
    for r in range(len(starts_R)):
        start = starts_R[r] * width
        for k in range(lengths_R[r] * width):
            found[at + k] = values[start + k]
        at += lengths_R[r] * width


@kernel(F64, I64, F64, I64, I64)
def _deal(cost_R: Any, order_R: Any, load_N: Any, rows_N: Any, rank_R: Any) -> None:
    for row in order_R:
        least = 0
        for rank in range(1, len(load_N)):
            lighter = load_N[rank] < load_N[least]
            if lighter or (load_N[rank] == load_N[least] and rows_N[rank] < rows_N[least]):
                least = rank
        rank_R[row] = least
        load_N[least] += cost_R[row]
        rows_N[least] += 1


@kernel(READ_I64, READ_U8, I64)
def _fnv1a(offsets: Any, octets: Any, hashes: Any) -> None:
    for i in range(len(hashes)):
        state = FNV_OFFSET
        for at in range(offsets[i], offsets[i + 1]):
            state = (state ^ np.uint64(octets[at])) * FNV_PRIME
        hashes[i] = np.int64(state)


@kernel(READ_I64, READ_I64, READ_I64, READ_I64, I64)
def _count_outside(places_C: Any, counts_C: Any, lowest_C: Any, highest_C: Any, outside_C: Any) -> None:
    for c in range(len(places_C)):
        values, lowest, highest, outside = int64_at(places_C[c]), lowest_C[c], highest_C[c], 0
        for v in range(counts_C[c]):
            outside += (values[v] < lowest) | (values[v] > highest)
        outside_C[c] = outside
