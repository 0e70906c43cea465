"""What a segment's Parquet files hold: rows, and the hash of each row's ids. Read here with pyarrow alone, so that the
readers that are audited have no part in it."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.hashing import ids_of
from pipelines.schema import Column, Schema
from pipelines.segments import Segment
from pipelines.storage import open_file
from trainer.consumed_format import (
    Int64,
    UInt64,
    folder_of,
    id_hashes,
    list_sums,
    name_below,
    name_hash,
    place_hashes,
    row_hashes,
)

BATCH_ROWS = 16_384  # hashed at a time
THREADS = 16  # that read footers


@dataclass(frozen=True)
class FileFooter:
    """path, size in bytes, rows of each row group, Arrow schema. name: below the segment's folder."""

    path: str
    name: str
    size: int
    row_groups: tuple[int, ...]
    schema: pa.Schema

    @property
    def rows(self) -> int:
        return sum(self.row_groups)


def read_file_footers(segment: Segment) -> tuple[list[FileFooter], list[str]]:
    """(of each of a segment's files that can be read, in order; a line for each that cannot)."""
    folder = folder_of(segment.files)
    with ThreadPoolExecutor(THREADS, "footers") as pool:
        found = list(pool.map(partial(_read_footer, folder), segment.files))
    return [f for f in found if isinstance(f, FileFooter)], [f for f in found if isinstance(f, str)]


def fingerprint_of(footers: Sequence[FileFooter]) -> str:
    """The planner's formula, written down a second time: file names below their common folder, sizes, row groups' rows
    and number of columns."""
    folders = {posixpath.dirname(footer.path) for footer in footers}
    folder = posixpath.commonpath(folders) if folders else ""
    digest = hashlib.sha256()
    for footer in footers:
        name = footer.path.removeprefix(folder).lstrip("/")
        digest.update(repr((name, footer.size, footer.row_groups, len(footer.schema))).encode())
    return digest.hexdigest()[:16]


def _read_footer(folder: str, path: str) -> FileFooter | str:
    try:
        with open_file(path) as file:
            metadata, size = pq.read_metadata(file), file.size()
    except (OSError, pa.ArrowException) as error:
        why = str(error).splitlines()[0]
        return f"'{path}' cannot be read: {why} → audit reads every file that was trained → restore it"
    groups = tuple(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
    return FileFooter(path, name_below(folder, path), size, groups, metadata.schema.to_arrow_schema())


def hashes_of_file(footer: FileFooter, schema: Schema, factors: Mapping[str, np.uint64]) -> tuple[UInt64, UInt64]:
    """(place hashes, ids' hashes) of a file's rows, [rows] each. Raises OSError, pa.ArrowException, TypeError."""
    places_R = place_hashes(name_hash(footer.name), np.arange(footer.rows))
    sums = [np.zeros(0, np.uint64), *_id_sums(footer, schema, factors)]
    return places_R, row_hashes(np.concatenate(sums), places_R)


def _id_sums(footer: FileFooter, schema: Schema, factors: Mapping[str, np.uint64]) -> Iterator[UInt64]:
    """Σ over the columns, of some rows at a time, in file order."""
    held = set(footer.schema.names)
    needed = {name for name in factors if name in held}
    in_place_of = {n: _sibling(schema.columns[n], schema, held) for n in factors if n not in held}
    wanted = sorted(needed | {name for name in in_place_of.values() if name}) or footer.schema.names[:1]
    with open_file(footer.path) as source:
        file = pq.ParquetFile(source, pre_buffer=True)
        for batch in file.iter_batches(BATCH_ROWS, columns=wanted, use_threads=False):
            sums_R = np.zeros(batch.num_rows, np.uint64)
            for name, factor in factors.items():
                spec = schema.columns[name]
                if name in held:
                    sums_R += _column_sums(batch.column(name), spec, schema, factor)
                else:
                    sibling = in_place_of[name]
                    sums_R += _default_sums(spec, schema, factor, batch.column(sibling) if sibling else None, sums_R)
            yield sums_R


def _column_sums(array: pa.Array, spec: Column, schema: Schema, factor: np.uint64) -> UInt64:
    if not spec.group:
        return id_hashes(ids_of(array)) * factor
    lengths_R = _lengths(array)
    values = array.flatten() if len(array) and not pa.types.is_null(array.type) else pa.nulls(0, pa.int64())
    return list_sums(id_hashes(ids_of(values)) * factor, lengths_R, _kept(lengths_R, spec, schema))


def _default_sums(spec: Column, schema: Schema, factor: np.uint64, sibling: pa.Array | None, rows_R: UInt64) -> UInt64:
    """Of a column that the file lacks: its default, at every position that its group has there."""
    one = id_hashes(ids_of(pa.array([spec.default]))) * factor
    if not spec.group:
        return np.repeat(one, len(rows_R))
    lengths_R = np.zeros(len(rows_R), np.int64) if sibling is None else _lengths(sibling)
    return list_sums(np.repeat(one, int(lengths_R.sum())), lengths_R, _kept(lengths_R, spec, schema))


def _lengths(array: pa.Array) -> Int64:
    if pa.types.is_null(array.type):
        return np.zeros(len(array), np.int64)
    lengths: Int64 = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64()).to_numpy(zero_copy_only=False)
    return lengths


def _kept(lengths_R: Int64, spec: Column, schema: Schema) -> Int64:
    """A history keeps its newest events."""
    history = schema.histories.get(spec.group.removeprefix("history."))
    return lengths_R if history is None else np.minimum(lengths_R, history.max_length)


def _sibling(spec: Column, schema: Schema, held: set[str]) -> str | None:
    """Another column of the list group, which has its lengths."""
    same = (n for n, other in schema.columns.items() if other.group == spec.group and n in held)
    return next(same, None) if spec.group else None
