"""Some rows of a decoded window to a `Batch`: gathers over flat arrays, no padding, no per-row Python.

Sizes as in pipelines.batch; C: columns that hold ids; G: groups, 0 = static.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.batch import Array, Batch, FieldIds, Float32, Int32, Int64, Position, TableIds
from pipelines.clocks import Clocks
from pipelines.compiled import address
from pipelines.decode import Rows
from pipelines.kernels import gather
from pipelines.schema import INPUT_ROLES, TABLE_KINDS, Schema
from pipelines.supervision import Supervision
from pipelines.unique_kernel import SCRATCH, count_values, pack_used, unique_values

Unique = tuple[dict[str, TableIds], dict[str, FieldIds]]


@dataclass(frozen=True)
class IdColumns:
    """Where a window's ids are, for the kernels. names, table_of: of each column, table by table. values, inner_starts,
    inner_lengths: addresses (inner: of `ids` columns, else 0); group: [C] index into the groups; first: [T + 1] first
    column of each table. alive: the arrays behind the addresses."""

    tables: tuple[str, ...]
    names: tuple[str, ...]
    table_of: tuple[str, ...]
    values: Int64
    inner_starts: Int64
    inner_lengths: Int64
    group: Int64
    first: Int64
    alive: tuple[Array, ...]


@dataclass(frozen=True)
class WindowArrays:
    """All a window's batches are gathered from. groups: names of those with lists, after "" for static. dense: input
    columns of kinds dense and vector, and their groups. user, request: [R of the window]."""

    schema: Schema
    rows: Rows
    clocks: Clocks
    groups: tuple[str, ...]
    ids: IdColumns
    dense: dict[str, str]
    supervision: Supervision
    user: Int64
    request: Int64


@dataclass
class Taken:
    """The rows of one batch: starts, lengths, total of each group's positions. [G, R], [G, R], [G]"""

    row_R: Int64
    groups: tuple[str, ...]
    starts_GR: Int64
    lengths_GR: Int64
    totals: list[int]

    def of(self, values: Array, group: str) -> Array:
        """These rows' values of a column."""
        if not group:
            return values[self.row_R]
        g = self.groups.index(group)
        return gather(values, self.starts_GR[g], self.lengths_GR[g], self.totals[g])


def window_arrays(
    schema: Schema, rows: Rows, clocks: Clocks, supervision: Supervision, user: Int64, request: Int64
) -> WindowArrays:
    """What is the same for all batches of a window."""
    inputs = {name: spec for name, spec in schema.columns.items() if spec.role in INPUT_ROLES}
    dense = {name: spec.group for name, spec in inputs.items() if spec.kind not in TABLE_KINDS}
    groups = ("", *clocks.kept)
    return WindowArrays(
        schema, rows, clocks, groups, _id_columns(schema, rows, groups), dense, supervision, user, request
    )


def _id_columns(schema: Schema, rows: Rows, groups: tuple[str, ...]) -> IdColumns:
    tables = schema.table_columns()
    names = [name for columns in tables.values() for name in columns]
    values_C, starts_C, lengths_C = [], [], []
    alive: list[Array] = []
    for name in names:
        column = rows.columns[name]
        values = np.ascontiguousarray(column.values)
        alive.append(values)
        values_C.append(address(values))
        if column.lengths is None:
            starts_C.append(0)
            lengths_C.append(0)
        else:
            lengths = np.ascontiguousarray(column.lengths)
            starts = np.cumsum(lengths) - lengths
            alive += [starts, lengths]
            starts_C.append(address(starts))
            lengths_C.append(address(lengths))
    place = {group: index for index, group in enumerate(groups)}
    group_C = [place[schema.columns[name].group] for name in names]
    first_T = np.cumsum([0, *(len(columns) for columns in tables.values())])
    values, starts, lengths, group = (np.array(part, np.int64) for part in (values_C, starts_C, lengths_C, group_C))
    table_of = [table for table, columns in tables.items() for _ in columns]
    return IdColumns(
        tuple(tables), tuple(names), tuple(table_of), values, starts, lengths, group, first_T, tuple(alive)
    )


@dataclass(frozen=True)
class Pick:
    """A batch to be: rows of the window, in order. filler: no row counts: weights and counts are 0."""

    row_R: Int64
    position: Position
    filler: bool = False


def collate(window: WindowArrays, picks: list[Pick]) -> list[Batch]:
    """The batches of these rows of the window. All at once: a column is gone through while it is in the cache."""
    taken, whole = _take(window, picks)
    unique = _unique(window, taken, picks, whole)
    return [_batch(window, *each) for each in zip(picks, taken, unique, strict=True)]


