"""What a segment's footers say, in a few arrays, and how they are read: one small request a file, many at a time.

A billion rows in 10⁵ files are some 10⁶ row groups: 8 MB as an array, gigabytes as Python objects.

Sizes: F files of a segment, in their order · G row groups of all of them, file after file.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.batch import Int32, Int64
from pipelines.retries import READ_RETRIES, retrying
from pipelines.segments import Segment
from pipelines.storage import IN_FLIGHT, IN_FLIGHT_LOCAL, is_local, request_pool, resolve

MOST_A_TASK = 16


@dataclass(frozen=True, eq=False)
class Footers:
    """Of one segment. counts_F: row groups of each file. rows_G: rows of each row group. schema_F: index of the file's
    schema in `schemas`, −1 where it has no footer, which `problems` then says, a line each."""

    counts_F: Int64
    rows_G: Int64
    schema_F: Int32
    schemas: Sequence[pa.Schema]
    problems: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return int(self.rows_G.sum())


@dataclass(frozen=True)
class _One:
    """One file's: rows of its row groups and index of its schema, or what is wrong with it."""

    rows_G: Int64
    schema: int
    problem: str = ""


class _Schemas:
    """Distinct schemas of this process, each kept once: 10⁵ files mostly have one."""

    def __init__(self) -> None:
        self.known: list[pa.Schema] = []
        self._index: dict[pa.Schema, int] = {}
        self._seen: dict[tuple[int, bytes | None], list[tuple[Any, int]]] = {}
        self._lock = threading.Lock()

    def of_metadata(self, metadata: Any) -> int:
        """Index of a file's schema. Compared as Parquet, and as the Arrow schema that Arrow's writers add: making an
        Arrow schema would cost as much as reading the footer."""
        key = (metadata.num_columns, (metadata.metadata or {}).get(b"ARROW:schema"))
        parquet = metadata.schema
        for other, index in tuple(self._seen.get(key, ())):
            if parquet.equals(other):
                return index
        index = self.of_arrow(parquet.to_arrow_schema())
        with self._lock:
            self._seen.setdefault(key, []).append((parquet, index))
        return index

    def of_arrow(self, schema: pa.Schema) -> int:
        """Index of a schema, metadata aside."""
        bare = schema.remove_metadata()
        with self._lock:
            index = self._index.setdefault(bare, len(self.known))
            if index == len(self.known):
                self.known.append(bare)
            return index


SCHEMAS = _Schemas()


def read_segments(
    segments: Sequence[Segment], retries: int = READ_RETRIES, stop: threading.Event | None = None
) -> Iterator[Footers]:
    """Of each segment, in order, read ahead over the borders of segments. Files that cannot be read are `problems`.

    Raises CancelledError soon after `stop` is set.
    """
    files = (file for segment in segments for file in zip(segment.files, segment.sizes, strict=True))
    ones = _read_ahead(files, sum(len(segment.files) for segment in segments), retries, stop)
    for segment in segments:
        yield _join(list(itertools.islice(ones, len(segment.files))))


def _join(ones: Sequence[_One]) -> Footers:
    return Footers(
        counts_F=np.array([len(one.rows_G) for one in ones], np.int64),
        rows_G=np.concatenate([np.zeros(0, np.int64), *(one.rows_G for one in ones)]),
        schema_F=np.array([one.schema for one in ones], np.int32),
        schemas=SCHEMAS.known,
        problems=tuple(one.problem for one in ones if one.problem),
    )


def _read_ahead(
    files: Iterable[tuple[str, int]], total: int, retries: int, stop: threading.Event | None
) -> Iterator[_One]:
    """In order. Tasks are of several files where there are many: a task costs a tenth of a footer."""
    files = iter(files)
    first = next(files, None)
    if first is None:
        return
    if total == 1:
        yield _read(first, retries)
        return
    local = is_local(first[0])
    threads = IN_FLIGHT_LOCAL if local else IN_FLIGHT
    size = max(1, min(MOST_A_TASK, total // (4 * threads)))
    files = itertools.chain([first], files)
    pending: deque[Future[list[_One]]] = deque()
    while task := list(itertools.islice(files, size)):
        if stop is not None and stop.is_set():
            raise CancelledError
        pending.append(request_pool(local).submit(partial(_read_some, task, retries)))
        if len(pending) > 2 * threads:
            yield from pending.popleft().result()
    while pending:
        yield from pending.popleft().result()


def _read_some(files: Sequence[tuple[str, int]], retries: int) -> list[_One]:
    return [_read(file, retries) for file in files]


def _read(file: tuple[str, int], retries: int) -> _One:
    path, size = file
    try:
        metadata = retrying(partial(_metadata, path, size), f"the footer of '{path}'", retries)
        counts = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        return _One(np.array(counts, np.int64), SCHEMAS.of_metadata(metadata))
    except FileNotFoundError:
        problem = f"'{path}' does not exist → every file of a segment is read → restore it, or leave its segment out"
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        why = "is empty (0 bytes)" if "0 bytes" in str(error) else "is truncated or no Parquet file"
        problem = f"'{path}' {why} → files are complete Parquet files → write it again, or remove it"
    except OSError as error:
        why = next(iter(str(error).splitlines()), "") or repr(error)
        problem = f"'{path}' cannot be read: {why} → footers are read before rows → see to the store, or the file"
    return _One(np.zeros(0, np.int64), -1, problem)


def _metadata(path: str, size: int) -> Any:
    """By Arrow's dataset layer, which believes the size that it is told: one request for the end of the file, and a
    second one where the footer is larger than 64 KiB. Opening the file would first ask for its size."""
    file_system, inner = resolve(path)
    return _format().make_fragment(inner, file_system, file_size=None if size < 0 else size).metadata


@lru_cache(maxsize=1)
def _format() -> Any:
    import pyarrow.dataset as ds  # noqa: PLC0415 - 60 ms, where footers are read

    return ds.ParquetFileFormat()
