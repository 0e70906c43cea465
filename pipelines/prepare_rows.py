"""Request rows as positions in a partition's ordered events: whole arrays at a time, no Python per row.

A list column is described by the events that may enter it and a slice of them per row; values are gathered only when a
row group is written. Shape suffixes: E events · R rows · F events that may enter a list, or supervised things ·
N those of them with enough history · Q requests · V values of a list column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.batch import Int64
from pipelines.prepare_events import Events, micros
from pipelines.prepare_job import Job
from pipelines.prepare_log import source_of


@dataclass(frozen=True)
class Lists:
    """The list of row r is the events event_F[first_R[r]:end_R[r]].

    context_R: how many of them, at the front, are not supervised. by_time: False where lists are yet to be ordered.
    """

    event_F: Int64
    first_R: Int64
    end_R: Int64
    context_R: Int64 | None = None
    by_time: bool = True


@dataclass(frozen=True)
class Rows:
    """R request rows in the order of their first event. event_R: the event whose static columns a row takes.

    short: supervised events left out because too few events were known before them.
    """

    event_R: Int64
    lists: dict[str, Lists]
    short: int

    def select(self, chosen: slice) -> Rows:
        """Some of the rows."""
        lists = {}
        for name, of in self.lists.items():
            context_R = None if of.context_R is None else of.context_R[chosen]
            lists[name] = Lists(of.event_F, of.first_R[chosen], of.end_R[chosen], context_R, of.by_time)
        return Rows(self.event_R[chosen], lists, self.short)


@dataclass(frozen=True)
class Supervised:
    """What is to be predicted, before it is cut into rows: requests (`candidates` supervision) or events (`history`).

    event_F, first_F, end_F: a request's first event and its slice of member_E; or an event, its user's first place in
    the supervised history and its own place + 1. enough_F: whether min_history events were known before it. new_F:
    whether it is to be predicted here; what is not was predicted before, and is here as context.
    """

    event_F: Int64
    first_F: Int64
    end_F: Int64
    enough_F: npt.NDArray[np.bool_]
    member_E: Int64
    new_F: npt.NDArray[np.bool_]


def find_supervised(
    job: Job, events: Events, segment_E: Int64 | None = None, new_E: npt.NDArray[np.bool_] | None = None
) -> Supervised:
    """All that may be supervised, in the order of the events. Only events of `new_E` are (None = all); a request is of
    one of the segments `segment_E` (None = of any)."""
    if job.schema.supervision == "candidates":
        new = np.arange(len(events.time_E)) if new_E is None else np.flatnonzero(new_E)
        return _requests(job, events, new, segment_E)
    kept_E = passes(job, events, job.schema.supervised_history)
    before_E = _counts_before(kept_E)
    event_F = np.flatnonzero(kept_E)
    first_F = before_E[events.user_start_E[event_F]]
    enough_F = before_E[events.known_E[event_F]] - first_F >= job.settings.min_history
    new_F = np.ones(len(event_F), bool) if new_E is None else new_E[event_F]
    return Supervised(event_F, first_F, np.arange(1, len(event_F) + 1), enough_F, event_F, new_F)


def make_rows(job: Job, events: Events, supervised: Supervised, segment_E: Int64) -> Rows:
    """Rows of all segments; a row's segment is that of its event."""
    chosen = np.flatnonzero(supervised.enough_F & supervised.new_F)
    short = int(np.count_nonzero(~supervised.enough_F & supervised.new_F))
    if job.schema.supervision == "candidates":
        event_R = supervised.event_F[chosen]
        short = int((supervised.end_F - supervised.first_F)[~supervised.enough_F].sum())
        group, own = "candidates", Lists(supervised.member_E, supervised.first_F[chosen], supervised.end_F[chosen])
    else:
        event_R, own = _stretches(job, supervised, chosen, segment_E)
        group = f"history.{job.schema.supervised_history}"
    lists = {group: own}
    for name in job.schema.histories:
        lists.setdefault(f"history.{name}", _history(job, events, name, event_R))
    return Rows(event_R, lists, short)


def make_table(
    job: Job, events: Events, rows: Rows, chosen_R: Int64, final_E: dict[str, npt.NDArray[np.bool_]] | None = None
) -> pa.Table:
    """The chosen rows with all their columns, in the schema's order. final_E: {label column: [E] whether it is known by
    now}; elsewhere the label is null."""
    indices = {group: _indices(lists, chosen_R) for group, lists in rows.lists.items()}
    columns = {}
    for name in job.written():
        spec = job.schema.columns[name]
        source = events.table[source_of(job.schema, name)]
        if not spec.group:
            columns[name] = source.take(pa.array(rows.event_R[chosen_R])).combine_chunks()
            continue
        offsets, event_V, context_V = indices[spec.group]
        values = _one_array(source.take(pa.array(event_V)).combine_chunks())
        if context_V is not None and spec.role in ("label", "weight"):
            nothing = pa.scalar(None if spec.role == "label" else 0, values.type)
            values = pc.if_else(pa.array(context_V), nothing, values)
        if final_E and name in final_E:
            values = pc.if_else(pa.array(final_E[name][event_V]), values, pa.scalar(None, values.type))
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), _one_array(values))
    return pa.table(columns)


