"""What is known when: event times, clocks and the histories' newest events, for decoded rows.

Sizes: R rows · P positions of a history, all of its events as read, those beyond `max_length` too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.bad_rows import Bad
from pipelines.batch import Int64
from pipelines.decode import Rows
from pipelines.hashing import mix
from pipelines.schema import MISSING_ID, Schema


@dataclass(frozen=True)
class Kept:
    """The positions of a group that are used: lengths_R of them from starts_R on. lengths: after `max_length`."""

    starts: Int64
    lengths: Int64


@dataclass(frozen=True)
class Clocks:
    """kept: {group: its positions used}; times, clocks, action_clocks: {history: int64 [P]}; of the request: int64
    [R]."""

    kept: dict[str, Kept]
    times: dict[str, Int64]
    clocks: dict[str, Int64]
    action_clocks: dict[str, Int64]
    request_time: Int64
    request_clock: Int64


def read_clocks(rows: Rows, schema: Schema) -> Clocks:
    """Clocks as `pipelines.batch.Batch` describes them, of histories that are oldest first (`unordered`)."""
    kept = {name: _newest(offsets, None) for name, offsets in rows.offsets.items()}
    kept |= {f"history.{n}": _newest(rows.offsets[f"history.{n}"], h.max_length) for n, h in schema.histories.items()}
    times = {name: rows.columns[history.time].values for name, history in schema.histories.items()}
    request_time = _request_times(rows, schema, kept, times)
    clocks, action_clocks = dict(times), {}
    request_clock = request_time
    for name, history in schema.histories.items():
        known = rows.columns[history.action_time].values if history.action_time else times[name]
        if schema.ties == "order":
            group = f"history.{name}"
            clocks[name] = _running_index(kept[group].starts, rows.offsets[group])
            request_clock = kept[group].lengths
            if history.action_time:
                known = _last_unknown(rows.offsets[group], kept[group].starts, times[name], known, request_time)
            else:
                known = clocks[name]
        action_clocks[name] = known
    return Clocks(kept, times, clocks, action_clocks, request_time, request_clock)


def unordered(rows: Rows, schema: Schema, path: str) -> list[Bad]:
    """The rows whose histories are not oldest first. rows: of one file."""
    found = []
    for name, history in schema.histories.items():
        if history.time not in rows.columns:
            continue
        times_P, offsets = rows.columns[history.time].values, rows.offsets[f"history.{name}"]
        falls = times_P[1:] < times_P[:-1]
        begins = offsets[1:-1]
        falls[begins[(begins > 0) & (begins < len(times_P))] - 1] = False
        if falls.any():
            bad_R = np.unique(rows.rows_of(f"history.{name}", np.flatnonzero(falls) + 1))
            words = ["an earlier time after a later one"] * len(bad_R)
            rule, remedy = "histories are oldest first", "reverse or sort the lists"
            found.append(Bad.of(history.time, bad_R, words, rule, remedy, path, rows.row))
    return found


def request_ids(rows: Rows, schema: Schema, request_time: Int64) -> Int64:
    """The request column; without one a hash of (user, request time)."""
    column = schema.column_with_role("request")
    if column is not None:
        return rows.columns[column].values
    user = rows.columns[schema.user].values
    mixed: Int64 = np.bitwise_xor(user, mix(request_time, 0).view(np.int64))
    return mix(mixed, 1).view(np.int64)


def hide_unknown_actions(rows: Rows, schema: Schema, clocks: Clocks) -> None:
    """Overwrites the history actions that are not known at the request (action_clock ≥ request_clock): missing, or 0
    where dense.

    For `candidates` supervision, where nothing but the request is predicted; `history` supervision hides them by clocks
    in the model.
    """
    for name, spec in schema.columns.items():
        if spec.role != "action" or not spec.group.startswith("history."):
            continue
        history = spec.group.removeprefix("history.")
        row_P = np.repeat(np.arange(rows.count), np.diff(rows.offsets[spec.group]))
        unknown_P = clocks.action_clocks[history] >= clocks.request_clock[row_P]
        if not unknown_P.any():
            continue
        column = rows.columns[name]
        values = column.values.copy()  # Arrow's buffers are read-only
        mask = unknown_P if column.lengths is None else np.repeat(unknown_P, column.lengths)
        values[mask] = 0 if spec.kind in ("dense", "vector") else MISSING_ID
        rows.columns[name] = type(column)(values, column.null, column.lengths)


def _newest(offsets: Int64, limit: int | None) -> Kept:
    lengths = np.diff(offsets) if limit is None else np.minimum(np.diff(offsets), limit)
    return Kept(offsets[1:] - lengths, lengths)


def _request_times(rows: Rows, schema: Schema, kept: dict[str, Kept], times: dict[str, Int64]) -> Int64:
    """The static time column; without one the time of the newest supervised event (0 for none)."""
    column = schema.column_with_role("time")
    if column is not None:
        return rows.columns[column].values
    result = np.zeros(rows.count, np.int64)
    group = kept[f"history.{schema.supervised_history}"]
    some = group.lengths > 0
    result[some] = times[schema.supervised_history][(group.starts + group.lengths - 1)[some]]
    return result


def _running_index(starts_R: Int64, offsets: Int64) -> Int64:
    """0 at a row's first kept event; events beyond max_length count below 0 and are never read."""
    return np.arange(offsets[-1]) - np.repeat(starts_R, np.diff(offsets))


def _last_unknown(offsets: Int64, starts_R: Int64, times_P: Int64, known_P: Int64, request_time_R: Int64) -> Int64:
    """Action clocks under ties = "order" with an action time: index of the last event at which the action is still
    unknown.

    An action is known at an event when that one comes later in the order and not before the action's time.
    """
    lengths_R = np.diff(offsets)
    count = len(times_P)
    row_P = np.repeat(np.arange(len(lengths_R)), lengths_R)
    merged = np.lexsort((np.repeat([0, 1], count), np.concatenate([known_P, times_P]), np.tile(row_P, 2)))
    is_event = merged >= count
    events_before = np.empty(2 * count, np.int64)
    events_before[merged] = np.cumsum(is_event) - is_event
    earlier_P = events_before[:count] - offsets[:-1][row_P]  # events of the row strictly before the action's time
    own_P = np.arange(count) - offsets[:-1][row_P]
    last_unknown_P = np.maximum(own_P, earlier_P - 1)
    late = known_P > request_time_R[row_P]
    last_unknown_P[late] = lengths_R[row_P[late]]
    dropped_P = (starts_R - offsets[:-1])[row_P]
    action_clock_P: Int64 = last_unknown_P - dropped_P
    return action_clock_P
