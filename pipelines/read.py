"""A window's rows from Parquet: only the columns and row groups needed, one Arrow table a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.batch import Int64
from pipelines.errors import DataError
from pipelines.footers import read_columns
from pipelines.retries import READ_RETRIES, is_transient, retrying
from pipelines.schema import Schema
from pipelines.storage import open_file
from pipelines.windows import Stretch, Window

Unreadable = Callable[[Stretch, str], pa.Table]


def read_window(
    window: Window, schema: Schema, retries: int = READ_RETRIES, unreadable: Unreadable | None = None
) -> Iterator[tuple[pa.Table, str, int, Int64]]:
    """(table, path, index of the file, row numbers in it) for each run of stretches of one file, in the window's order.

    Columns that a file lacks are absent from its table. retries: after transient errors of the store. unreadable: makes
    the table of a stretch that is there and cannot be decoded, called with the reason just before it is yielded; the
    file then comes stretch by stretch. Raises DataError when a file cannot be read, naming file, row group and column
    where it can be told.
    """
    wanted = set(read_columns(schema))
    for file, group in groupby(window.stretches, key=lambda stretch: stretch.file):
        stretches = list(group)
        path = stretches[0].path
        try:
            table = retrying(partial(_read, path, stretches, wanted), f"'{path}'", retries)
        except (OSError, pa.ArrowException) as error:
            if unreadable is None or _may_come_back(error):
                raise DataError(_blame(path, stretches, wanted, error)) from error
        else:
            yield table, path, file, np.concatenate([_row_numbers(stretch) for stretch in stretches])
            continue
        for stretch in stretches:
            yield _read_or_replace(path, stretch, wanted, retries, unreadable), path, file, _row_numbers(stretch)


def _row_numbers(stretch: Stretch) -> Int64:
    return np.arange(stretch.start + stretch.first, stretch.start + stretch.last)


def _may_come_back(error: Exception) -> bool:
    """Whether it is the store's doing, or a file's that is not there: its rows are not bad."""
    return is_transient(error) or isinstance(error, FileNotFoundError | PermissionError)


def _read_or_replace(path: str, stretch: Stretch, wanted: set[str], retries: int, unreadable: Unreadable) -> pa.Table:
    try:
        return retrying(partial(_read, path, [stretch], wanted), f"'{path}'", retries)
    except (OSError, pa.ArrowException) as error:
        lines = _blame(path, [stretch], wanted, error)
        if _may_come_back(error):
            raise DataError(lines) from error
        return unreadable(stretch, "; ".join(line.partition(" → ")[0] for line in lines))


def _read(path: str, stretches: list[Stretch], wanted: set[str]) -> pa.Table:
    parts = []
    with open_file(path) as source:
        # The fan-out is over windows: threads of Arrow's own would only compete with it.
        reader = pq.ParquetFile(source, pre_buffer=True)
        columns = [name for name in reader.schema_arrow.names if name in wanted]
        for stretch in stretches:
            _check_planned(path, reader, stretch)
            table = reader.read_row_group(stretch.row_group, columns=columns, use_threads=False)
            parts.append(table.slice(stretch.first, stretch.last - stretch.first))
    return pa.concat_tables(parts)


def _check_planned(path: str, reader: pq.ParquetFile, stretch: Stretch) -> None:
    """Raises DataError where the file has fewer rows than the plan says: it was replaced while its segment trained."""
    groups = reader.metadata.num_row_groups
    rows = reader.metadata.row_group(stretch.row_group).num_rows if stretch.row_group < groups else 0
    if rows < stretch.last:
        raise DataError(
            f"'{path}' has {rows} rows in row group {stretch.row_group}, and had {stretch.last} or more when it was"
            " planned → a segment's files may not change under a run → restore it and resume"
        )


def _blame(path: str, stretches: list[Stretch], wanted: set[str], error: Exception) -> list[str]:
    """What is wrong with the file: each row group and column that cannot be read alone, a line each; or the error as it
    came. Slow: columns are read one by one."""
    if is_transient(error):
        return [
            f"'{path}' cannot be read: {_first_line(error)} → the store answers, at the latest after"
            " data.read_retries tries → see to it and resume"
        ]
    lines = []
    try:
        with open_file(path) as source:
            reader = pq.ParquetFile(source)
            for group in sorted({stretch.row_group for stretch in stretches}):
                for name in (name for name in reader.schema_arrow.names if name in wanted):
                    try:
                        reader.read_row_group(group, columns=[name], use_threads=False)
                    except (OSError, pa.ArrowException) as bad:
                        where = f"row group {group}, column '{name}'"
                        lines.append(
                            f"'{path}', {where} cannot be read: {_first_line(bad)}"
                            " → files stay as they were planned → restore it and resume"
                        )
    except (OSError, pa.ArrowException) as bad:
        error = bad
    return lines or [
        f"'{path}' cannot be read: {_first_line(error)} → files stay as they were planned → restore it and resume"
    ]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or repr(error)
