"""What `data prepare` is about to do, settled before any row is read: from schema, settings and footers alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.config import Data, Prepare
from pipelines.errors import DataError, SchemaError
from pipelines.footers import Footer, read_footers
from pipelines.manifest import Entry, by_segment, check_rows
from pipelines.prepare_labels import check_labels
from pipelines.prepare_log import LogColumns, check_kinds, find_columns, find_log, parse_expressions, source_of
from pipelines.schema import Schema

log = logging.getLogger(__name__)

UNIT_ROWS = 250_000
PARTITION_ROWS = 100_000
MAX_PARTITIONS = 8192
FRACTION_NAMES = {2: ("1-train", "2-test"), 3: ("1-train", "2-valid", "3-test")}  # name order is time order


SEGMENT = "_segment"  # the column of the events that says their file's segment, an index into Job.segments


@dataclass(frozen=True)
class Unit:
    """Row groups [first, end) of one log file: what one task reads. segment: index into Job.segments."""

    path: str
    first: int
    end: int
    segment: int = 0


@dataclass(frozen=True)
class Job:
    """Picklable. columns: what is read of the log and made of it. log_schema: the columns that events keep.

    segments: names in order, where the split is by manifest. folder: where rows are written, seen by every node of the
    cluster. shuffle: where events wait between the stages.
    rows: of all units.
    """

    schema: Schema
    settings: Prepare
    columns: LogColumns
    log_schema: pa.Schema
    units: tuple[Unit, ...]
    partitions: int
    folder: str
    shuffle: str
    rows: int = 0
    segments: tuple[str, ...] = ()

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
    entries = find_log(settings.log)
    footers = read_footers(entry.path for entry in entries)
    counted = [(e.path, e.rows, f.rows) for e, f in zip(entries, footers, strict=True)]
    problems = [*check_rows(counted), *_check_segments(settings, entries)]
    columns: LogColumns | None = None
    needed = _needed(schema, settings)
    try:
        columns = find_columns(schema, settings, needed, footers)
        problems += [*check_kinds(schema, columns.kinds), *_check_uses(schema, settings, columns.kinds)]
    except DataError as error:
        problems += error.problems
    rows = sum(footer.rows for footer in footers)
    if rows == 0:
        problems.append(f"data.prepare.log '{settings.log}' has no events → rows are made of them → check the log")
    if problems or columns is None:
        raise DataError(problems)
    unused = [name for name in columns.derived if name not in needed and not _is_taken(columns, name)]
    if unused:
        log.warning("derived columns that nothing reads: %s", ", ".join(unused))
    kept = [field for field in columns.kinds if field.name in needed]
    segments = tuple(by_segment(entries)) if settings.split == "manifest" else ()
    codes = [segments.index(entry.segment or "") if segments else 0 for entry in entries]
    if segments:
        kept.append(pa.field(SEGMENT, pa.int32()))
    partitions = settings.partitions or min(math.ceil(rows / PARTITION_ROWS), MAX_PARTITIONS)
    units = tuple(_units(footers, codes))
    return Job(schema, settings, columns, pa.schema(kept), units, partitions, folder, shuffle, rows, segments)


def _is_taken(columns: LogColumns, name: str) -> bool:
    return any(name in takes for _, takes in columns.derived.values())


def _check_segments(settings: Prepare, entries: Sequence[Entry]) -> Iterator[str]:
    has = any(entry.segment is not None for entry in entries)
    if settings.split == "manifest" and not has:
        yield (
            f"data.prepare.split = 'manifest', but '{settings.log}' names no segments → an event's segment is its "
            "file's → give a manifest with the column segment, or split by time, fractions or users"
        )
    elif has and settings.split != "manifest":
        log.info("the manifest's segments are not used: data.prepare.split = '%s' makes its own", settings.split)


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
    yield from check_labels(schema, settings)
    if settings.filter or settings.derive:
        yield from parse_expressions(settings)[2]
    if settings.split in ("fractions", "users"):
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


def _needed(schema: Schema, settings: Prepare) -> dict[str, list[str]]:
    """{log column: who needs it}."""
    needed: dict[str, list[str]] = {}
    for name in schema.columns:
        needed.setdefault(source_of(schema, name), []).append(f"schema column '{name}'")
    for name in settings.tie_keys:
        needed.setdefault(name, []).append("data.prepare.tie_keys")
    for name in settings.event_id:
        needed.setdefault(name, []).append("data.prepare.event_id")
    for history, name in settings.history_filter.items():
        needed.setdefault(name, []).append(f"data.prepare.history_filter of '{history}'")
    if settings.request and schema.supervision == "candidates":
        needed.setdefault(settings.request, []).append("data.prepare.request")
    return needed


def _check_uses(schema: Schema, settings: Prepare, kinds: pa.Schema) -> Iterator[str]:
    """Where a column of the log cannot do what it is named for."""
    ids = "integers, strings or booleans"
    for names, key, allowed, rule in (
        ([source_of(schema, schema.user)], "the user", (_is_integer, _is_string), "integers or strings"),
        ([source_of(schema, time_column(schema))], "the time", (_is_integer, _is_time), "timestamps or integers"),
        (settings.tie_keys, "tie_keys", (_is_integer, _is_string, _is_time), f"timestamps, {ids}"),
        (settings.event_id, "event_id", (_is_integer, _is_string, _is_time), f"timestamps, {ids}"),
        (
            settings.history_filter.values(),
            "history_filter",
            (_is_integer, pa.types.is_floating),
            "numbers or booleans",
        ),
        ([settings.request], "request", (_is_integer, _is_string, _is_time), f"timestamps, {ids}"),
    ):
        for name in names:
            index = kinds.get_field_index(name)
            if index >= 0 and not any(test(kinds.field(index).type) for test in allowed):
                kind = kinds.field(index).type
                yield f"column '{name}' of the log is {kind}, read as {key} → it holds {rule} → derive another of it"


def _is_integer(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind))


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _units(footers: Sequence[Footer], segments: Sequence[int]) -> Iterator[Unit]:
    for footer, segment in zip(footers, segments, strict=True):
        first, rows = 0, 0
        for index, group_rows in enumerate(footer.row_groups):
            rows += group_rows
            if rows >= UNIT_ROWS or index + 1 == len(footer.row_groups):
                yield Unit(footer.path, first, index + 1, segment)
                first, rows = index + 1, 0