def _requests(job: Job, events: Events, new: Int64, segment_E: Int64 | None) -> Supervised:
    """Events of one user, request and segment (without a request column: of one time) are the candidates of one row."""
    if job.settings.request:
        codes = pc.dictionary_encode(events.table[job.settings.request].take(pa.array(new))).combine_chunks()
        key_N = _one_array(codes).indices.to_numpy().astype(np.int64)
    else:
        key_N = _codes(events.time_E[new])
    for more_N in (events.user_start_E[new], *(() if segment_E is None else (segment_E[new],))):
        key_N = _codes(more_N) * (key_N.max(initial=0) + 1) + key_N
    _, first_Q, request_N = np.unique(key_N, return_index=True, return_inverse=True)
    order_Q = np.argsort(first_Q)
    rank_Q = np.empty_like(order_Q)
    rank_Q[order_Q] = np.arange(len(order_Q))
    event_F = new[first_Q[order_Q]]
    end_F = np.cumsum(np.bincount(request_N, minlength=len(order_Q))[order_Q])
    enough_F = events.known_E[event_F] - events.user_start_E[event_F] >= job.settings.min_history
    first_F = np.concatenate(([0], end_F[:-1])) if len(end_F) else end_F
    member_N = new[np.argsort(rank_Q[request_N], kind="stable")]
    return Supervised(event_F, first_F, end_F, enough_F, member_N, np.ones(len(event_F), bool))


def _codes(values: Int64) -> Int64:
    """Each value's place among the distinct ones."""
    return np.unique(values, return_inverse=True)[1]


def _stretches(job: Job, supervised: Supervised, chosen: Int64, segment_E: Int64) -> tuple[Int64, Lists]:
    """Cuts the supervised events of a user and segment, which are contiguous, into rows; puts context before each."""
    settings = job.settings
    user_N, segment_N = supervised.first_F[chosen], segment_E[supervised.event_F[chosen]]
    new_N = np.ones(len(chosen), bool)
    new_N[1:] = (user_N[1:] != user_N[:-1]) | (segment_N[1:] != segment_N[:-1])
    place_N = np.arange(len(chosen))
    starts = np.flatnonzero(new_N)
    within_N = place_N - (starts[np.cumsum(new_N) - 1] if len(starts) else place_N)
    cut_R = np.flatnonzero(within_N % settings.supervised_events == 0)
    start_R = chosen[cut_R]
    last_R = np.append(cut_R[1:], len(chosen)) - 1
    end_R = chosen[last_R[: len(cut_R)]] + 1
    first_R = np.maximum(supervised.first_F[start_R], start_R - settings.context_events)
    return supervised.event_F[start_R], Lists(supervised.member_E, first_R, end_R, start_R - first_R)


def _history(job: Job, events: Events, name: str, event_R: Int64) -> Lists:
    """The newest max_length events of a history that are known before each row's event."""
    kept_E = passes(job, events, name)
    limit = job.schema.histories[name].max_length
    known_R, start_R = events.known_E[event_R], events.user_start_E[event_R]
    if name in job.settings.history_filter and job.schema.histories[name].action_time:
        return _history_by_knowledge(job, events, name, kept_E, event_R)
    before_E = _counts_before(kept_E)
    end_R = before_E[known_R]
    return Lists(np.flatnonzero(kept_E), np.maximum(before_E[start_R], end_R - limit), end_R)


def _history_by_knowledge(job: Job, events: Events, name: str, kept_E: npt.NDArray[np.bool_], event_R: Int64) -> Lists:
    """Of a history filtered by actions: an event's presence tells its action, so it enters when that is known."""
    history = job.schema.histories[name]
    event_F = np.flatnonzero(kept_E)
    known_F = known_times(job, events, name)[event_F]
    order_F = np.lexsort((known_F, events.user_start_E[event_F]))
    event_F, known_F = event_F[order_F], known_F[order_F]
    clock = np.unique(np.concatenate((known_F, events.time_E[event_R])))
    key_F = events.user_start_E[event_F] * (len(clock) + 1) + np.searchsorted(clock, known_F)
    user_R = events.user_start_E[event_R] * (len(clock) + 1)
    end_R = np.searchsorted(key_F, user_R + np.searchsorted(clock, events.time_E[event_R]))
    first_R = np.maximum(np.searchsorted(key_F, user_R), end_R - history.max_length)
    return Lists(event_F, first_R, end_R, by_time=False)


def known_times(job: Job, events: Events, history: str) -> Int64:
    """[E] microseconds from which the action of each event is known; NEVER where there is none."""
    column = source_of(job.schema, job.schema.histories[history].action_time)
    return np.maximum(events.time_E, micros(events.table[column], job.schema.time_unit))


def passes(job: Job, events: Events, history: str) -> npt.NDArray[np.bool_]:
    """Which events may enter a history: those whose filter column is true or non-zero; null does not pass."""
    name = job.settings.history_filter.get(history)
    if name is None:
        return np.ones(len(events.time_E), bool)
    column = events.table[name]
    passes = column if pa.types.is_boolean(column.type) else pc.not_equal(column, pa.scalar(0, column.type))
    result: npt.NDArray[np.bool_] = passes.fill_null(False).to_numpy()
    return result


def _counts_before(kept_E: npt.NDArray[np.bool_]) -> Int64:
    """[E + 1]: how many of the first e events are kept."""
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(kept_E)))


def _indices(lists: Lists, chosen_R: Int64) -> tuple[Int64, Int64, npt.NDArray[np.bool_] | None]:
    """Offsets [R + 1], events [V], and whether each is context [V] (None where nothing is)."""
    first_R = lists.first_R[chosen_R]
    length_R = lists.end_R[chosen_R] - first_R
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(length_R)))
    row_V = np.repeat(np.arange(len(chosen_R)), length_R)
    place_V = np.arange(offsets[-1]) - offsets[row_V]
    event_V = lists.event_F[first_R[row_V] + place_V]
    if not lists.by_time:
        event_V = event_V[np.lexsort((event_V, row_V))]
    context_V = None if lists.context_R is None else place_V < lists.context_R[chosen_R][row_V]
    return offsets, event_V, context_V


def _one_array(array: Any) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
