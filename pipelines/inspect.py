"""`data inspect`: what somebody's request rows hold, by the footers and a sample of row groups; drafts a schema."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import DataError
from pipelines.footers import Footer, read_footers
from pipelines.segments import list_segments
from pipelines.storage import open_file

SAMPLE_GROUPS = 8
SAMPLE_ROWS = 5_000  # of each
NAME_WIDTH = 28


@dataclass(frozen=True)
class ColumnFinding:
    """One column in the sample. Values are those of the lists where it holds lists.

    nulls: share of rows, or of list elements. distinct: in the sample, so a lower bound. zero_one: all values are 0 or
    1. rate: their mean. mean_length, max_length: of lists, else 0. low, high: of numbers and times, as text.
    """

    name: str
    type: str
    nulls: float
    distinct: int
    zero_one: bool
    rate: float
    mean_length: float
    max_length: int
    low: str
    high: str

    def line(self) -> str:
        """For a person."""
        parts = [f"{self.name:<{NAME_WIDTH}} {self.type:<24}"]
        if self.max_length:
            parts.append(f"length {self.mean_length:.1f} mean, {self.max_length} max")
        parts.append(f"≥ {self.distinct:,} values")
        if self.low and not self.zero_one:
            parts.append(f"{self.low} … {self.high}")
        if self.nulls:
            parts.append(f"{self.nulls:.1%} null")
        if self.zero_one:
            parts.append(f"0/1, rate {self.rate:.4f}")
        return " · ".join(parts)


@dataclass(frozen=True)
class Findings:
    """What `inspect` found. groups: list columns of equal lengths in every row of the sample. sample: those rows,
    of these columns. others: {column: type} of those that no schema reads: structs, maps."""

    path: str
    files: int
    rows: int
    segments: tuple[str, ...]
    columns: tuple[ColumnFinding, ...]
    groups: tuple[tuple[str, ...], ...]
    sample: pa.Table
    others: tuple[tuple[str, str], ...] = ()

    def column(self, name: str) -> ColumnFinding:
        """The finding of one column."""
        return next(column for column in self.columns if column.name == name)

    def lines(self) -> list[str]:
        """For a person."""
        first, last = self.segments[0], self.segments[-1]
        span = f"{len(self.segments)} segments {first}..{last}" if len(self.segments) > 1 else "one segment"
        head = f"{self.path}: {self.rows:,} rows in {self.files} files, {span}"
        sampled = f"values, nulls, lengths and rates are of a sample of {len(self.sample):,} rows"
        groups = [f"lists of equal length: {', '.join(group)}" for group in self.groups]
        others = [
            f"{name:<{NAME_WIDTH}} {kind}: no schema reads this; make columns of it" for name, kind in self.others
        ]
        return [head, sampled, *(column.line() for column in self.columns), *groups, *others]

    def schema_toml(self) -> str:
        """A `[schema]` for these rows, as TOML; what was guessed is marked `# guess: …`."""
        from pipelines.inspect_draft import draft_toml  # noqa: PLC0415 - it reads Findings

        return draft_toml(self)

    def write_schema(self, file: Path) -> None:
        """Writes `schema_toml` to a new file. Raises DataError where it exists."""
        try:
            with file.open("x", encoding="utf-8") as out:
                out.write(self.schema_toml())
        except FileExistsError as error:
            raise DataError(f"'{file}' exists → a draft overwrites nothing → name another file") from error


def inspect(path: str) -> Findings:
    """Looks at a file, folder or glob of Parquet. Raises DataError where there is none, or no row in it."""
    try:
        segments = list_segments(str(path))
    except DataError as error:
        raise DataError([problem.replace("data.rows = ", "path ") for problem in error.problems]) from error
    footers = read_footers([file for segment in segments for file in segment.files])
    rows = sum(footer.rows for footer in footers)
    if rows == 0:
        raise DataError(f"'{path}' has no rows → a schema is drafted from rows → name files that have some")
    sample, others = _readable(_sample(footers), path)
    columns = tuple(_look(name, sample[name]) for name in sample.column_names)
    names = tuple(segment.name for segment in segments)
    return Findings(str(path), len(footers), rows, names, columns, _groups(sample), sample, others)


def _readable(sample: pa.Table, path: str) -> tuple[pa.Table, tuple[tuple[str, str], ...]]:
    """The columns that a schema can read, and {name: type} of the others. Raises DataError where a name is there twice,
    or none is left."""
    names = sample.column_names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"'{path}' has {len(twice)} names of columns twice, first '{twice[0]}' → a name is of one column → "
            "rename one"
        )
    others = tuple((field.name, str(field.type)) for field in sample.schema if _is_opaque(field.type))
    if len(others) == len(names):
        raise DataError(f"'{path}' has no column of values or lists → these are what a schema reads → make some")
    return sample.drop_columns([name for name, _ in others]), others


def _is_opaque(kind: pa.DataType) -> bool:
    while is_list(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType))


def _sample(footers: list[Footer]) -> pa.Table:
    """The first rows of row groups spread evenly over all files."""
    places = [(f.path, group) for f in footers for group, rows in enumerate(f.row_groups) if rows]
    chosen = sorted({int(place) for place in np.linspace(0, len(places) - 1, SAMPLE_GROUPS)})
    tables = []
    for path, group in (places[place] for place in chosen):
        try:
            with open_file(path) as file:
                parquet = pq.ParquetFile(file)
                tables.append(next(parquet.iter_batches(SAMPLE_ROWS, row_groups=[group])))
        except (pa.ArrowInvalid, OSError) as error:
            why = str(error).splitlines()[0]
            raise DataError(f"'{path}' cannot be read: {why} → files are complete Parquet → restore it") from error
    parts = [pa.Table.from_batches([batch]) for batch in tables]
    try:
        return pa.concat_tables(parts, promote_options="permissive").combine_chunks()
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        why = str(error).splitlines()[0]
        raise DataError(f"files differ in types: {why} → a column has one type in all files → convert them") from error


def is_list(kind: pa.DataType) -> bool:
    """Any of Arrow's list types."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def elements(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values of all lists in a row, however deep; other columns as they are."""
    while is_list(column.type):
        column = pc.list_flatten(column)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _look(name: str, column: pa.ChunkedArray) -> ColumnFinding:
    lengths = pc.list_value_length(column) if is_list(column.type) else pa.chunked_array([pa.array([], pa.int32())])
    values = elements(column)
    numeric = pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)
    ordered = numeric or pa.types.is_temporal(values.type)
    distinct = pc.unique(values.drop_null())
    whole = distinct.cast(pa.float64(), safe=False) if numeric else None
    zero_one = whole is not None and len(whole) > 0 and pc.all(pc.is_in(whole, pa.array([0.0, 1.0]))).as_py()
    span = pc.min_max(values) if ordered and len(distinct) else {"min": None, "max": None}
    return ColumnFinding(
        name=name,
        type=str(column.type),
        nulls=values.null_count / max(len(values), 1),
        distinct=len(distinct),
        zero_one=bool(zero_one),
        rate=pc.mean(values.cast(pa.float64())).as_py() if zero_one else 0.0,
        mean_length=pc.mean(lengths).as_py() or 0.0,
        max_length=pc.max(lengths).as_py() or 0,
        low=_text(span["min"]),
        high=_text(span["max"]),
    )


def _groups(sample: pa.Table) -> tuple[tuple[str, ...], ...]:
    """List columns by their lengths, row for row; a null list counts as its own length."""
    groups: dict[bytes, list[str]] = {}
    for name in sample.column_names:
        if is_list(sample[name].type):
            lengths = pc.list_value_length(sample[name]).fill_null(-1).cast(pa.int64()).to_numpy()
            groups.setdefault(lengths.tobytes(), []).append(name)
    return tuple(tuple(group) for group in groups.values())


def _text(scalar: Any) -> str:
    if scalar is None:
        return ""
    try:
        value = scalar.as_py()
    except (OverflowError, ValueError):  # a time that Python's calendar has no day for, or finer than it counts
        value = scalar.value
    return f"{value:.4g}" if isinstance(value, float) else str(value)
