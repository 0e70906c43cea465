"""Runs: events dealt to numbered places, on disk, in the order in which they came.

A run is what one task held in memory when its share was full: one Arrow IPC file with a record batch a place, and
beside it how many rows and bytes each has. So a place is read in as many pieces as there are runs, whatever the number
of files that the events came from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from pipelines.batch import Int64

Deal = Callable[[pa.Table], Int64]


class RunWriter:
    """`add` tables, then `close`. Memory: `limit` bytes of events, and once more while a run is written."""

    def __init__(self, folder: str, name: str, places: int, deal: Deal, limit: int) -> None:
        os.makedirs(folder, exist_ok=True)
        self._path, self._places, self._deal, self._limit = f"{folder}/{name}", places, deal, limit
        self._pending: list[pa.Table] = []
        self._bytes = 0
        self._runs = 0

    def add(self, table: pa.Table) -> None:
        """Events in the order of the log."""
        if table.num_rows == 0:
            return
        if self._bytes and self._bytes + table.nbytes > self._limit:
            self._flush()
        self._pending.append(table)
        self._bytes += table.nbytes

    def close(self) -> None:
        """Writes what is left."""
        if self._pending:
            self._flush()

    def _flush(self) -> None:
        table = pa.concat_tables(self._pending).combine_chunks()
        self._pending, self._bytes = [], 0
        place_E = self._deal(table)
        order_E = np.argsort(place_E, kind="stable")
        counts = np.bincount(place_E, minlength=self._places)
        ends = np.cumsum(counts)
        batch = one_batch(table.take(pa.array(order_E)))
        del table
        path = f"{self._path}-{self._runs:05d}"
        self._runs += 1
        sizes = np.zeros((2, self._places), np.int64)
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        with pa.OSFile(f"{path}.arrow", "wb") as file, pa.ipc.new_file(file, batch.schema, options=options) as writer:
            for place, (count, end) in enumerate(zip(counts.tolist(), ends.tolist(), strict=True)):
                part = batch.slice(end - count, count)
                sizes[:, place] = count, part.nbytes if count else 0
                writer.write_batch(part)
        np.save(f"{path}.npy", sizes)


def run_paths(folder: str) -> list[str]:
    """Of the runs in a folder, in the order of the log."""
    if not os.path.isdir(folder):
        return []
    return sorted(f"{folder}/{name}" for name in os.listdir(folder) if name.endswith(".arrow"))


def place_sizes(folder: str, places: Sequence[int]) -> tuple[Int64, Int64]:
    """Rows and bytes of each place, over all runs."""
    total = np.zeros((2, len(places)), np.int64)
    for path in run_paths(folder):
        total += np.load(path.removesuffix(".arrow") + ".npy", mmap_mode="r")[:, list(places)]
    return total[0], total[1]


def read_place(
    folder: str, places: Sequence[int], schema: pa.Schema, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Events of consecutive places, run by run: of each run those of all places. `columns`: of `schema`; None = all."""
    names = [name for name in schema.names if columns is None or name in columns]
    options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(n) for n in names], use_threads=False)
    for path in run_paths(folder):
        with pa.OSFile(path, "rb") as file:
            reader = pa.ipc.open_file(file, options=options)
            batches = [batch for batch in map(reader.get_batch, places) if batch.num_rows]
        if batches:
            yield pa.Table.from_batches(batches)


def read_places(
    folder: str, places: Sequence[int], schema: pa.Schema, columns: Sequence[str] | None = None
) -> pa.Table:
    """The same as one table in one piece."""
    tables = list(read_place(folder, places, schema, columns))
    names = [name for name in schema.names if columns is None or name in columns]
    empty = pa.schema([schema.field(name) for name in names]).empty_table()
    return pa.concat_tables([empty, *tables]).combine_chunks()


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """A table as one record batch."""
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