def _batch(window: WindowArrays, pick: Pick, taken: Taken, unique: Unique) -> Batch:
    schema, rows, clocks = window.schema, window.rows, window.clocks
    row_R, filler = pick.row_R, pick.filler
    tables, fields = unique
    histories = list(schema.histories)
    lengths = {group: taken.lengths_GR[g].astype(np.int32) for g, group in enumerate(window.groups) if group}
    times = _of_histories(taken, clocks.times, {})
    running = _of_histories(taken, clocks.clocks, {id(clocks.times[name]): times[name] for name in histories})
    known = {id(clocks.times[name]): times[name] for name in histories}
    known |= {id(clocks.clocks[name]): running[name] for name in histories}
    taught = window.supervision
    weights = _supervised(window, taken, taught.weights, filler)
    corrected = taught.metric_weights is not taught.weights
    return Batch(
        position=pick.position,
        rows=len(row_R),
        tables=tables,
        fields=fields,
        dense={name: taken.of(rows.columns[name].values, group) for name, group in window.dense.items()},
        history_lengths={name: lengths[f"history.{name}"] for name in histories},
        candidate_lengths=lengths.get("candidates", np.zeros(len(row_R), np.int32)),
        times=times,
        clocks=running,
        action_clocks=_of_histories(taken, clocks.action_clocks, known),
        request_time=clocks.request_time[row_R],
        request_clock=clocks.request_clock[row_R],
        labels=_supervised(window, taken, taught.labels, filler),
        weights=weights,
        metric_weights=_supervised(window, taken, taught.metric_weights, filler) if corrected else weights,
        offsets=_supervised(window, taken, taught.offsets, filler),
        status=taught.status[row_R],
        user=window.user[row_R],
        request=window.request[row_R],
        file=rows.file[row_R],
        row=rows.row[row_R],
        filler=filler,
    )


def _take(window: WindowArrays, picks: list[Pick]) -> tuple[list[Taken], tuple[Int64, Int64]]:
    """Of each batch, and starts and lengths of all: what theirs are views of."""
    kept = window.clocks.kept
    row_R = np.concatenate([pick.row_R for pick in picks])
    starts_GR, lengths_GR = np.empty((2, len(window.groups), len(row_R)), np.int64)
    for g, group in enumerate(window.groups):
        starts_GR[g] = kept[group].starts[row_R] if group else row_R
        lengths_GR[g] = kept[group].lengths[row_R] if group else 1
    taken, begin = [], 0
    for pick in picks:
        part = slice(begin, begin + len(pick.row_R))
        begin = part.stop
        totals = lengths_GR[:, part].sum(1).tolist()
        taken.append(Taken(pick.row_R, window.groups, starts_GR[:, part], lengths_GR[:, part], totals))
    return taken, (starts_GR, lengths_GR)


def _of_histories(taken: Taken, values: dict[str, Int64], gathered: dict[int, Int64]) -> dict[str, Int64]:
    """Of each history, positions in a batch. gathered: by identity, what another column's gathering has made
    already."""
    return {
        name: gathered[id(column)] if id(column) in gathered else taken.of(column, f"history.{name}")
        for name, column in values.items()
    }


def _supervised(window: WindowArrays, taken: Taken, values: dict[str, Float32], filler: bool) -> dict[str, Float32]:
    """Of each task, at the supervised positions; zeros in a filler."""
    group = window.schema.supervised_group
    if group not in taken.groups:
        return {task: np.zeros(0, np.float32) for task in values}
    found = {task: taken.of(column, group) for task, column in values.items()}
    return {task: np.zeros_like(column) for task, column in found.items()} if filler else found


def _unique(window: WindowArrays, taken: list[Taken], picks: list[Pick], whole: tuple[Int64, Int64]) -> list[Unique]:
    """Unique ids of each table, and every column's places among them, of each batch. Slices of three arrays."""
    ids = window.ids
    rows_B = np.cumsum([0, *(len(pick.row_R) for pick in picks)])
    begins_BC = np.empty((len(picks), len(ids.names) + 1), np.int64)
    count_values(ids.inner_starts, ids.inner_lengths, ids.group, *whole, rows_B, begins_BC)
    total, largest = int(begins_BC[-1, -1]), int(np.diff(begins_BC[:, ids.first], axis=1).max(initial=0))
    ids_V, counts_V, wide, narrow = SCRATCH.room(total, largest)
    inverse_V, used_BT = np.empty(total, np.int32), np.empty((len(picks), len(ids.tables)), np.int64)
    unique_values(
        ids.values, ids.inner_starts, ids.inner_lengths, ids.group, ids.first, *whole, rows_B, begins_BC,
        wide, narrow, inverse_V, ids_V, counts_V, used_BT,
    )  # fmt: skip
    ids_U, counts_U = np.empty((2, int(used_BT.sum())), np.int64)
    pack_used(begins_BC, ids.first, used_BT, ids_V, counts_V, ids_U, counts_U)
    found, end = [], 0
    for b, pick in enumerate(picks):
        tables, used = {}, used_BT[b].tolist()
        for table, size in zip(ids.tables, used, strict=True):
            begin, end = end, end + size
            counts = np.zeros(size, np.int64) if pick.filler else counts_U[begin:end]
            tables[table] = TableIds(ids_U[begin:end], counts)
        found.append((tables, _fields(window, taken[b], inverse_V, begins_BC[b].tolist())))
    return found


def _fields(window: WindowArrays, taken: Taken, inverse_V: Int32, begins_C: list[int]) -> dict[str, FieldIds]:
    ids, fields = window.ids, {}
    for c, (name, table) in enumerate(zip(ids.names, ids.table_of, strict=True)):
        lengths = None
        if ids.inner_starts[c]:
            inner = window.rows.columns[name].lengths
            assert inner is not None
            lengths = taken.of(inner, taken.groups[ids.group[c]]).astype(np.int32)
        fields[name] = FieldIds(table, inverse_V[begins_C[c] : begins_C[c + 1]], lengths)
    return fields
