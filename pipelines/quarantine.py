"""Bad rows written down: one Parquet file for each window that has any, the same bytes whoever reads the window."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.bad_rows import Bad
from pipelines.batch import Int64
from pipelines.storage import join, resolve
from pipelines.windows import Window

SCHEMA = pa.schema(
    [
        ("segment", pa.string()),
        ("epoch", pa.int32()),
        ("window", pa.int64()),
        ("path", pa.string()),
        ("row", pa.int64()),
        ("column", pa.string()),
        ("value", pa.string()),
        ("reason", pa.string()),
        ("raw", pa.string()),
    ]
)


class Entries:
    """What is known about a window's bad rows: a line for each bad column of each. False where there are none."""

    def __init__(self) -> None:
        self._lines: list[dict[str, Any]] = []

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, path: str, row: Int64, table: pa.Table, bad: list[Bad]) -> None:
        """row: of the table's rows in their file."""
        raw: dict[int, str | None] = {}
        for each in bad:
            for index, value in zip(each.rows.tolist(), each.values, strict=True):
                if index not in raw:
                    raw[index] = _as_json(table, index)
                self._add(path, int(row[index]), each.column, value, each.rule, raw[index])

    def add_unreadable(self, path: str, row: Int64, why: str) -> None:
        """Rows of a row group that cannot be decoded."""
        for number in row.tolist():
            self._add(path, number, "", "", why, None)

    def table(self, window: Window) -> pa.Table:
        """In the order of reading."""
        place = {"segment": window.name, "epoch": window.epoch, "window": window.index}
        return pa.Table.from_pylist([place | line for line in self._lines], SCHEMA)

    def _add(self, path: str, row: int, column: str, value: str, reason: str, raw: str | None) -> None:
        line = {"path": path, "row": row, "column": column, "value": value, "reason": reason, "raw": raw}
        self._lines.append(line)


def write_quarantine(folder: str, window: Window, entries: Entries) -> None:
    """Replaces the window's file in one go."""
    split = "eval" if window.evaluation else "train"
    name = f"{split}-{quote(window.name, safe='=-_. ')}-epoch{window.epoch}-window{window.index:06}.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(entries.table(window), sink, compression="zstd")
    _replace(join(folder, name), sink.getvalue())


def _replace(path: str, content: pa.Buffer) -> None:
    """An object store shows an object when it is whole; a local file is renamed into its place."""
    file_system, inner = resolve(path)
    file_system.create_dir(os.path.dirname(inner), recursive=True)
    if not isinstance(file_system, fs.LocalFileSystem):
        with file_system.open_output_stream(inner) as stream:
            stream.write(content)
        return
    target = Path(inner)
    part = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(target)


def _as_json(table: pa.Table, index: int) -> str | None:
    """A row as it was read, or None where it cannot be shown."""
    try:
        [row] = table.slice(index, 1).to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):
        return None
    return json.dumps(row, ensure_ascii=False, default=str)
