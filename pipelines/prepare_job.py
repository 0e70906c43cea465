"""What `data prepare` is about to do, settled before any row is read: from schema, settings and footers alone."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.config import Data, Prepare
from pipelines.errors import DataError, SchemaError
from pipelines.footers import Footer, read_footers
from pipelines.schema import Schema
from pipelines.segments import find_files
from pipelines.storage import COLUMNAR_SUFFIXES, is_file, list_files

UNIT_ROWS = 250_000
PARTITION_ROWS = 100_000
MAX_PARTITIONS = 8192
FRACTION_NAMES = {2: ("1-train", "2-test"), 3: ("1-train", "2-valid", "3-test")}  # name order is time order


@dataclass(frozen=True)
class Unit:
    """Row groups [first, end) of one log file: what one task reads."""

    path: str
    first: int
    end: int


@dataclass(frozen=True)
class Job:
    """Picklable. log_schema: the log's columns that are read, each of the one type that unifies those of all files.

    folder: where rows are written, seen by every node of the cluster. shuffle: where events wait between the stages.
    """

    schema: Schema
    settings: Prepare
    log_schema: pa.Schema
    units: tuple[Unit, ...]
    partitions: int
    folder: str
    shuffle: str

    @property
    def user(self) -> str:
        """Log column of the user."""
        return source_of(self.schema, self.schema.user)

    @property
    def time(self) -> str:
        """Log column of the event time."""
        return source_of(self.schema, time_column(self.schema))

    @property
    def required(self) -> tuple[str, ...]:
        """Log columns without which an event has no place in any row."""
        request = self.settings.request if self.schema.supervision == "candidates" else ""
        return tuple(name for name in dict.fromkeys((self.user, self.time, request)) if name)

    def written(self) -> list[str]:
        """Schema columns that rows are given: all but those with a default whose source no log file has."""
        return [n for n in self.schema.columns if self.log_schema.get_field_index(source_of(self.schema, n)) >= 0]


def source_of(schema: Schema, column: str) -> str:
    """The log column that fills a schema column."""
    return schema.columns[column].source or column


def time_column(schema: Schema) -> str:
    """The schema column of the time that events are ordered by; "" where there is none."""
    if schema.supervision == "candidates":
        return schema.column_with_role("time") or ""
    history = schema.histories.get(schema.supervised_history)
    return history.time if history else ""


def make_job(schema: Schema, data: Data, folder: str, shuffle: str) -> Job:
    """Raises SchemaError where schema and settings do not fit each other, DataError where the log does not fit them."""
    problems = list(check_prepare(schema, data))
    if problems or data.prepare is None:
        raise SchemaError(problems)
    settings = data.prepare
    footers = read_footers(_find_log(settings.log))
    log_schema = _unify(schema, settings, footers)
    rows = sum(footer.rows for footer in footers)
    if rows == 0:
        raise DataError(f"data.prepare.log '{settings.log}' has no events → rows are made from events → check the log")
    automatic = min(math.ceil(rows / PARTITION_ROWS), MAX_PARTITIONS)
    partitions = settings.partitions or automatic
    return Job(schema, settings, log_schema, tuple(_units(footers)), partitions, folder, shuffle)


def check_prepare(schema: Schema, data: Data) -> Iterator[str]:
    """Every way in which schema and settings contradict each other, a line each."""
    settings = data.prepare
    if settings is None:
        yield "[data.prepare] is absent → `data prepare` needs to know the log → add it with at least `log`"
        return
    if schema.user not in schema.columns:
        yield f"schema.user '{schema.user}' names no column → events are grouped by user → name a column with role user"
    if time_column(schema) not in schema.columns:
        yield "no time column → events are ordered by time → give a static column (or the history's) the role time"
    else:
        yield from _check_times(schema)
    for name in settings.history_filter:
        if name not in schema.histories:
            yield f"data.prepare.history_filter names '{name}' → histories are {sorted(schema.histories)} → correct it"
    if settings.split == "fractions":
        shares = settings.fractions
        if len(shares) not in FRACTION_NAMES or min(shares) <= 0 or not math.isclose(sum(shares), 1.0):
            yield f"data.prepare.fractions {shares} → two or three positive shares that sum to 1 → correct them"
    if schema.supervision == "history":
        yield from _check_supervised_history(schema, settings)
    elif not schema.candidates():
        yield "no column has group candidates → candidates supervision needs at least one → add it, or set supervision"


def _check_times(schema: Schema) -> Iterator[str]:
    expected = source_of(schema, time_column(schema))
    for name, history in schema.histories.items():
        if history.time in schema.columns and source_of(schema, history.time) != expected:
            yield (
                f"history '{name}' takes its time from '{source_of(schema, history.time)}', rows from '{expected}' → "
                f"one log column orders all events → set source = '{expected}' for '{history.time}'"
            )
        if history.action_time and schema.ties == "order":
            yield f"history '{name}' has action_time with ties = 'order' → there the stated order decides → drop one"


def _check_supervised_history(schema: Schema, settings: Prepare) -> Iterator[str]:
    history = schema.histories.get(schema.supervised_history)
    if history is None:
        yield f"supervised_history '{schema.supervised_history}' names no history → supervision = 'history' needs one"
    elif settings.context_events + settings.supervised_events > history.max_length:
        yield (
            f"history '{schema.supervised_history}' has max_length {history.max_length} → a row holds context_events "
            f"{settings.context_events} + supervised_events {settings.supervised_events} → raise it or lower them"
        )
    if schema.candidates():
        yield f"columns {sorted(schema.candidates())} have group candidates → history supervision has none → drop them"


def _find_log(log: str) -> list[str]:
    """Parquet files of a file, a folder, a URI of either, or a local glob, sorted."""
    try:
        if is_file(log):
            return [log]
        uri = "://" in log
        found = glob.glob(log, recursive=True) if glob.has_magic(log) and not uri else [log] if not uri else []
        files = {path for path in found if is_file(path) and path.endswith(COLUMNAR_SUFFIXES)}
        files |= {file.path for file in find_files(log)} if uri else set()
        for folder in (path for path in found if not is_file(path)):
            files |= {path for path, _ in list_files(folder) if path.endswith(COLUMNAR_SUFFIXES)}
    except FileNotFoundError:
        files = set()
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise DataError(
            f"data.prepare.log '{log}' cannot be listed: {why} → a folder, glob or URI → correct it"
        ) from error
    if not files:
        raise DataError(f"data.prepare.log '{log}' holds no Parquet files → events are read from Parquet → correct it")
    return sorted(files)


def _needed(schema: Schema, settings: Prepare) -> dict[str, list[str]]:
    """{log column: who needs it}."""
    needed: dict[str, list[str]] = {}
    for name in schema.columns:
        needed.setdefault(source_of(schema, name), []).append(f"schema column '{name}'")
    for name in settings.tie_keys:
        needed.setdefault(name, []).append("data.prepare.tie_keys")
    for history, name in settings.history_filter.items():
        needed.setdefault(name, []).append(f"data.prepare.history_filter of '{history}'")
    if settings.request and schema.supervision == "candidates":
        needed.setdefault(settings.request, []).append("data.prepare.request")
    return needed


def _unify(schema: Schema, settings: Prepare, footers: Sequence[Footer]) -> pa.Schema:
    """The needed columns with one type each. Raises DataError listing every column that is missing or of two types."""
    has_default = {source_of(schema, name) for name, spec in schema.columns.items() if spec.default is not None}
    problems, fields = [], []
    for name, needers in _needed(schema, settings).items():
        lacking = [footer.path for footer in footers if footer.schema.get_field_index(name) < 0]
        optional = name in has_default and all(needer.startswith("schema column") for needer in needers)
        if lacking and not optional:
            problems.append(
                f"column '{name}' is missing in {_some(lacking)} → {', '.join(needers)} reads it → set `source` to the "
                "log's name of it, or give the column a default"
            )
            continue
        kinds = [
            _plain(footer.schema.field(name).type) for footer in footers if footer.schema.get_field_index(name) >= 0
        ]
        try:
            unified = pa.unify_schemas([pa.schema([(name, kind)]) for kind in set(kinds)], promote_options="permissive")
        except pa.ArrowTypeError:
            kinds_text = ", ".join(sorted(map(str, set(kinds))))
            problems.append(
                f"column '{name}' is {kinds_text} in different files → a column has one type → convert the log"
            )
            continue
        fields += list(unified)
    problems += _check_types(schema, pa.schema(fields))
    if problems:
        raise DataError(problems)
    return pa.schema(fields)


def _check_types(schema: Schema, log_schema: pa.Schema) -> Iterator[str]:
    user, time = source_of(schema, schema.user), source_of(schema, time_column(schema))
    for name, allowed, rule in (
        (user, (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string), "users are integers or strings"),
        (time, (pa.types.is_integer, pa.types.is_timestamp, pa.types.is_date), "times are timestamps or integers"),
    ):
        index = log_schema.get_field_index(name)
        if index >= 0 and not any(test(log_schema.field(index).type) for test in allowed):
            yield f"column '{name}' of the log is {log_schema.field(index).type} → {rule} → name another or convert it"


def _plain(kind: pa.DataType) -> pa.DataType:
    """Without dictionary encoding, which pandas leaves in files: an encoding, not a type."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _units(footers: Sequence[Footer]) -> Iterator[Unit]:
    for footer in footers:
        first, rows = 0, 0
        for index, group_rows in enumerate(footer.row_groups):
            rows += group_rows
            if rows >= UNIT_ROWS or index + 1 == len(footer.row_groups):
                yield Unit(footer.path, first, index + 1)
                first, rows = index + 1, 0


def _some(paths: Sequence[str]) -> str:
    return f"'{paths[0]}'" if len(paths) == 1 else f"{len(paths)} files, first '{paths[0]}'"
