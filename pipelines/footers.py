"""Parquet footers: what the files hold, before any row is read, and whether that is what the schema says."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.batch import Int32
from pipelines.errors import DataError
from pipelines.footer_cache import FooterCache
from pipelines.footer_table import read_segments
from pipelines.manifest import check_rows
from pipelines.retries import READ_RETRIES
from pipelines.schema import Column, Schema
from pipelines.segments import Segment, look_up

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Footer:
    """path; size in bytes; rows of each row group; Arrow schema of the file."""

    path: str
    size: int
    row_groups: tuple[int, ...]
    schema: pa.Schema

    @property
    def rows(self) -> int:
        return sum(self.row_groups)


def read_footers(files: Iterable[str]) -> list[Footer]:
    """Footers in the order of the files, read in parallel. Raises DataError naming every file that has none."""
    [segment] = look_up([Segment("", tuple(files))])
    [found] = read_segments([segment])
    if found.problems:
        raise DataError(list(found.problems))
    groups = np.split(found.rows_G, np.cumsum(found.counts_F)[:-1])
    return [
        Footer(path, size, tuple(rows.tolist()), found.schemas[index])
        for path, size, rows, index in zip(segment.files, segment.sizes, groups, found.schema_F.tolist(), strict=True)
    ]


def check_files(
    schema: Schema,
    segments: Iterable[Segment],
    cache: FooterCache | None = None,
    retries: int = READ_RETRIES,
    quarantine: bool = False,
) -> list[str]:
    """Every way in which the files are not what the schema says, a line each; the same fault in many files is one
    line. cache: asked first, and written when all is well. quarantine: a column that is missing or of another type
    in some files only is warned of: readers set those files' rows aside."""
    cache = cache or FooterCache(None)
    problems: list[str] = []
    segments = look_up(list(segments), retries)
    known = [cache.find(segment) for segment in segments]
    read = read_segments([s for s, found in zip(segments, known, strict=True) if found is None], retries)
    footers = [next(read) if found is None else found for found in known]
    faults: dict[str, list[tuple[int, str]]] = {}
    of_schema: dict[int, list[str]] = {}  # by identity: hashing a schema takes longer than all else here
    for segment, found in zip(segments, footers, strict=True):
        problems += found.problems
        if segment.rows and not found.problems:
            rows_F = [int(rows.sum()) for rows in np.split(found.rows_G, np.cumsum(found.counts_F)[:-1])]
            problems += check_rows(zip(segment.files, segment.rows, rows_F, strict=True))
        if not found.problems and not found.rows:
            problems.append(
                f"segment '{segment.name}' has no rows in its {len(segment.files)} files → segments hold rows"
                " → leave it out by data.segments"
            )
        for index, first, count in _distinct(found.schema_F):
            if index < 0:
                continue
            have = found.schemas[index]
            if id(have) not in of_schema:
                of_schema[id(have)] = _faults(schema, have)
            for fault in of_schema[id(have)]:
                faults.setdefault(fault, []).append((count, segment.files[first]))
    for fault, where in faults.items():
        line = fault.replace("FILES", _name(where))
        if quarantine and sum(count for count, _ in where) < sum(len(segment.files) for segment in segments):
            log.warning("%s; as data.on_bad_row says, their rows are quarantined", line)
        else:
            problems.append(line)
    if not problems and any(found is None for found in known):
        cache.write(segments, footers)
    return problems


def _distinct(values: Int32) -> list[tuple[int, int, int]]:
    """(value, where it is first, how often it is there) of each."""
    if len(values) == 1:
        return [(int(values[0]), 0, 1)]
    found = np.unique(values, return_index=True, return_counts=True)
    return list(zip(*(part.tolist() for part in found), strict=True))


def read_columns(schema: Schema) -> dict[str, Column]:
    """The columns that batches are made of: all but keys, which are read only where one names the user."""
    return {name: spec for name, spec in schema.columns.items() if spec.role != "key" or name == schema.user}


def _faults(schema: Schema, have: pa.Schema) -> list[str]:
    found = []
    for name, spec in read_columns(schema).items():
        index = have.get_field_index(name)
        if index < 0:
            if spec.default is None:
                found.append(
                    f"column '{name}' is missing in FILES → the schema reads it"
                    " → give it a `default`, or take it out of [schema.columns]"
                )
            continue
        why = type_fault(spec, have.field(index).type)
        if why:
            found.append(
                f"column '{name}' is {have.field(index).type} in FILES → {why}"
                " → fix its kind or group in the schema, or the files"
            )
    return found


def type_fault(spec: Column, kind: pa.DataType) -> str:
    """What a column must be, if this type is not it; otherwise ""."""
    if spec.group:
        if not _is_list(kind):
            return f"columns of group {spec.group} are lists"
        kind = kind.value_type
    within = "each element" if spec.group else "it"
    if spec.kind in ("ids", "vector"):
        if not _is_list(kind):
            return f"kind {spec.kind}: {within} is a list"
        if spec.kind == "vector" and pa.types.is_fixed_size_list(kind) and kind.list_size != spec.size:
            return f"kind vector: {within} has its column's size = {spec.size}"
        kind = kind.value_type
    if pa.types.is_null(kind):
        return ""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    allowed, words = {
        "id": (_is_id(kind), "integers or strings"),
        "ids": (_is_id(kind), "integers or strings"),
        "bucket": (_is_number(kind), "numbers"),
        "dense": (_is_number(kind), "numbers or booleans"),
        "vector": (_is_number(kind), "floats"),
        "time": (_is_time(kind), "timestamps or integers"),
    }[spec.kind]
    return "" if allowed else f"role {spec.role}, kind {spec.kind}: values are {words}"


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_id(kind: pa.DataType) -> bool:
    strings = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(strings or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _name(where: Sequence[tuple[int, str]]) -> str:
    """where: (files, first of them), segment by segment."""
    files = sum(count for count, _ in where)
    return f"'{where[0][1]}'" if files == 1 else f"{files} files, first '{where[0][1]}'"
