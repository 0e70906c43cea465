"""Parquet footers: what the files hold, before any row is read, and whether that is what the schema says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import DataError
from pipelines.schema import Column, Schema
from pipelines.segments import Segment
from pipelines.storage import open_file

THREADS = 16


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
    answers = _read_all(files)
    problems = [answer for answer in answers if isinstance(answer, str)]
    if problems:
        raise DataError(problems)
    return [answer for answer in answers if isinstance(answer, Footer)]


def check_files(schema: Schema, segments: Iterable[Segment]) -> list[str]:
    """Every way in which the files are not what the schema says, a line each; the same fault in many files is one
    line."""
    segments = list(segments)
    answers = iter(_read_all([file for segment in segments for file in segment.files]))
    problems: list[str] = []
    faults: dict[str, list[str]] = {}
    for segment in segments:
        footers = [next(answers) for _ in segment.files]
        problems += [answer for answer in footers if isinstance(answer, str)]
        readable = [answer for answer in footers if isinstance(answer, Footer)]
        if len(readable) == len(footers) and not sum(footer.rows for footer in readable):
            problems.append(
                f"segment '{segment.name}' has no rows in its {len(footers)} files → segments hold rows"
                " → leave it out by data.segments"
            )
        for footer in readable:
            for fault in _faults(schema, footer.schema):
                faults.setdefault(fault, []).append(footer.path)
    return problems + [fault.replace("FILES", _name(paths)) for fault, paths in faults.items()]


def read_columns(schema: Schema) -> dict[str, Column]:
    """The columns that batches are made of: all but keys, which are read only where one names the user."""
    return {name: spec for name, spec in schema.columns.items() if spec.role != "key" or name == schema.user}


def _read_all(files: Iterable[str]) -> list[Footer | str]:
    with ThreadPoolExecutor(THREADS, "footers") as pool:
        return list(pool.map(_read, files))


def _read(path: str) -> Footer | str:
    try:
        with open_file(path) as file:
            size = file.size()
            metadata = pq.read_metadata(file)
    except FileNotFoundError:
        return f"'{path}' does not exist → every file of a segment is read → restore it, or leave its segment out"
    except (pa.ArrowInvalid, OSError) as error:
        why = "is empty (0 bytes)" if "0 bytes" in str(error) else "is truncated or no Parquet file"
        return f"'{path}' {why} → files are complete Parquet files → write it again, or remove it"
    groups = tuple(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
    return Footer(path, size, groups, metadata.schema.to_arrow_schema())


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
        why = _type_fault(spec, have.field(index).type)
        if why:
            found.append(
                f"column '{name}' is {have.field(index).type} in FILES → {why}"
                " → fix its kind or group in the schema, or the files"
            )
    return found


def _type_fault(spec: Column, kind: pa.DataType) -> str:
    """What a column must be, if this type is not it; otherwise ""."""
    if spec.group:
        if not _is_list(kind):
            return f"columns of group {spec.group} are lists"
        kind = kind.value_type
    within = "each element" if spec.group else "it"
    if spec.kind in ("ids", "vector"):
        if not _is_list(kind):
            return f"kind {spec.kind}: {within} is a list"
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


def _name(paths: Sequence[str]) -> str:
    return f"'{paths[0]}'" if len(paths) == 1 else f"{len(paths)} files, first '{paths[0]}'"
