"""Events of a slice of users, in order, and once each. Shape suffix: E events of a slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.batch import Int64
from pipelines.hashing import ids_of, mix
from pipelines.prepare_job import Job
from pipelines.prepare_runs import read_places
from pipelines.prepare_work import cell_place
from pipelines.schema import MISSING_ID

NEVER = np.iinfo(np.int64).max
MICROS = {"s": 1_000_000, "ms": 1_000, "us": 1}
DAY_MICROS = 86_400_000_000


@dataclass(frozen=True)
class Events:
    """Ordered by (hash of user, time, tie keys, place in the log).

    time_E: microseconds. user_start_E: index of the first event of the event's user.
    known_E: events [user_start, known) are earlier than this one: in time or, with ties = "order", in the order.
    duplicates: events left out because a later one of the log is the same event.
    """

    table: pa.Table
    time_E: Int64
    user_start_E: Int64
    known_E: Int64
    duplicates: int = 0


def read_events(job: Job, partition: int, columns: Sequence[str] | None = None) -> Events:
    """Events of one of `job.partitions` in order. `columns`: of the log, beyond those that order them; None = all."""
    if columns is not None:
        columns = [*job.required, *job.settings.tie_keys, *job.settings.event_id, *columns]
    folder, place = cell_place(job.shuffle, partition)
    return in_order(job, read_places(folder, [place], job.log_schema, columns))


def in_order(job: Job, table: pa.Table) -> Events:
    """Events of `table`, which are in the order of the log.

    Events of one user, time and `event_id` are one event: the last of them in the log stays.
    """
    hash_E = user_hash(job, table)
    time_E = micros(table[job.time], job.schema.time_unit)
    ties = [_ranks(sort_value(table[name])) for name in job.settings.tie_keys]
    order_E = np.lexsort((*reversed(ties), time_E, hash_E))
    duplicates = 0
    if job.settings.event_id:
        last_E = _last_of_each(job, table, time_E, hash_E)
        duplicates = int(np.count_nonzero(~last_E))
        order_E = order_E[last_E[order_E]]
    table, time_E, hash_E = table.take(pa.array(order_E)), time_E[order_E], hash_E[order_E]
    known_E = np.arange(len(time_E)) if job.schema.ties == "order" else _run_starts(hash_E, time_E)
    return Events(table, time_E, _run_starts(hash_E), known_E, duplicates)


def user_hash(job: Job, table: pa.Table) -> npt.NDArray[np.uint64]:
    """[E] where a user lies in the hash space."""
    return mix(ids_of(table[job.user]), 0)


def cell_codes(hash_E: npt.NDArray[np.uint64], cells: int) -> Int64:
    """[E] which of `cells` equal ranges of the hash space a hash is in."""
    return ((hash_E >> np.uint64(32)) * np.uint64(cells) >> np.uint64(32)).astype(np.int64)


def micros(array: pa.ChunkedArray, unit: str) -> Int64:
    """Times as int64 microseconds since 1970; null → NEVER."""
    if not pa.types.is_integer(array.type):
        return _filled(array.cast(pa.timestamp("us"), safe=False).cast(pa.int64()), NEVER)
    values = _filled(array.cast(pa.int64()), NEVER)
    return np.where(values == NEVER, NEVER, values * MICROS[unit])


def sort_value(array: pa.ChunkedArray) -> pa.ChunkedArray:
    """A tie key or user as int64 or string without nulls (they come first): values of all partitions compare."""
    kind = array.type
    if pa.types.is_timestamp(kind):
        array = array.cast(pa.int64())
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        array = array.cast(pa.int64(), safe=False)
    else:
        array = array.cast(pa.string())
    return array.fill_null(MISSING_ID if pa.types.is_integer(array.type) else "")


def _last_of_each(job: Job, table: pa.Table, time_E: Int64, hash_E: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Whether no later event is the same one. An event that lacks a part of its id is no other's duplicate."""
    keys = [*(_ranks(sort_value(table[name])) for name in job.settings.event_id), time_E, hash_E]
    order_E = np.lexsort(keys)  # stable: the order of the log among equals
    last_E = np.zeros(len(order_E), bool)
    ends_E = np.ones(len(order_E), bool)
    if len(order_E):
        ends_E[:-1] = np.logical_or.reduce([key[order_E][1:] != key[order_E][:-1] for key in keys])
    last_E[order_E[ends_E]] = True
    for name in job.settings.event_id:
        last_E |= table[name].is_null().to_numpy()
    return last_E


def _ranks(array: pa.ChunkedArray) -> Int64:
    if pa.types.is_integer(array.type):
        return _filled(array, MISSING_ID)
    return _filled(pc.rank(array, tiebreaker="dense").cast(pa.int64()), 0)


def _run_starts(*keys_E: npt.NDArray[Any]) -> Int64:
    """Index of the first element of each element's run of equal keys."""
    starts_E = np.zeros(len(keys_E[0]), bool)
    starts_E[:1] = True
    for key_E in keys_E:
        starts_E[1:] |= key_E[1:] != key_E[:-1]
    starts = np.flatnonzero(starts_E)
    return starts[np.cumsum(starts_E) - 1] if len(starts) else starts


def _filled(array: pa.ChunkedArray, value: int) -> Int64:
    filled: Int64 = array.fill_null(value).to_numpy()
    return filled
