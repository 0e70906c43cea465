"""Columns of rows that were read already, as they are in their files: ids before they were hashed, keys that no batch
carries.

Sizes: R rows · S positions of their lists.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.arrow_arrays import list_parts, one_array
from pipelines.batch import Int64
from pipelines.errors import DataError
from pipelines.retries import READ_RETRIES, retrying
from pipelines.storage import open_file

KEPT_GROUPS = 3  # rows of a batch come from one row group or two, and batches in order

MOST_FOOTERS = 64


class RowColumns:
    """Reads the row groups that rows are in, these columns only, and keeps the last few: what it holds does not grow
    with the data. One thread."""

    def __init__(self, names: Sequence[str], retries: int = READ_RETRIES) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._retries = retries
        self._starts: OrderedDict[str, Int64] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()

    def take(self, files: Sequence[str], file_R: npt.NDArray[np.int32], row_R: Int64) -> pa.Table:
        """The rows' values, row after row; null where a file lacks the column. file: index into files. row: in that
        file. Raises DataError where a file cannot be read."""
        parts, places = [], []
        for file in np.unique(file_R):
            of_file = np.flatnonzero(file_R == file)
            starts = self._row_groups(files[file])
            group_R = np.searchsorted(starts, row_R[of_file], side="right") - 1
            for group in np.unique(group_R):
                here = of_file[group_R == group]
                table = self._group(files[file], int(group))
                parts.append(table.take(pa.array(row_R[here] - starts[group])))
                places.append(here)
        if not parts:
            return pa.table({name: pa.nulls(0) for name in self.names})
        order = np.argsort(np.concatenate(places))
        return pa.concat_tables(parts, promote_options="permissive").take(pa.array(order))

    def _row_groups(self, path: str) -> Int64:
        """Row in the file of each row group's first row."""
        if path not in self._starts:
            self._read(path, None)
        return self._starts[path]

    def _group(self, path: str, group: int) -> pa.Table:
        if (path, group) not in self._groups:
            self._groups[path, group] = self._read(path, group)
            while len(self._groups) > KEPT_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end((path, group))
        return self._groups[path, group]

    def _read(self, path: str, group: int | None) -> pa.Table | None:
        try:
            return retrying(partial(self._read_once, path, group), f"'{path}'", self._retries)
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"'{path}' cannot be read: {str(error).splitlines()[0]} → columns {', '.join(self.names)} are read of"
                " every row that was scored → restore it"
            ) from error

    def _read_once(self, path: str, group: int | None) -> pa.Table | None:
        with open_file(path) as source:
            reader = pq.ParquetFile(source)
            if path not in self._starts:
                rows = [reader.metadata.row_group(g).num_rows for g in range(reader.metadata.num_row_groups)]
                self._starts[path] = np.concatenate([[0], np.cumsum(rows)])[:-1].astype(np.int64)
                while len(self._starts) > 64:
                    self._starts.popitem(last=False)
            if group is None:
                return None
            there = [name for name in self.names if name in reader.schema_arrow.names]
            table = reader.read_row_group(group, columns=there, use_threads=False)
            for name in self.names:
                if name not in there:
                    table = table.append_column(name, pa.nulls(len(table)))
            return table.select(list(self.names))


def column_types(files: Sequence[str], names: Sequence[str], retries: int = READ_RETRIES) -> dict[str, pa.DataType]:
    """Of the columns that are in the files, as the first file that has it says. Looks into the footers of a few files
    from all over the list, until all are found."""

    def schema_of(path: str) -> pa.Schema:
        with open_file(path) as source:
            return pq.read_schema(source)

    found: dict[str, pa.DataType] = {}
    for path in files[:: max(1, len(files) // MOST_FOOTERS)]:
        missing = [name for name in names if name not in found]
        if not missing:
            break
        schema = retrying(partial(schema_of, path), f"'{path}'", retries)
        found |= {name: schema.field(name).type for name in missing if name in schema.names}
    return found


def is_list(kind: pa.DataType) -> bool:
    """Whether a column's values are lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def widest(kind: pa.DataType) -> pa.DataType:
    """The type that values of all files fit into."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_signed_integer(kind) or (pa.types.is_unsigned_integer(kind) and kind.bit_width < 64):
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return pa.string()
    return kind


def list_lengths(column: pa.ChunkedArray) -> Int64:
    """Of each row's list; 0 where it is null. [R]"""
    lengths: Int64 = np.diff(list_parts(one_array(column))[1])
    return lengths


def per_position(name: str, column: pa.ChunkedArray, lengths_R: Int64, whole_R: Int64) -> tuple[pa.Array, Int64]:
    """Of each row's list the last `lengths` elements, row after row [S], and their places in it, from 0. whole: how
    long the lists are. Raises DataError where one is not."""
    elements, offsets = list_parts(one_array(column))
    if not np.array_equal(np.diff(offsets), whole_R):
        raise DataError(
            f"column '{name}' has lists that are not as long as those of the labels → one value belongs to each"
            " position that is scored → name another column"
        )
    within_S = np.arange(int(lengths_R.sum())) - np.repeat(np.cumsum(lengths_R) - lengths_R, lengths_R)
    from_S = np.repeat(offsets[1:] - lengths_R, lengths_R) + within_S
    return elements.take(pa.array(from_S)), from_S - np.repeat(offsets[:-1], lengths_R)


def repeated(column: pa.ChunkedArray, lengths_R: Int64) -> pa.Array:
    """A row's value at each of its positions. [S]"""
    return one_array(column).take(pa.array(np.repeat(np.arange(len(lengths_R)), lengths_R)))


def as_type(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Raises DataError for a value that does not fit."""
    try:
        return pc.cast(values, kind)
    except pa.ArrowException as error:
        raise DataError(
            f"a value is no {kind}: {str(error).splitlines()[0]} → a column has one type in all files → fix the files"
        ) from error
