"""A partition's request rows to files: one a segment, row group by row group; and its users' tails for later days.

Where a partition has one slice its rows go to the files at once. Where it has several, the rows of a segment come in
pieces: they wait on disk and are put together, so that row groups are as full, and bytes the same, as in one slice.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.batch import Int64
from pipelines.prepare_events import DAY_MICROS, user_hash
from pipelines.prepare_output import STATE
from pipelines.prepare_rows import make_table
from pipelines.prepare_slices import Slice, slices
from pipelines.prepare_split import Key, segment_folder
from pipelines.prepare_tail import needed_later
from pipelines.prepare_work import Work

LZ4 = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
TAIL_BATCH = 16_384


def build_partition(work: Work, partition: int, cuts: Sequence[Key]) -> dict[str, Any]:
    """Writes the files of one partition. Returns {"short": examples left out, "duplicates": events left out,
    "segments": {folder: what its file holds}}."""
    segments = _Segments(work, partition)
    short = duplicates = 0
    with ExitStack() as stack:
        tails = _Tails(work, partition, stack)
        for part in slices(work, partition, cuts):
            short += part.rows.short
            duplicates += part.events.duplicates
            segments.add(part)
            for day in part.states:
                tails.add(day, part)
            del part
    answer = {"short": short, "duplicates": duplicates, "segments": segments.finish()}
    return answer


class _Segments:
    """The partition's files of all segments."""

    def __init__(self, work: Work, partition: int) -> None:
        self._work, self._partition = work, partition
        self._waiting = f"{work.job.shuffle}/rows-{partition:05d}"
        self._pieces: dict[int, list[str]] = {}
        self._found: dict[int, dict[str, Any]] = {}
        self._last_user: dict[int, int] = {}

    def add(self, part: Slice) -> None:
        """The rows of a slice."""
        segment_R = part.segment_E[part.rows.event_R]
        for code in np.unique(segment_R).tolist():
            if not self._work.writes(code):
                continue
            chosen_R = np.flatnonzero(segment_R == code)
            self._count(part, code, chosen_R)
            if part.whole:
                self._write(code, self._tables(part, chosen_R))
            else:
                self._wait(code, self._tables(part, chosen_R))

    def finish(self) -> dict[str, dict[str, Any]]:
        """{folder: code, rows, supervised, users, labels, first and last time, size and sha256 of the file}."""
        for code in sorted(self._pieces):
            self._write(code, _refill(self._pieces[code], self._work.job.settings.row_group_rows))
        shutil.rmtree(self._waiting, ignore_errors=True)
        return {segment_folder(self._work.job, code): self._found[code] for code in sorted(self._found)}

    def _tables(self, part: Slice, chosen_R: Int64) -> Iterator[pa.Table]:
        size = self._work.job.settings.row_group_rows
        time_E = part.events.time_E
        final_E = {name: time_E + window <= self._work.as_of for name, window in self._work.windows.items()}
        for start in range(0, len(chosen_R), size):
            yield make_table(self._work.job, part.events, part.rows, chosen_R[start : start + size], final_E)

    def _count(self, part: Slice, code: int, chosen_R: Int64) -> None:
        own = next(iter(part.rows.lists.values()))
        context = 0 if own.context_R is None else int(own.context_R[chosen_R].sum())
        time_E = part.events.time_E[part.segment_E == code]
        first, last = int(time_E.min()), int(time_E.max())
        users = np.unique(part.events.user_start_E[part.rows.event_R[chosen_R]])
        hash_U = user_hash(self._work.job, part.events.table.take(pa.array(users)))
        known = int(self._last_user.get(code) == int(hash_U[0]))  # a user's slices of time follow each other
        self._last_user[code] = int(hash_U[-1])
        before = self._found.get(code, {"rows": 0, "supervised": 0, "users": 0, "first": first, "last": last})
        self._found[code] = {
            "code": code,
            "rows": before["rows"] + len(chosen_R),
            "supervised": before["supervised"] + int((own.end_R[chosen_R] - own.first_R[chosen_R]).sum()) - context,
            "users": before["users"] + len(users) - known,
            "first": min(first, before["first"]),
            "last": max(last, before["last"]),
        }

    def _wait(self, code: int, tables: Iterator[pa.Table]) -> None:
        os.makedirs(self._waiting, exist_ok=True)
        pieces = self._pieces.setdefault(code, [])
        path = f"{self._waiting}/{code}-{len(pieces):05d}.arrow"
        pieces.append(path)
        first = next(tables)
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, first.schema, options=LZ4) as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)

    def _write(self, code: int, tables: Iterator[pa.Table]) -> None:
        labels: dict[str, list[int]] = {
            n: [0, 0] for n, c in self._work.job.schema.columns.items() if c.role == "label"
        }
        path = Path(self._work.target) / segment_folder(self._work.job, code) / f"part-{self._partition:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        writer: pq.ParquetWriter | None = None
        try:
            for table in tables:
                writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
                writer.write_table(table, row_group_size=self._work.job.settings.row_group_rows)
                for name, counts in labels.items():
                    if name in table.column_names:
                        observed, positives = _count_labels(table[name])
                        counts[0] += observed
                        counts[1] += positives
        finally:
            if writer is not None:
                writer.close()
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._found[code] |= {"labels": labels, "bytes": path.stat().st_size, "sha256": digest}


class _Tails:
    """Files of saved tails, one a partition and day."""

    def __init__(self, work: Work, partition: int, stack: ExitStack) -> None:
        self._work, self._partition, self._stack = work, partition, stack
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}

    def add(self, day: int, part: Slice) -> None:
        """What rows after `day` need of the slice's users."""
        scope_E = part.segment_E <= day
        keep_E = needed_later(self._work.job, part.events, scope_E, (day + 1) * DAY_MICROS)
        if day not in self._writers:
            folder = Path(self._work.target) / STATE / segment_folder(self._work.job, day)
            folder.mkdir(parents=True, exist_ok=True)
            file = self._stack.enter_context(pa.OSFile(str(folder / f"part-{self._partition:05d}.arrow"), "wb"))
            stream = pa.ipc.new_stream(file, self._work.job.log_schema, options=LZ4)
            self._writers[day] = self._stack.enter_context(stream)
        self._writers[day].write_table(part.events.table.filter(pa.array(keep_E)), TAIL_BATCH)


def _refill(paths: Sequence[str], size: int) -> Iterator[pa.Table]:
    """Rows that wait in pieces, as tables of `size` rows; only the last has fewer."""
    pending: list[pa.Table] = []
    rows = 0
    for path in paths:
        with pa.OSFile(path, "rb") as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                pending.append(pa.Table.from_batches([batch]))
                rows += batch.num_rows
                if rows >= size:
                    table = pa.concat_tables(pending)
                    yield table.slice(0, size).combine_chunks()
                    pending, rows = [table.slice(size)], rows - size
        os.unlink(path)
    if rows:
        yield pa.concat_tables(pending).combine_chunks()


def _count_labels(column: pa.ChunkedArray) -> tuple[int, int]:
    values = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    ones = pc.sum(pc.equal(values.cast(pa.float64()), 1.0)).as_py() or 0
    return len(values) - values.null_count, ones
