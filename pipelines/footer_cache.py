"""Footers of a run's segments in one Arrow file, so that a run reads each once: the process that checks the files
writes it, all others (ranks, the feed, a resumed run) map it.

A segment is found by a digest of its name, its files and their sizes and times of change, as they were listed: what is
not found has changed, or is new, and is read.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.footer_table import Footers
from pipelines.segments import Segment

log = logging.getLogger(__name__)

SEGMENTS_A_BATCH = 4096
COLUMNS = pa.schema(
    {
        "digest": pa.binary(16),
        "rows": pa.int64(),
        "row_groups": pa.large_list(pa.int64()),
        "rows_of_groups": pa.large_list(pa.int64()),
        "schemas": pa.large_list(pa.int32()),
    }
)


class FooterCache:
    """In `folder`, made when something is written to it. None: there is no cache, nothing is found.

    Picklable: what travels is the folder.
    """

    def __init__(self, folder: Path | str | None) -> None:
        self._path = None if folder is None else Path(folder) / "footers.arrow"
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": None if self._path is None else self._path.parent}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def find(self, segment: Segment) -> Footers | None:
        """Of the segment as it was listed. Arrays are views of the mapped file."""
        place = self._place(segment)
        if place is None:
            return None
        batch, row = self._batches[place[0]], place[1]
        counts_F, rows_G, schema_F = (
            batch.column(name)[row].values.to_numpy() for name in ("row_groups", "rows_of_groups", "schemas")
        )
        return Footers(counts_F, rows_G, schema_F, self._schemas)

    def rows(self, segment: Segment) -> int | None:
        """Of the segment as it was listed."""
        place = self._place(segment)
        return None if place is None else int(self._rows[place[0]][place[1]])

    def write(self, segments: Sequence[Segment], footers: Sequence[Footers]) -> None:
        """Replaces the file in one go: what it held of other segments is gone."""
        if self._path is None:
            return
        index = _Numbers()
        batches = [
            _batch(segments[begin : begin + SEGMENTS_A_BATCH], footers[begin : begin + SEGMENTS_A_BATCH], index)
            for begin in range(0, len(segments), SEGMENTS_A_BATCH)
        ]
        described = {str(number): schema.serialize().to_pybytes() for schema, number in index.numbers.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(f".{self._path.name}.{os.getpid()}.part")
        with pa.OSFile(str(part), "wb") as out, pa.ipc.new_file(out, COLUMNS.with_metadata(described)) as writer:
            for batch in batches:
                writer.write_batch(batch.replace_schema_metadata(described))
        part.replace(self._path)
        self._forget()

    def _forget(self) -> None:
        self._index: dict[bytes, tuple[int, int]] | None = None
        self._batches: list[pa.RecordBatch] = []
        self._rows: list[Any] = []
        self._schemas: list[pa.Schema] = []

    def _place(self, segment: Segment) -> tuple[int, int] | None:
        if self._index is None:
            self._index = self._open()
        return self._index.get(digest(segment)) if self._index else None

    def _open(self) -> dict[bytes, tuple[int, int]]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(self._path)))
            if not reader.schema.equals(COLUMNS):
                raise pa.ArrowInvalid("its columns are not the ones that this version writes")
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
            described = {int(number): value for number, value in (reader.schema.metadata or {}).items()}
            self._schemas = [pa.ipc.read_schema(pa.py_buffer(described[n])) for n in range(len(described))]
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            log.warning("%s is not used, footers are read again: %s", self._path, error)
            self._forget()
            return {}
        self._rows = [batch.column("rows").to_numpy() for batch in self._batches]
        return {
            key: (number, row)
            for number, batch in enumerate(self._batches)
            for row, key in enumerate(batch.column("digest").to_pylist())
        }


def digest(segment: Segment) -> bytes:
    """Of a segment as it was listed: its name, its files, their sizes and times of change."""
    found = hashlib.blake2b(repr((segment.name, len(segment.files))).encode(), digest_size=16)
    found.update("\n".join(segment.files).encode())
    found.update(np.array([segment.sizes, segment.changed], np.int64).tobytes())
    return found.digest()


def _batch(segments: Sequence[Segment], footers: Sequence[Footers], index: _Numbers) -> pa.RecordBatch:
    schemas = [_renumbered(found, index) for found in footers]
    columns = [
        pa.array([digest(segment) for segment in segments], pa.binary(16)),
        pa.array([found.rows for found in footers], pa.int64()),
        _lists([found.counts_F for found in footers], pa.int64()),
        _lists([found.rows_G for found in footers], pa.int64()),
        _lists(schemas, pa.int32()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=COLUMNS)


class _Numbers:
    """How the file numbers schemas. Known objects are known by identity: hashing a schema is slow."""

    def __init__(self) -> None:
        self.numbers: dict[pa.Schema, int] = {}
        self._by_id: dict[int, int] = {}

    def of(self, schema: pa.Schema) -> int:
        number = self._by_id.get(id(schema))
        if number is None:
            number = self._by_id[id(schema)] = self.numbers.setdefault(schema, len(self.numbers))
        return number


def _renumbered(footers: Footers, index: _Numbers) -> np.ndarray[Any, Any]:
    """Indices of schemas as the file numbers them."""
    if len(footers.schema_F) == 1:
        return np.array([index.of(footers.schemas[footers.schema_F[0]])], np.int32)
    used, inverse = np.unique(footers.schema_F, return_inverse=True)
    return np.array([index.of(footers.schemas[number]) for number in used], np.int32)[inverse]


def _lists(arrays: Sequence[Any], kind: pa.DataType) -> pa.Array:
    offsets = np.cumsum([0, *(len(array) for array in arrays)])
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(np.concatenate(arrays), kind))
