"""A manifest: a file that lists the Parquet files of a log or of request rows, so that any table format can feed us.

Columns `path`, and where known `rows` and `segment`, in one of four forms, told by the name: `.json` (a list of
objects), `.jsonl` (an object a line), `.csv` (with a header), `.parquet` (these columns and no others; any other
Parquet file is data). Paths are URIs, absolute, or relative to the manifest. Its order is the order of the files.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import DataError
from pipelines.secrets import RULE, secret_in
from pipelines.storage import COLUMNAR_SUFFIXES, is_file, open_file

COLUMNS = ("path", "rows", "segment")
MOST_LINES = 50


@dataclass(frozen=True)
class Entry:
    """A file. rows: what its footer must say; None = not given. segment: None = not given."""

    path: str
    rows: int | None = None
    segment: str | None = None


def read_manifest(path: str) -> list[Entry] | None:
    """The files in the manifest's order; None where the path is not an existing manifest.

    Raises DataError, a line for every entry that is wrong (the first 50), and OSError as the store gives it.
    """
    suffix = posixpath.splitext(path.partition("?")[0] if "://" in path else path)[1]
    if suffix not in (*_READERS, *COLUMNAR_SUFFIXES) or not is_file(path):
        return None
    with open_file(path) as file:
        if suffix in COLUMNAR_SUFFIXES:
            raw = _read_parquet(file)
            if raw is None:
                return None
        else:
            try:
                raw = _READERS[suffix](file.read().decode("utf-8-sig"))
            except (ValueError, csv.Error, RecursionError) as error:  # a JSON or UTF-8 error is a ValueError
                rule = "a list of {path, rows, segment}"
                raise DataError(
                    f"manifest '{path}' cannot be read: {error} → it is {rule}, as its name says → correct it"
                ) from error
    return _entries(path, raw)


def check_rows(counted: Iterable[tuple[str, int | None, int]]) -> list[str]:
    """A line for each (path, rows by the manifest, rows by the footer) that disagree."""
    return _at_most(
        [
            f"'{path}' has {found:,} rows, {expected:,} by its manifest → the manifest tells the files as they are"
            " → write it anew, or restore the file"
            for path, expected, found in counted
            if expected is not None and expected != found
        ]
    )


def by_segment(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """{segment: its files}, in name order; where no segment is given, all are "all"."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault("all" if entry.segment is None else entry.segment, []).append(entry)
    return dict(sorted(found.items()))


def _read_json(text: str) -> Any:
    return json.loads(text)


def _read_jsonl(text: str) -> Any:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _read_csv(text: str) -> Any:
    rows: list[dict[Any, Any]] = []
    for row in csv.DictReader(io.StringIO(text), strict=True):
        entry: dict[Any, Any] = {key: value or None for key, value in row.items()}
        count = entry.get("rows")
        if isinstance(count, str) and count.strip().isdecimal():
            entry["rows"] = int(count)
        rows.append(entry)
    return rows


def _read_parquet(file: pa.NativeFile) -> Any:
    """None where these are not the columns of a manifest, or it is no Parquet: then it is data, and read as such."""
    try:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        if "path" not in names or not set(names) <= set(COLUMNS):
            return None
        return parquet.read(use_threads=False).to_pylist()
    except pa.ArrowInvalid:
        return None


_READERS: dict[str, Callable[[str], Any]] = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv}


def _entries(manifest: str, raw: Any) -> list[Entry]:
    if not isinstance(raw, list) or not raw:
        raise DataError(f"manifest '{manifest}' lists no files → it is a list of {{path, rows, segment}} → fill it")
    problems: list[str] = []
    entries: dict[str, Entry] = {}
    for number, item in enumerate(raw, 1):
        wrong = _wrong(item)
        if wrong:
            problems.append(f"manifest '{manifest}' entry {number}: {wrong} → correct it")
            continue
        path = _locate(manifest, item["path"])
        segment = None if item.get("segment") is None else str(item["segment"])
        if path in entries:
            problems.append(f"manifest '{manifest}' entry {number}: '{path}' is listed twice → once → drop one")
        entries[path] = Entry(path, item.get("rows"), segment)
    without = [entry.path for entry in entries.values() if entry.segment is None]
    if without and len(without) < len(entries):
        problems.append(
            f"manifest '{manifest}': {len(without)} of {len(entries)} files have no segment, first '{without[0]}'"
            " → all have one or none has → complete it"
        )
    if problems:
        raise DataError(_at_most(problems))
    return list(entries.values())


def _wrong(item: Any) -> str:
    """What is wrong with an entry, and the rule; "" = nothing."""
    if not isinstance(item, dict):
        return f"{item!r} → an entry is {{path, rows, segment}}"
    path, rows, segment = (item.get(name) for name in COLUMNS)
    unknown = [str(name) for name in item if name not in COLUMNS]
    if unknown:
        return f"{unknown} → an entry has {', '.join(COLUMNS)} and no more"
    if not isinstance(path, str) or not path or secret_in(path):
        return _wrong_path(path)
    if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool) or rows < 0):
        return f"rows {rows!r} → a count, or null"
    named = isinstance(segment, str | int | date) and not isinstance(segment, bool)
    if segment is not None and (not named or not str(segment) or "/" in str(segment)):
        return f"segment {segment!r} → a name without '/', or null"
    return ""


def _wrong_path(path: Any) -> str:
    secret = secret_in(path) if isinstance(path, str) else ""
    return f"its path holds {secret} → {RULE}" if secret else f"path {path!r} → a path or URI of a Parquet file"


def _locate(manifest: str, path: str) -> str:
    if "://" in path:
        return path
    if "://" not in manifest:
        return posixpath.normpath(posixpath.join(posixpath.dirname(manifest), path))
    base, question, options = manifest.partition("?")
    scheme, _, below = base.partition("://")
    host, _, inner = below.partition("/")
    inside = posixpath.normpath(posixpath.join("/", posixpath.dirname(inner), path))
    return f"{scheme}://{host}{inside}{question}{options}"


def _at_most(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_LINES
    return lines if more <= 0 else [*lines[:MOST_LINES], f"… and {more:,} more like these"]
