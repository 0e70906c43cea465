"""Arrow columns of request rows to flat numpy arrays: values position after position, with the groups' offsets.

Sizes: R rows · P positions of a group (R for static columns) · V values of an `ids` column.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.batch import Array, Int64
from pipelines.footers import read_columns
from pipelines.hashing import ids_of
from pipelines.schema import MISSING_ID, Column, Schema

Bool = npt.NDArray[np.bool_]
MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}


@dataclass(frozen=True)
class Values:
    """One column. values: int64 ids and bucket numbers [P] or (`ids`) [V], float32 [P] or (`vector`) [P, size], int64
    µs [P].
    lengths: int64 [P], values per position of an `ids` column. null: bool [P], which positions hold no value."""

    values: Array
    null: Bool
    lengths: Int64 | None = None


@dataclass
class Rows:
    """Decoded rows. offsets: {group: int64 [R + 1]}. paths: the row at which each part begins, and its
    path, for error lines."""

    count: int
    columns: dict[str, Values]
    offsets: dict[str, Int64]
    file: npt.NDArray[np.int32]
    row: Int64
    paths: list[tuple[int, str]] = field(default_factory=list)

    def name(self, row: int) -> str:
        """Where a row was read, for error lines."""
        path = next(path for begin, path in reversed(self.paths) if begin <= row)
        return f"'{path}' row {self.row[row]}"

    def row_of(self, group: str, position: int) -> int:
        """The row that a position of a group belongs to ("" = static: the position itself)."""
        return int(np.searchsorted(self.offsets[group], position, side="right")) - 1 if group else position


def decode_table(table: pa.Table, schema: Schema, path: str, file: int, row: Int64) -> tuple[Rows, list[str]]:
    """The rows of one file's table, and what is wrong with them. Columns that the file lacks are filled by
    `complete`."""
    rows = Rows(len(table), {}, {}, np.full(len(table), file, np.int32), row, [(0, path)])
    problems: list[str] = []
    owner: dict[str, str] = {}
    for name, spec in read_columns(schema).items():
        if name not in table.column_names:
            if spec.default is None:
                problems.append(f"column '{name}' is missing in '{path}' → the schema reads it → give it a `default`")
            continue
        array = table.column(name).combine_chunks()
        if spec.group:
            array, lengths_R = list_parts(array)
            offsets = np.concatenate([[0], np.cumsum(lengths_R)])
            known = rows.offsets.setdefault(spec.group, offsets)
            first = owner.setdefault(spec.group, name)
            if not np.array_equal(known, offsets):
                at = int(np.flatnonzero(np.diff(known) != np.diff(offsets))[0])
                problems.append(
                    f"columns '{first}' and '{name}' hold lists of {np.diff(known)[at]} and {lengths_R[at]}"
                    f" in {rows.name(at)}"
                    f" → lists of group {spec.group} have one length a row → fix the log, or the columns' groups"
                )
                continue
        values, problem = decode_values(array, spec, schema.time_unit)
        if problem:
            position, what, rule = problem
            where = rows.name(rows.row_of(spec.group, position))
            problems.append(f"column '{name}' holds {what} in {where} → {rule} → fix the log, or the column's kind")
        else:
            rows.columns[name] = values
    return rows, problems


def complete(rows: Rows, schema: Schema, evaluation: bool) -> None:
    """Fills columns that the file lacks with their `default`, and in evaluation train_only columns with their
    `serve_as`."""
    for group in {spec.group for spec in schema.columns.values() if spec.group} - set(rows.offsets):
        rows.offsets[group] = np.zeros(rows.count + 1, np.int64)
    for name, spec in read_columns(schema).items():
        served = evaluation and spec.train_only
        if name not in rows.columns or served:
            positions = int(rows.offsets[spec.group][-1]) if spec.group else rows.count
            rows.columns[name] = _constant(spec.serve_as if served else spec.default, spec, positions, schema.time_unit)


def concatenate(parts: list[Rows]) -> Rows:
    """Rows of several files, one after the other."""
    if len(parts) == 1:
        return parts[0]
    columns = {}
    for name in parts[0].columns:
        pieces = [part.columns[name] for part in parts]
        lengths = [piece.lengths for piece in pieces if piece.lengths is not None]
        columns[name] = Values(
            np.concatenate([piece.values for piece in pieces]),
            np.concatenate([piece.null for piece in pieces]),
            np.concatenate(lengths) if lengths else None,
        )
    begins = np.cumsum([0] + [part.count for part in parts])
    offsets = {g: _joined_offsets([part.offsets[g] for part in parts]) for g in parts[0].offsets}
    paths = [(int(begin), part.paths[0][1]) for begin, part in zip(begins, parts, strict=False)]
    file, row = np.concatenate([part.file for part in parts]), np.concatenate([part.row for part in parts])
    return Rows(int(begins[-1]), columns, offsets, file, row, paths)


def decode_values(array: pa.Array, spec: Column, time_unit: str) -> tuple[Values, tuple[int, Any, str] | None]:
    """Values of a column whose group's list is taken off, or the first (position, value, rule) that breaks its kind."""
    null = np.asarray(pc.is_null(array))
    if spec.kind == "id":
        return Values(ids_of(array), null), None
    if spec.kind == "ids":
        inner, lengths = list_parts(array)
        return Values(ids_of(inner), null, lengths), None
    if spec.kind == "vector":
        return _vectors(array, spec.size, null)
    if spec.kind == "time":
        return _times(array, time_unit, null)
    return _numbers(array, spec, null)


