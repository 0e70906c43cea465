"""A window's rows from files to flat arrays: read → decode → check. Bad rows are an error, or blank and written
down."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines.arrow_arrays import Bool
from pipelines.bad_rows import Bad
from pipelines.batch import Int64
from pipelines.clocks import unordered
from pipelines.decode import Rows, complete, concatenate, decode_table
from pipelines.downsampling import bad_rates
from pipelines.errors import DataError
from pipelines.footers import read_columns
from pipelines.quarantine import Entries, write_quarantine
from pipelines.read import read_window
from pipelines.reading import Reading
from pipelines.windows import Stretch, Window


def load_rows(window: Window, reading: Reading) -> Rows:
    """The window's rows in reading order. Raises DataError: a file cannot be read; without a quarantine folder also
    what is bad, of all columns at once.

    With one, a bad row keeps its place and its (file, row) and is blank: null, or an empty list, in every column. So no
    other row changes. The window's bad rows are one file in that folder, the same whoever reads the window.
    """
    parts: list[Rows] = []
    problems: list[str] = []
    entries = Entries()
    spoilt: dict[int, str] = {}

    def unreadable(stretch: Stretch, why: str) -> pa.Table:
        spoilt[stretch.start + stretch.first] = why
        return _blank_table(reading, stretch.last - stretch.first)

    replace = unreadable if reading.quarantine else None
    for table, path, file, row in read_window(window, reading.schema, reading.data.read_retries, replace):
        why = spoilt.get(int(row[0]), "") if spoilt else ""
        part, bad = _examine(table, reading, path, file, row, None if not why else np.ones(len(row), bool))
        if why:
            part.quarantined = np.ones(len(row), bool)
            entries.add_unreadable(path, row, why)
        elif bad and reading.quarantine:
            part = _set_aside(table, reading, path, file, row, bad, entries)
        else:
            problems += [each.line for each in bad]
        spoilt.clear()
        parts.append(part)
    if problems:
        raise DataError(list(dict.fromkeys(problems)))
    if entries:
        write_quarantine(reading.quarantine, window, entries)
    for part in parts:
        complete(part, reading.schema, window.evaluation)
    return concatenate(parts)


def _examine(
    table: pa.Table, reading: Reading, path: str, file: int, row: Int64, blank: Bool | None = None
) -> tuple[Rows, list[Bad]]:
    """The rows of one file's table, and all that is bad about them. blank: rows that are known to be, and so are not
    bad any more."""
    part, bad = decode_table(table, reading.schema, path, file, row, blank)
    bad += unordered(part, reading.schema, path)
    bad += bad_rates(part, reading.schema, reading.data.downsampling, path)
    return part, bad


def _set_aside(
    table: pa.Table, reading: Reading, path: str, file: int, row: Int64, bad: list[Bad], entries: Entries
) -> Rows:
    """The rows with the bad ones blank. What one column's fault has hidden in others comes up in the next turn."""
    blank = np.zeros(len(row), bool)
    while bad:
        entries.add(path, row, table, bad)
        for each in bad:
            blank[each.rows] = True
        part, bad = _examine(_blanked(table, blank, reading), reading, path, file, row, blank)
    part.quarantined = blank
    return part


def _blanked(table: pa.Table, blank: Bool, reading: Reading) -> pa.Table:
    if blank.all():  # also where a column is of another type, or not there
        return _blank_table(reading, len(blank))
    return table.take(pa.array(np.arange(len(blank)), mask=blank))


def _blank_table(reading: Reading, count: int) -> pa.Table:
    return pa.table({name: pa.nulls(count) for name in read_columns(reading.schema)})
