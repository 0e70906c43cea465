"""What a segment looks like: counted from its footers, and from rows of row groups spread over its files.

Memory does not grow with the segment: rows are read in batches and summed up at once.
"""

from __future__ import annotations

import hashlib
import math
import posixpath
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import DataError
from pipelines.footers import Footer, read_columns, read_footers
from pipelines.hashing import derive_seed, mix
from pipelines.profile_column import ColumnSketch
from pipelines.profile_format import ColumnProfile, SegmentProfile
from pipelines.profile_task import TaskSketch
from pipelines.schema import Schema
from pipelines.segments import Segment
from pipelines.storage import open_file

MIN_GROUPS = 32  # a fault in some of many files is to be met
BATCH_ROWS = 1024
READERS, AHEAD = 4, 8


@dataclass(frozen=True)
class Piece:
    """The first `rows` rows of a row group."""

    path: str
    row_group: int
    rows: int


def profile_segment(
    segment: Segment, schema: Schema, sample_rows: int = 100_000, footers: Sequence[Footer] | None = None
) -> SegmentProfile:
    """Reads `sample_rows` rows (0 = all) of every column that batches are made of.

    Raises DataError: a file without a footer, or that cannot be read, or whose column is not of its kind.
    """
    footers = read_footers(segment.files) if footers is None else footers
    columns = {name: ColumnSketch(spec, schema.time_unit) for name, spec in read_columns(schema).items()}
    tasks = {name: TaskSketch(task) for name, task in schema.tasks.items() if task.label}
    rows_read = 0
    for batch, path in _batches(choose_pieces(footers, segment.name, sample_rows), list(columns)):
        rows_read += len(batch)
        for name in batch.schema.names:
            try:
                columns[name].add(batch.column(name))
            except (TypeError, pa.ArrowException) as error:
                why = str(error).splitlines()[0]
                raise DataError(
                    f"column '{name}' in '{path}': {why} → its kind is {schema.columns[name].kind}"
                    " → fix the log, or the column's kind"
                ) from error
        for task in tasks.values():
            task.add(batch)
    per_file = sorted(footer.rows for footer in footers) or [0]
    times = schema.column_with_role("time")
    span = columns[times].numbers.span if times in columns else None
    return SegmentProfile(
        segment=segment.name,
        fingerprint=files_digest(footers),
        columns_digest=columns_digest(schema),
        sample_rows=sample_rows,
        files=len(footers),
        bytes=sum(footer.size for footer in footers),
        rows=sum(per_file),
        rows_per_file=(per_file[0], per_file[len(per_file) // 2], per_file[-1]),
        rows_read=rows_read,
        users_read=min(rows_read, columns[schema.user].lowest.distinct()) if schema.user in columns else rows_read,
        times=None if span is None else (int(span[0]), int(span[1])),
        columns={name: _finished(name, sketch, footers) for name, sketch in columns.items()},
        tasks={name: task.profile() for name, task in tasks.items()},
    )


def files_digest(footers: Sequence[Footer]) -> str:
    """Of a segment's files: their names below their common folder, sizes, row groups' rows, and columns with types."""
    folder = posixpath.commonpath([posixpath.dirname(footer.path) for footer in footers]) if footers else ""
    digest = hashlib.sha256()
    for footer in footers:
        name = footer.path.removeprefix(folder).lstrip("/")
        types = [(field.name, str(field.type)) for field in footer.schema]
        digest.update(repr((name, footer.size, footer.row_groups, types)).encode())
    return digest.hexdigest()[:16]


def columns_digest(schema: Schema) -> str:
    """Of what a profile depends on in a schema."""
    parts = [(name, spec.role, spec.kind, spec.group) for name, spec in read_columns(schema).items()]
    tasks = [(name, task.label, task.weight, task.space) for name, task in schema.tasks.items()]
    return hashlib.sha256(repr((parts, tasks, schema.time_unit)).encode()).hexdigest()[:16]


def choose_pieces(footers: Sequence[Footer], name: str, sample_rows: int) -> list[Piece]:
    """Row groups spread over the files, in their order: the row groups are cut into stretches of equal count, and a
    seeded one of each is read from its first row. 0 = all rows."""
    groups = [
        Piece(footer.path, group, rows) for footer in footers for group, rows in enumerate(footer.row_groups) if rows
    ]
    total = sum(piece.rows for piece in groups)
    if sample_rows == 0 or total <= sample_rows:
        return groups
    wanted = min(len(groups), max(MIN_GROUPS, math.ceil(sample_rows * len(groups) / total)))
    bounds = np.linspace(0, len(groups), wanted + 1).astype(np.int64)
    draws = mix(np.arange(wanted), derive_seed(0, name, "profile")) >> np.uint64(11)
    places = bounds[:-1] + (draws.astype(np.float64) / 2.0**53 * np.diff(bounds)).astype(np.int64)
    chosen, left, pieces = [groups[place] for place in places], sample_rows, []
    for index, piece in enumerate(chosen):  # what short row groups leave over goes to the later ones
        rows = min(piece.rows, math.ceil(left / (len(chosen) - index)))
        left -= rows
        pieces.append(Piece(piece.path, piece.row_group, rows))
    return pieces


def _finished(name: str, sketch: ColumnSketch, footers: Sequence[Footer]) -> ColumnProfile:
    types: Counter[str] = Counter()
    files = 0
    for footer in footers:
        index = footer.schema.get_field_index(name)
        if index >= 0:
            types[str(footer.schema.field(index).type)] += footer.rows
            files += 1
    rows = sum(footer.rows for footer in footers)
    return sketch.profile(dict(sorted(types.items())), sum(types.values()) / max(rows, 1), files / max(len(footers), 1))


def _batches(pieces: Iterable[Piece], columns: list[str]) -> Iterator[tuple[pa.RecordBatch, str]]:
    """In order; a few pieces are read ahead, each batch by batch."""
    with ThreadPoolExecutor(READERS, "profile") as pool:
        for piece, batches in _ahead(pool, lambda piece: _read(piece, columns), pieces):
            for batch in batches:
                yield batch, piece.path


def _ahead(
    pool: ThreadPoolExecutor, read: Callable[[Piece], Iterator[pa.RecordBatch]], pieces: Iterable[Piece]
) -> Iterator[tuple[Piece, Iterator[pa.RecordBatch]]]:
    """The first batch of the next pieces is read while earlier ones are looked at."""

    def begin(piece: Piece) -> Iterator[pa.RecordBatch]:
        batches = read(piece)
        first = next(batches, None)
        return iter(()) if first is None else _chain(first, batches)

    waiting: deque[tuple[Piece, Future[Iterator[pa.RecordBatch]]]] = deque()
    for piece in pieces:
        waiting.append((piece, pool.submit(begin, piece)))
        if len(waiting) > AHEAD:
            piece_due, due = waiting.popleft()
            yield piece_due, due.result()
    while waiting:
        piece_due, due = waiting.popleft()
        yield piece_due, due.result()


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def _read(piece: Piece, columns: list[str]) -> Iterator[pa.RecordBatch]:
    left = piece.rows
    try:
        with open_file(piece.path) as source:
            parquet = pq.ParquetFile(source, pre_buffer=False)
            there = set(parquet.schema_arrow.names)
            wanted = [name for name in columns if name in there]
            size = min(BATCH_ROWS, left)
            for batch in parquet.iter_batches(size, row_groups=[piece.row_group], columns=wanted, use_threads=False):
                yield batch.slice(0, left)
                left -= len(batch)
                if left <= 0:
                    return
    except (OSError, pa.ArrowException) as error:
        why = str(error).splitlines()[0]
        raise DataError(
            f"'{piece.path}' row group {piece.row_group} cannot be read: {why} → files are complete Parquet files"
            " → write it again, or remove it"
        ) from error