def list_parts(array: pa.Array) -> tuple[pa.Array, Int64]:
    """The elements of all lists, one list after the other, and each list's length (0 where null)."""
    if pa.types.is_null(array.type):
        return pa.nulls(0), np.zeros(len(array), np.int64)
    lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64())
    return array.flatten(), lengths.to_numpy(zero_copy_only=False)


def _numbers(array: pa.Array, spec: Column, null: Bool) -> tuple[Values, tuple[int, Any, str] | None]:
    numbers = _floats(array)
    if spec.role == "label":
        bad = ~null & (numbers != 0) & (numbers != 1)
        rule = "labels are 0, 1 or null"
    elif spec.role == "weight":
        bad = ~null & ~((numbers >= 0) & np.isfinite(numbers))
        rule = "weights are finite and not negative, or null"
    else:
        bad, rule = np.zeros(0, bool), ""
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        return Values(numbers, null), (at, f"{numbers[at]:g}", rule)
    missing = np.isnan(numbers)
    if spec.kind == "bucket":
        buckets = np.searchsorted(np.array(spec.boundaries), numbers, side="right").astype(np.int64)
        buckets[missing] = MISSING_ID
        return Values(buckets, missing), None
    floats = numbers.astype(np.float32)
    floats[missing] = 0.0
    return Values(floats, null), None


def _vectors(array: pa.Array, size: int, null: Bool) -> tuple[Values, tuple[int, Any, str] | None]:
    elements, lengths = list_parts(array)
    bad = (lengths != size) & ~null
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        return Values(lengths, null), (at, f"{lengths[at]} floats", f"a vector has its column's size = {size}")
    vectors = np.zeros((len(lengths), size), np.float32)
    vectors[lengths == size] = np.nan_to_num(_floats(elements), nan=0.0, posinf=np.inf, neginf=-np.inf).reshape(
        -1, size
    )
    return Values(vectors, null), None


def _times(array: pa.Array, unit: str, null: Bool) -> tuple[Values, tuple[int, Any, str] | None]:
    if null.any():
        return Values(np.zeros(len(array), np.int64), null), (
            int(np.flatnonzero(null)[0]),
            "null",
            "every event and request has its time",
        )
    if pa.types.is_integer(array.type):
        return Values(array.cast(pa.int64()).to_numpy() * MICROSECONDS[unit], null), None
    micros = array.cast(pa.timestamp("us", getattr(array.type, "tz", None)), safe=False).cast(pa.int64())
    return Values(micros.to_numpy(zero_copy_only=False), null), None


def _floats(array: pa.Array) -> npt.NDArray[np.float64]:
    """float64, null as NaN."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    floats: npt.NDArray[np.float64] = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return floats


def _constant(value: Any, spec: Column, positions: int, time_unit: str) -> Values:
    """A column of one value at every position."""
    one = pa.array([value] if spec.kind != "time" else [int(value or 0)])
    if spec.kind == "ids":
        one = pa.array([[value]])
    elif spec.kind == "vector":
        one = pa.array([[float(value)] * spec.size])
    values, _ = decode_values(one, spec, time_unit)
    lengths = None if values.lengths is None else np.ones(positions, np.int64)
    return Values(np.repeat(values.values, positions, axis=0), np.repeat(values.null, positions), lengths)


def _joined_offsets(pieces: Iterable[Int64]) -> Int64:
    lengths = np.concatenate([np.diff(piece) for piece in pieces])
    return np.concatenate([[0], np.cumsum(lengths)])
