"""Events on their way: read from the log, dealt to partitions of users, and there put in order.

The shuffle goes through files, one Arrow IPC file a unit with one record batch a partition: memory stays bounded by a
unit and by a partition, whatever the size of the log. Shape suffix: E events of a partition.
"""

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
from pipelines.prepare_read import read_unit
from pipelines.schema import MISSING_ID

NEVER = np.iinfo(np.int64).max
MICROS = {"s": 1_000_000, "ms": 1_000, "us": 1}


@dataclass(frozen=True)
class Events:
    """A partition's events, ordered by (hash of user, time, tie keys, place in the log).

    time_E: microseconds. user_start_E: index of the first event of the event's user.
    known_E: events [user_start, known) are earlier than this one: in time or, with ties = "order", in the order.
    """

    table: pa.Table
    time_E: Int64
    user_start_E: Int64
    known_E: Int64


def shuffle_unit(job: Job, index: int) -> dict[str, Any]:
    """Reads a unit, writes its events by partition. Returns events kept, dropped {reason: number}, first and last time.

    Raises DataError where the unit cannot be read.
    """
    table, dropped = read_unit(job, job.units[index])
    partition_E = (mix(ids_of(table[job.user]), 0) >> np.uint64(32)) * np.uint64(job.partitions) >> np.uint64(32)
    order_E = np.argsort(partition_E, kind="stable")
    ends = np.cumsum(np.bincount(partition_E.astype(np.int64), minlength=job.partitions))
    batch = _one_batch(table.take(pa.array(order_E)))
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        pa.OSFile(_shuffle_path(job, index), "wb") as file,
        pa.ipc.new_file(file, job.log_schema, options=options) as writer,
    ):
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            writer.write_batch(batch.slice(start, end - start))
    time_E = micros(table[job.time], job.schema.time_unit)
    first, last = (int(time_E.min()), int(time_E.max())) if len(time_E) else (NEVER, MISSING_ID)
    return {"events": len(table), "dropped": dropped, "first": first, "last": last}


def read_events(job: Job, partition: int, columns: Sequence[str] | None = None) -> Events:
    """A partition's events in order. `columns`: of the log, beyond those that order them; None = all."""
    names = job.log_schema.names
    if columns is not None:
        wanted = {*job.required, *job.settings.tie_keys, *columns}
        names = [name for name in names if name in wanted]
    options = pa.ipc.IpcReadOptions(included_fields=[job.log_schema.get_field_index(name) for name in names])
    batches = []
    for index in range(len(job.units)):
        with pa.memory_map(_shuffle_path(job, index)) as file:
            batches.append(pa.ipc.open_file(file, options=options).get_batch(partition))
    return _in_order(job, pa.Table.from_batches(batches).combine_chunks())


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


def _in_order(job: Job, table: pa.Table) -> Events:
    hash_E = mix(ids_of(table[job.user]), 0)
    time_E = micros(table[job.time], job.schema.time_unit)
    ties = [_ranks(sort_value(table[name])) for name in job.settings.tie_keys]
    order_E = np.lexsort((*reversed(ties), time_E, hash_E))
    table, time_E, hash_E = table.take(pa.array(order_E)), time_E[order_E], hash_E[order_E]
    known_E = np.arange(len(time_E)) if job.schema.ties == "order" else _run_starts(hash_E, time_E)
    return Events(table, time_E, _run_starts(hash_E), known_E)


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


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _shuffle_path(job: Job, unit: int) -> str:
    return f"{job.shuffle}/unit-{unit:06d}.arrow"


def _filled(array: pa.ChunkedArray, value: int) -> Int64:
    filled: Int64 = array.fill_null(value).to_numpy()
    return filled
