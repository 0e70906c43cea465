"""Some rows of a decoded window to a `Batch`: gathers over flat arrays, no padding, no per-row Python.

Sizes as in pipelines.batch; D: all positions or values of a window's column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.batch import Array, Batch, FieldIds, Float32, Int32, Int64, Position, TableIds
from pipelines.clocks import Clocks
from pipelines.decode import Rows, Values
from pipelines.factorize import factorize
from pipelines.schema import INPUT_ROLES, TABLE_KINDS, Schema
from pipelines.supervision import Supervision, supervised_group


@dataclass(frozen=True)
class WindowArrays:
    """All a window's batches are gathered from. unique: {table: int64 [U of the window]}, ascending; codes: {column:
    int64 [D], place of each id in its table's `unique`}; starts: {`ids` column: int64 [D] first value of each
    position}; user, request: [R of the window]."""

    schema: Schema
    rows: Rows
    clocks: Clocks
    unique: dict[str, Int64]
    codes: dict[str, Int64]
    starts: dict[str, Int64]
    supervision: Supervision
    user: Int64
    request: Int64


def unique_tables(rows: Rows, schema: Schema) -> tuple[dict[str, Int64], dict[str, Int64]]:
    """(unique ids of each table over all of its columns, each column's places among them)."""
    unique: dict[str, Int64] = {}
    codes: dict[str, Int64] = {}
    for table, columns in schema.table_columns().items():
        parts = [rows.columns[column].values for column in columns]
        unique[table], inverse = factorize(np.concatenate(parts))
        codes |= dict(zip(columns, np.split(inverse, np.cumsum([len(part) for part in parts])[:-1]), strict=True))
    return unique, codes


def collate(window: WindowArrays, row_R: Int64, position: Position, filler: bool = False) -> Batch:
    """The batch of these rows of the window, in this order. filler: no row counts: weights and counts are 0."""
    schema, rows, clocks = window.schema, window.rows, window.clocks
    positions = {"": row_R}
    lengths: dict[str, Int32] = {}
    for group, kept in clocks.kept.items():
        lengths_R = kept.lengths[row_R]
        lengths[group] = lengths_R.astype(np.int32)
        positions[group] = ragged_positions(kept.starts[row_R], lengths_R)
    tables, fields = _fields(window, positions, filler)
    histories = list(schema.histories)
    events = {name: positions[f"history.{name}"] for name in histories}
    taught, supervised = window.supervision, positions.get(supervised_group(schema), row_R[:0])
    weights = _gather(taught.weights, supervised, filler)
    corrected = taught.metric_weights is not taught.weights
    return Batch(
        position=position,
        rows=len(row_R),
        tables=tables,
        fields=fields,
        dense=_dense(schema, rows, positions),
        history_lengths={name: lengths[f"history.{name}"] for name in histories},
        candidate_lengths=lengths.get("candidates", np.zeros(len(row_R), np.int32)),
        times={name: clocks.times[name][events[name]] for name in histories},
        clocks={name: clocks.clocks[name][events[name]] for name in histories},
        action_clocks={name: clocks.action_clocks[name][events[name]] for name in histories},
        request_time=clocks.request_time[row_R],
        request_clock=clocks.request_clock[row_R],
        labels=_gather(taught.labels, supervised, filler),
        weights=weights,
        metric_weights=_gather(taught.metric_weights, supervised, filler) if corrected else weights,
        offsets=_gather(taught.offsets, supervised, filler),
        status=taught.status[row_R],
        user=window.user[row_R],
        request=window.request[row_R],
        file=rows.file[row_R],
        row=rows.row[row_R],
        filler=filler,
    )


def _gather(values: dict[str, Float32], position_S: Int64, filler: bool) -> dict[str, Float32]:
    """Of each task, at these positions; zeros in a filler."""
    return {t: np.zeros(len(position_S), np.float32) if filler else v[position_S] for t, v in values.items()}


def ragged_positions(starts_R: Int64, lengths_R: Int64) -> Int64:
    """starts[0], starts[0] + 1, … lengths[0] of them, then those of the next row, and so on."""
    ends_R = np.cumsum(lengths_R)
    total = int(ends_R[-1]) if len(ends_R) else 0
    positions: Int64 = np.arange(total) + np.repeat(starts_R - (ends_R - lengths_R), lengths_R)
    return positions


def _fields(
    window: WindowArrays, positions: dict[str, Int64], filler: bool
) -> tuple[dict[str, TableIds], dict[str, FieldIds]]:
    tables, fields = {}, {}
    for table, columns in window.schema.table_columns().items():
        codes, lengths = [], []
        for column in columns:
            values, inner = _gather_ids(window, column, positions[window.schema.columns[column].group])
            codes.append(values)
            lengths.append(inner)
        unique_U, inverse, counts_U = _renumber(np.concatenate(codes), window.unique[table])
        tables[table] = TableIds(unique_U, np.zeros_like(counts_U) if filler else counts_U)
        bounds = np.cumsum([len(part) for part in codes])[:-1]
        for column, part, inner in zip(columns, np.split(inverse, bounds), lengths, strict=True):
            fields[column] = FieldIds(table, part, inner)
    return tables, fields


def _gather_ids(window: WindowArrays, column: str, position_P: Int64) -> tuple[Int64, Int32 | None]:
    """(codes [V], lengths [P] of an `ids` column)."""
    inner = window.rows.columns[column].lengths
    if inner is None:
        return window.codes[column][position_P], None
    lengths_P = inner[position_P]
    value_V = ragged_positions(window.starts[column][position_P], lengths_P)
    return window.codes[column][value_V], lengths_P.astype(np.int32)


def _renumber(codes_V: Int64, ids: Int64) -> tuple[Int64, Int64, Int64]:
    """(ids that occur [U], ascending; place of each code among them [V]; occurrences [U]). A scatter table instead of a
    sort."""
    present = np.zeros(len(ids), bool)
    present[codes_V] = True
    used_U = np.flatnonzero(present)
    place = np.empty(len(ids), np.int64)
    place[used_U] = np.arange(len(used_U))
    inverse_V = place[codes_V]
    return ids[used_U], inverse_V, np.bincount(inverse_V, minlength=len(used_U)).astype(np.int64)


def _dense(schema: Schema, rows: Rows, positions: dict[str, Int64]) -> dict[str, Float32]:
    inputs = {name: c for name, c in schema.columns.items() if c.role in INPUT_ROLES and c.kind not in TABLE_KINDS}
    return {name: rows.columns[name].values[positions[spec.group]] for name, spec in inputs.items()}


def inner_starts(column: Values) -> Array:
    """First value of each position of an `ids` column."""
    assert column.lengths is not None
    return np.cumsum(column.lengths) - column.lengths
