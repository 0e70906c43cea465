"""The inner loops of looked-up rows on CPU, compiled by numba: gather, and update with the optimizer fused in.

FBGEMM's own CPU kernel for unpooled tables keeps a hash map of vectors for every row and step: 2 µs a row, where memory
takes 25 ns (docs/benchmarks/embeddings.md). Rows are [n, D] of float32 or float16, states float32, arithmetic float32;
half is rounded to nearest even when it is stored. Everything is handed over by address and trusted: embeddings.cpu_rows
checks. Loops over rows let go of the GIL and write no row twice, so that they can be cut in any way without changing a
bit.

D is a multiple of 4, and four numbers are loaded before any is stored: then LLVM makes one vector of them.

Names: n looked-up rows, those of one feature after the other · F features · D columns · borders_F int64 [F + 1], where
each feature's rows begin, and n · weights_F, states_F int64 [F], addresses of its table's first row · sizes_F int64
[F], its rows. A thousand features cost no more than one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pipelines.compiled import I32, I64, inline, int32_at, int64_at, kernel

PLACE, COUNT, FLAG, REAL = types.int64, types.int64, types.boolean, types.float32
ALONE = np.int32(-1)  # this row occurs once
MERGED = np.int32(-2)  # an earlier occurrence of the same row has this one's gradient
GOLDEN, MIX_1, MIX_2 = (np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
ZERO, ONE, TWO, UNIT = (np.float32(value) for value in (0.0, 1.0, 2.0, 2.0**-24))
AHEAD = 8  # rows between a prefetch and its use


def _place(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


@intrinsic
def _load_float(_context: Any, place: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load(_place(builder, arguments[0], ir.FloatType()), align=4)

    return types.float32(types.int64), generate


@intrinsic
def _store_float(_context: Any, place: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], _place(builder, arguments[0], ir.FloatType()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


@intrinsic
def _load_half(_context: Any, place: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        half = builder.load(_place(builder, arguments[0], ir.HalfType()), align=2)
        return builder.fpext(half, ir.FloatType())

    return types.float32(types.int64), generate


@intrinsic
def _store_half(_context: Any, place: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        half = builder.fptrunc(arguments[1], ir.HalfType())
        builder.store(half, _place(builder, arguments[0], ir.HalfType()), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


@intrinsic
def _prefetch(_context: Any, place: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        word = ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", (pointer.type,), ir.FunctionType(ir.VoidType(), [pointer.type, word, word, word])
        )
        builder.call(function, [pointer, word(1), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@inline
def _four(place: Any) -> Any:
    return _load_float(place), _load_float(place + 4), _load_float(place + 8), _load_float(place + 12)


@inline
def _set_four(place: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    _store_float(place, a)
    _store_float(place + 4, b)
    _store_float(place + 8, c)
    _store_float(place + 12, d)


@inline
def _weights(place: Any, half: Any) -> Any:
    if half:
        return _load_half(place), _load_half(place + 2), _load_half(place + 4), _load_half(place + 6)
    return _four(place)


@inline
def _set_weights(place: Any, half: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    if half:
        _store_half(place, a)
        _store_half(place + 2, b)
        _store_half(place + 4, c)
        _store_half(place + 6, d)
    else:
        _set_four(place, a, b, c, d)


@inline
def _uniform(counter: Any, key: Any, scale: Any) -> Any:
    """embeddings.init, for one element."""
    state = counter * GOLDEN + key
    state = (state ^ (state >> np.uint64(30))) * MIX_1
    state = (state ^ (state >> np.uint64(27))) * MIX_2
    state ^= state >> np.uint64(31)
    return (np.float32(state >> np.uint64(40)) * UNIT * TWO - ONE) * scale


@kernel(COUNT, COUNT, PLACE, COUNT, FLAG, COUNT, types.int64, REAL, COUNT, COUNT)
def fill_uniform(
    first: Any, last: Any, rows: Any, D: Any, half: Any, width: Any, key: Any, scale: Any, first_row: Any,
    first_column: Any,
) -> None:  # fmt: skip
    """Initial values of rows first … last − 1 of [n, D], which begins at row first_row and column first_column of a
    table of that width."""
    one, number = np.uint64(1), np.uint64(key)
    size = 2 if half else 4
    for row in range(first, last):
        counter = np.uint64((first_row + row) * width + first_column)
        place = rows + size * row * D
        for d in range(0, D, 4):
            a = _uniform(counter, number, scale)
            b = _uniform(counter + one, number, scale)
            c = _uniform(counter + one + one, number, scale)
            e = _uniform(counter + one + one + one, number, scale)
            _set_weights(place + size * d, half, a, b, c, e)
            counter += np.uint64(4)


@inline
def _feature(i: Any, borders_F: Any, f: Any) -> Any:
    """The feature of row i, from f on."""
    while i >= borders_F[f + 1]:
        f += 1
    return f


@kernel(COUNT, COUNT, PLACE, I64, I64, I64, COUNT, FLAG, PLACE, returns=types.int64)
def gather(
    first: Any, last: Any, rows: Any, borders_F: Any, weights_F: Any, sizes_F: Any, D: Any, half: Any, out: Any
) -> Any:
    """out[i] = row rows[i] of its feature's table as float32, for i in first … last − 1. Returns the first i whose row
    does not exist, −1 where there is none."""
    row_of = int64_at(rows)
    size, f = 2 if half else 4, 0
    for i in range(first, last):
        f = _feature(i, borders_F, f)
        row = row_of[i]
        if row < 0 or row >= sizes_F[f]:
            return i
        if i + AHEAD < borders_F[f + 1]:
            _prefetch(weights_F[f] + size * row_of[i + AHEAD] * D)
        source, target = weights_F[f] + size * row * D, out + 4 * i * D
        for d in range(0, D, 4):
            a, b, c, e = _weights(source + size * d, half)
            _set_four(target + 4 * d, a, b, c, e)
    return -1


@kernel(PLACE, PLACE, I64, COUNT, I32, PLACE, PLACE, returns=types.int64)
def merge(rows: Any, grads: Any, borders_F: Any, D: Any, seen: Any, slots: Any, sums: Any) -> Any:
    """Adds up the gradients of rows that occur more than once in a feature, in the order they occur in.

    seen: working memory, at least four times as long as the longest feature. slots: int32 [n] → ALONE; MERGED; or, at
    the first of several occurrences, which of `sums`, float32 [≥ n // 2, D], holds the total. Returns how many of those
    there are.
    """
    row_of, slot = int64_at(rows), int32_at(slots)
    used = 0
    for f in range(len(borders_F) - 1):
        begin, end = borders_F[f], borders_F[f + 1]
        shift, places = np.uint64(63), 2
        while places < 2 * (end - begin):
            places *= 2
            shift -= np.uint64(1)
        seen[:places] = -1
        for i in range(begin, end):
            row = row_of[i]
            place = np.int64((np.uint64(row) * GOLDEN) >> shift)
            while seen[place] >= 0 and row_of[begin + seen[place]] != row:
                place = (place + 1) & (places - 1)
            if seen[place] < 0:
                seen[place] = i - begin
                slot[i] = ALONE
                continue
            first = begin + np.int64(seen[place])
            if slot[first] == ALONE:
                slot[first] = used
                for d in range(0, 4 * D, 16):
                    a, b, c, e = _four(grads + 4 * first * D + d)
                    _set_four(sums + 4 * used * D + d, a, b, c, e)
                used += 1
            total = sums + 4 * np.int64(slot[first]) * D
            for d in range(0, 4 * D, 16):
                a, b, c, e = _four(total + d)
                g0, g1, g2, g3 = _four(grads + 4 * i * D + d)
                _set_four(total + d, a + g0, b + g1, c + g2, e + g3)
            slot[i] = MERGED
    return used


UPDATE = (COUNT, COUNT, PLACE, PLACE, PLACE, PLACE, I64, I64, I64, COUNT, FLAG, REAL, REAL, REAL)


@kernel(*UPDATE)
def sgd(
    first: Any, last: Any, rows: Any, grads: Any, slots: Any, sums: Any, borders_F: Any, weights_F: Any,
    _states_F: Any, D: Any, half: Any, lr: Any, _eps: Any, _decay: Any,
) -> None:  # fmt: skip
    """w −= lr · g, for occurrences first … last − 1."""
    row_of, slot = int64_at(rows), int32_at(slots)
    size, f = 2 if half else 4, 0
    for i in range(first, last):
        if slot[i] == MERGED:
            continue
        f = _feature(i, borders_F, f)
        weights = weights_F[f]
        if i + AHEAD < borders_F[f + 1]:
            _prefetch(weights + size * row_of[i + AHEAD] * D)
        g = grads + 4 * i * D if slot[i] == ALONE else sums + 4 * np.int64(slot[i]) * D
        w = weights + size * row_of[i] * D
        for d in range(0, D, 4):
            g0, g1, g2, g3 = _four(g + 4 * d)
            w0, w1, w2, w3 = _weights(w + size * d, half)
            _set_weights(w + size * d, half, w0 - lr * g0, w1 - lr * g1, w2 - lr * g2, w3 - lr * g3)


@kernel(*UPDATE)
def adagrad(
    first: Any, last: Any, rows: Any, grads: Any, slots: Any, sums: Any, borders_F: Any, weights_F: Any,
    states_F: Any, D: Any, half: Any, lr: Any, eps: Any, _decay: Any,
) -> None:  # fmt: skip
    """s += g², w −= lr · g ÷ (√s + eps); s float32 [rows, D]."""
    row_of, slot = int64_at(rows), int32_at(slots)
    size, f = 2 if half else 4, 0
    for i in range(first, last):
        if slot[i] == MERGED:
            continue
        f = _feature(i, borders_F, f)
        weights, state = weights_F[f], states_F[f]
        if i + AHEAD < borders_F[f + 1]:
            _prefetch(weights + size * row_of[i + AHEAD] * D)
            _prefetch(state + 4 * row_of[i + AHEAD] * D)
        g = grads + 4 * i * D if slot[i] == ALONE else sums + 4 * np.int64(slot[i]) * D
        w, s = weights + size * row_of[i] * D, state + 4 * row_of[i] * D
        for d in range(0, D, 4):
            g0, g1, g2, g3 = _four(g + 4 * d)
            s0, s1, s2, s3 = _four(s + 4 * d)
            w0, w1, w2, w3 = _weights(w + size * d, half)
            s0, s1, s2, s3 = s0 + g0 * g0, s1 + g1 * g1, s2 + g2 * g2, s3 + g3 * g3
            w0 -= lr * g0 / (np.sqrt(s0) + eps)
            w1 -= lr * g1 / (np.sqrt(s1) + eps)
            w2 -= lr * g2 / (np.sqrt(s2) + eps)
            w3 -= lr * g3 / (np.sqrt(s3) + eps)
            _set_four(s + 4 * d, s0, s1, s2, s3)
            _set_weights(w + size * d, half, w0, w1, w2, w3)


@kernel(*UPDATE)
def rowwise_adagrad(
    first: Any, last: Any, rows: Any, grads: Any, slots: Any, sums: Any, borders_F: Any, weights_F: Any,
    states_F: Any, D: Any, half: Any, lr: Any, eps: Any, decay: Any,
) -> None:  # fmt: skip
    """g += decay · w, s += mean(g²), w −= lr · g ÷ (√s + eps); s float32 [rows]."""
    row_of, slot = int64_at(rows), int32_at(slots)
    size, f = 2 if half else 4, 0
    for i in range(first, last):
        if slot[i] == MERGED:
            continue
        f = _feature(i, borders_F, f)
        weights, state = weights_F[f], states_F[f]
        if i + AHEAD < borders_F[f + 1]:
            _prefetch(weights + size * row_of[i + AHEAD] * D)
            _prefetch(state + 4 * row_of[i + AHEAD])
        g = grads + 4 * i * D if slot[i] == ALONE else sums + 4 * np.int64(slot[i]) * D
        w, s = weights + size * row_of[i] * D, state + 4 * row_of[i]
        q0 = q1 = q2 = q3 = ZERO
        for d in range(0, D, 4):
            g0, g1, g2, g3 = _four(g + 4 * d)
            if decay != ZERO:
                w0, w1, w2, w3 = _weights(w + size * d, half)
                g0, g1, g2, g3 = g0 + decay * w0, g1 + decay * w1, g2 + decay * w2, g3 + decay * w3
            q0, q1, q2, q3 = q0 + g0 * g0, q1 + g1 * g1, q2 + g2 * g2, q3 + g3 * g3
        total = _load_float(s) + ((q0 + q1) + (q2 + q3)) / np.float32(D)
        _store_float(s, total)
        rate = lr / (np.sqrt(total) + eps)
        keep = ONE - rate * decay
        for d in range(0, D, 4):
            g0, g1, g2, g3 = _four(g + 4 * d)
            w0, w1, w2, w3 = _weights(w + size * d, half)
            w0, w1, w2, w3 = keep * w0 - rate * g0, keep * w1 - rate * g1, keep * w2 - rate * g2, keep * w3 - rate * g3
            _set_weights(w + size * d, half, w0, w1, w2, w3)


UPDATES = {"sgd": sgd, "adagrad": adagrad, "rowwise_adagrad": rowwise_adagrad}
