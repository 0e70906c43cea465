"""A window's rows from Parquet: only the columns and row groups needed, one Arrow table a file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.batch import Int64
from pipelines.errors import DataError
from pipelines.footers import read_columns
from pipelines.schema import Schema
from pipelines.storage import open_file
from pipelines.windows import Stretch, Window


def read_window(window: Window, schema: Schema) -> Iterator[tuple[pa.Table, str, int, Int64]]:
    """(table, path, index of the file, row numbers in it) for each run of stretches of one file, in the window's order.

    Columns that a file lacks are absent from its table. Raises DataError when a file cannot be read.
    """
    wanted = set(read_columns(schema))
    for file, group in groupby(window.stretches, key=lambda stretch: stretch.file):
        stretches = list(group)
        path = stretches[0].path
        try:
            table = _read(path, stretches, wanted)
        except (OSError, pa.ArrowException) as error:
            why = str(error).splitlines()[0]
            line = f"'{path}' cannot be read: {why} → files stay as they were planned → restore it and resume"
            raise DataError(line) from error
        yield table, path, file, np.concatenate([np.arange(s.start + s.first, s.start + s.last) for s in stretches])


def _read(path: str, stretches: list[Stretch], wanted: set[str]) -> pa.Table:
    parts = []
    with open_file(path) as source:
        # The fan-out is over windows: threads of Arrow's own would only compete with it.
        reader = pq.ParquetFile(source, pre_buffer=True)
        columns = [name for name in reader.schema_arrow.names if name in wanted]
        for stretch in stretches:
            table = reader.read_row_group(stretch.row_group, columns=columns, use_threads=False)
            parts.append(table.slice(stretch.first, stretch.last - stretch.first))
    return pa.concat_tables(parts)
