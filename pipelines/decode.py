"""Arrow columns of request rows to flat numpy arrays: values position after position, with the groups' offsets.

Sizes: R rows · P positions of a group (R for static columns) · V values of an `ids` column.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.arrow_arrays import Bool, list_parts, no_nulls, nulls_of, one_array, raw_values
from pipelines.bad_rows import Bad, Fault, absurd_ids
from pipelines.batch import Array, Int64
from pipelines.footers import read_columns
from pipelines.hashing import ids_of
from pipelines.schema import MISSING_ID, Column, Schema

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
    """Decoded rows. offsets: {group: int64 [R + 1]}. file, row: where each was read. quarantined: bool [R], rows that
    are bad and blank now."""

    count: int
    columns: dict[str, Values]
    offsets: dict[str, Int64]
    file: npt.NDArray[np.int32]
    row: Int64
    quarantined: Bool

    def rows_of(self, group: str, positions: Int64) -> Int64:
        """The rows that positions of a group belong to ("" = static: the positions themselves)."""
        if not group:
            return positions
        found: Int64 = np.searchsorted(self.offsets[group], positions, side="right") - 1
        return found


def decode_table(
    table: pa.Table, schema: Schema, path: str, file: int, row: Int64, blank: Bool | None = None
) -> tuple[Rows, list[Bad]]:
    """The rows of one file's table, and what is bad about them, column by column. Columns that the file lacks are
    filled by `complete`, columns with bad rows are left out. blank: rows [R] whose nulls are not bad."""
    count = len(table)
    rows = Rows(count, {}, {}, np.full(count, file, np.int32), row, no_nulls(count))
    bad: list[Bad] = []
    owner: dict[str, str] = {}
    integers: dict[str, Column] = {}
    index_of = {name: index for index, name in enumerate(table.column_names)}
    for name, spec in read_columns(schema).items():
        index = index_of.get(name)
        if index is None:
            if spec.default is None:
                bad.append(_missing(name, path, row))
            continue
        array = one_array(table.column(index))
        try:
            if spec.group:
                array, offsets = list_parts(array)
                ragged = _ragged(rows, name, spec, owner, offsets, path)
                if ragged is not None:
                    bad.append(ragged)
                    continue
            values, fault = decode_values(array, spec, schema.time_unit)
        except (TypeError, pa.ArrowException) as error:
            bad.append(_wrong_type(name, table.schema.field(index).type, str(error), path, row))
            continue
        if fault is None and name == schema.user:
            fault = _nulls(values.null, "every row names its user")
        if fault is not None and blank is not None and not spec.group:
            positions = fault[0][~blank[fault[0]]]
            fault = (positions, *fault[1:]) if len(positions) else None
        if fault is None:
            rows.columns[name] = values
            if (spec.kind == "id" or (spec.kind == "ids" and spec.max_id is not None)) and _holds_integers(array.type):
                integers[name] = spec
        else:
            bad.append(_values_bad(rows, name, spec, fault, path))
    for name, fault in absurd_ids(rows.columns, integers).items():
        bad.append(_values_bad(rows, name, schema.columns[name], fault, path))
    return rows, bad


def _holds_integers(kind: pa.DataType) -> bool:
    while pa.types.is_nested(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind))


def _ragged(rows: Rows, name: str, spec: Column, owner: dict[str, str], offsets: Int64, path: str) -> Bad | None:
    """The rows in which this column's lists are not as long as those of its group's first column."""
    known = rows.offsets.setdefault(spec.group, offsets)
    first = owner.setdefault(spec.group, name)
    if known is offsets or np.array_equal(known, offsets):
        return None
    wanted, found = np.diff(known), np.diff(offsets)
    bad_R = np.flatnonzero(wanted != found)
    values = [f"a list of {found[r]} (column '{first}': {wanted[r]})" for r in bad_R]
    rule = f"lists of group {spec.group} have one length a row"
    return Bad.of(name, bad_R, values, rule, "fix the log, or the columns' groups", path, rows.row)


def _values_bad(rows: Rows, name: str, spec: Column, fault: Fault, path: str) -> Bad:
    positions, words, rule = fault
    bad_R, first = np.unique(rows.rows_of(spec.group, positions), return_index=True)
    values = [words(int(positions[at])) for at in first]
    return Bad.of(name, bad_R, values, rule, "fix the log, or the column's kind", path, rows.row)


def _missing(name: str, path: str, row: Int64) -> Bad:
    rule = "the schema reads it"
    line = f"column '{name}' is missing in '{path}' → {rule} → give it a `default`"
    return Bad(name, np.arange(len(row)), ["the column is missing"] * len(row), rule, line)


def _wrong_type(name: str, kind: pa.DataType, why: str, path: str, row: Int64) -> Bad:
    rule = why.splitlines()[0]
    line = f"column '{name}' is {kind} in '{path}' → {rule} → fix its kind or group in the schema, or the file"
    return Bad(name, np.arange(len(row)), [f"type {kind}"] * len(row), rule, line)


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
            _joined_nulls([piece.null for piece in pieces]),
            np.concatenate(lengths) if lengths else None,
        )
    offsets = {g: _joined_offsets([part.offsets[g] for part in parts]) for g in parts[0].offsets}
    file, row = np.concatenate([part.file for part in parts]), np.concatenate([part.row for part in parts])
    quarantined = _joined_nulls([part.quarantined for part in parts])
    return Rows(sum(part.count for part in parts), columns, offsets, file, row, quarantined)


def decode_values(array: pa.Array, spec: Column, time_unit: str) -> tuple[Values, Fault | None]:
    """Values of a column whose group's list is taken off, and those that break its kind. Raises TypeError for Arrow
    types that are not of its kind."""
    if spec.kind == "id":
        return Values(ids_of(array), nulls_of(array)), None
    if spec.kind == "ids":
        inner, offsets = list_parts(array)
        return Values(ids_of(inner), nulls_of(array), np.diff(offsets)), None
    if spec.kind == "vector":
        return _vectors(array, spec.size)
    if spec.kind == "time":
        return _times(array, time_unit)
    return _numbers(array, spec)


def _numbers(array: pa.Array, spec: Column) -> tuple[Values, Fault | None]:
    null, numbers = nulls_of(array), _floats(array)
    if spec.kind == "bucket" and spec.role not in ("label", "weight"):
        missing = np.isnan(numbers) | null
        buckets = np.searchsorted(np.array(spec.boundaries), numbers, side="right").astype(np.int64)
        buckets[missing] = MISSING_ID
        return Values(buckets, missing), None
    if array.null_count:
        numbers = np.where(null, numbers.dtype.type(0), numbers)
    with np.errstate(over="ignore"):
        floats = numbers.astype(np.float32, copy=False)
    if spec.role == "label":
        fine, rule = (numbers == 0) | (numbers == 1), "labels are 0, 1 or null"
    elif spec.role == "weight":
        fine, rule = (floats >= 0) & (floats < np.inf), "weights are finite and not negative, or null"
    else:
        fine, rule = np.isfinite(floats), "numbers are finite, or null"
    fault = None if fine.all() else (np.flatnonzero(~fine), lambda at: f"{numbers[at]:g}", rule)
    return Values(floats, null), fault


def _vectors(array: pa.Array, size: int) -> tuple[Values, Fault | None]:
    null = nulls_of(array)
    elements, offsets = list_parts(array)
    lengths = np.diff(offsets)
    wrong = (lengths != size) & ~null
    if wrong.any():
        rule = f"a vector has its column's size = {size}"
        return Values(lengths, null), (np.flatnonzero(wrong), lambda at: f"{lengths[at]} floats", rule)
    with np.errstate(over="ignore"):
        floats = _floats(elements).astype(np.float32, copy=False)
    broken = ~np.isfinite(floats) & ~nulls_of(elements)
    if broken.any():
        at_V = np.flatnonzero(broken)
        positions, first = np.unique(np.searchsorted(offsets, at_V, side="right") - 1, return_index=True)
        words = {int(position): f"{floats[at_V[at]]:g}" for position, at in zip(positions, first, strict=True)}
        return Values(lengths, null), (positions, words.__getitem__, "vectors are of finite numbers")
    if elements.null_count:
        floats = np.where(nulls_of(elements), np.float32(0), floats)
    if not null.any():
        return Values(floats.reshape(-1, size), null), None
    vectors = np.zeros((len(lengths), size), np.float32)
    vectors[~null] = floats.reshape(-1, size)
    return Values(vectors, null), None


def _times(array: pa.Array, unit: str) -> tuple[Values, Fault | None]:
    null, kind = nulls_of(array), array.type
    fault = _nulls(null, "every event and request has its time")
    if pa.types.is_null(kind):
        return Values(np.zeros(len(array), np.int64), null), fault
    if pa.types.is_integer(kind):
        numbers, scale = _numbers_in(array, null), MICROSECONDS[unit]
        limit = (2**63 - 1) // scale
        narrow = numbers.itemsize < 8 and scale * 2**32 < 2**63
        beyond = np.zeros(0, np.int64) if narrow else np.flatnonzero((numbers > limit) | (numbers < -limit))
        if fault is None and len(beyond):
            words = {int(at): str(numbers[at]) for at in beyond}
            fault = beyond, words.__getitem__, f"a time in {unit} is at most ±{limit}"
        return Values(numbers.astype(np.int64, copy=False) * scale, null), fault
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        raise TypeError("times are timestamps or integers")
    micros = array.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False).cast(pa.int64())
    return Values(_numbers_in(micros, null), null), fault


def _numbers_in(array: pa.Array, null: Bool) -> Array:
    """0 where null."""
    values = raw_values(array)
    assert values is not None
    return np.where(null, values.dtype.type(0), values) if array.null_count else values


def _nulls(null: Bool, rule: str) -> Fault | None:
    """Where there may be none."""
    return (np.flatnonzero(null), lambda _: "null", rule) if null.any() else None


def _floats(array: pa.Array) -> npt.NDArray[Any]:
    """Floating point numbers, anything at all where null. Raises TypeError for what holds no numbers."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        array, kind = array.dictionary_decode(), kind.value_type
    if pa.types.is_boolean(kind):
        array = array.cast(pa.int8())
    elif pa.types.is_decimal(kind):
        array = array.cast(pa.float64(), safe=False)
    elif pa.types.is_null(kind):
        return np.zeros(len(array), np.float32)
    values = raw_values(array)
    if values is None:
        raise TypeError("values are numbers or booleans")
    return values if values.dtype.kind == "f" and values.itemsize > 2 else values.astype(np.float64)


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


def _joined_nulls(pieces: list[Bool]) -> Bool:
    if all(piece.strides == (0,) for piece in pieces):
        return no_nulls(sum(len(piece) for piece in pieces))
    return np.concatenate(pieces)
