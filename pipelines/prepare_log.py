"""The event log that `data prepare` reads: its files, the columns that are needed of them, and their types."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.config import Prepare
from pipelines.decode import MICROSECONDS
from pipelines.errors import DataError, SchemaError
from pipelines.expressions import Expression, columns_of, engine, parse, plain, type_of
from pipelines.footers import Footer, type_fault
from pipelines.manifest import Entry, read_manifest
from pipelines.schema import Column, Schema
from pipelines.segments import find_files
from pipelines.storage import COLUMNAR_SUFFIXES, is_file, list_files

Needers = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class LogColumns:
    """read: what is read of the files, for rows or for expressions. kinds: of these and of the derived ones.

    filter, derived: expressions with the columns that each takes, in the run file's order. Picklable.
    """

    read: pa.Schema
    kinds: pa.Schema
    filter: tuple[Expression, tuple[str, ...]] | None
    derived: dict[str, tuple[Expression, tuple[str, ...]]]


def find_log(log: str) -> list[Entry]:
    """Parquet files of a file, a folder, a URI of either, or a local glob, sorted; or those of a manifest, in its
    order. Raises DataError where there are none."""
    try:
        listed = read_manifest(log)
        if listed is not None:
            return listed
        if is_file(log):
            return [Entry(log)]
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
            f"data.prepare.log '{log}' cannot be listed: {why} → a folder, glob, manifest or URI → correct it"
        ) from error
    if not files:
        raise DataError(f"data.prepare.log '{log}' holds no Parquet files → events are read from Parquet → correct it")
    return [Entry(path) for path in sorted(files)]


def parse_expressions(settings: Prepare) -> tuple[Expression | None, dict[str, Expression], list[str]]:
    """The filter and the derived columns of the settings, and a line for each that is none."""
    problems: list[str] = []
    parsed: dict[str, Expression] = {}
    keys = {"": "data.prepare.filter"} | {name: f"data.prepare.derive.{name}" for name in settings.derive}
    texts = ({"": settings.filter} if settings.filter else {}) | settings.derive
    for name, text in texts.items():
        try:
            parsed[name] = parse(keys[name], text)
        except SchemaError as error:
            problems += error.problems
    for name in settings.derive:
        if not name or name.startswith("_"):
            problems.append(f"data.prepare.derive '{name}' → a name does not begin with '_' → name it otherwise")
    return parsed.pop("", None), parsed, problems


def find_columns(schema: Schema, settings: Prepare, needed: Needers, footers: Sequence[Footer]) -> LogColumns:
    """The columns with one type each. needed: {column: who needs it}; what only expressions need is added.

    Raises DataError listing every column that is missing, of two types or not of its kind, and every expression that
    does not fit the columns.
    """
    filter_, derived, _ = parse_expressions(settings)
    names = list(dict.fromkeys(name for footer in footers for name in footer.schema.names))
    problems = [
        f"data.prepare.derive '{name}' is a column of the log → a derived column is a new one → name it otherwise"
        for name in derived
        if name in names
    ]
    wanted = {name: list(needers) for name, needers in needed.items() if name not in derived}
    expressions = ({"": filter_} if filter_ else {}) | derived
    takes: dict[str, tuple[str, ...]] = {}
    above: list[str] = []
    lost = derived.keys() & set(names)  # what has its line already
    for name, expression in expressions.items():
        found, lines = columns_of(expression, dict.fromkeys([*names, *above]))
        problems += lines
        lost |= {name} if lines else set()
        takes[name] = tuple(found)
        for column in found:
            if column not in above:
                wanted.setdefault(column, []).append(expression.key)
        if name:
            above.append(name)
    read = pa.schema(list(_unify(schema, wanted, footers, problems)))
    lost |= wanted.keys() - set(read.names)
    kinds = _bind(read, expressions, takes, lost, problems)
    if problems:
        raise DataError(problems)
    with_takes = {name: (expression, takes[name]) for name, expression in derived.items()}
    return LogColumns(read, kinds, (filter_, takes[""]) if filter_ else None, with_takes)


def _bind(
    read: pa.Schema,
    expressions: dict[str, Expression],
    takes: dict[str, tuple[str, ...]],
    lost: set[str],
    problems: list[str],
) -> pa.Schema:
    """`read` with the derived columns' types; adds a line for each expression that does not fit. What takes something
    lost is lost too: one fault, one line."""
    if not expressions:
        return read
    kinds = read
    with engine() as connection:
        for name, expression in expressions.items():
            if name in lost or lost & set(takes[name]):
                lost.add(name)
                continue
            try:
                kind = type_of(connection, expression, pa.schema([kinds.field(column) for column in takes[name]]))
            except DataError as error:
                problems += error.problems
                lost.add(name)
                continue
            if name:
                kinds = kinds.append(pa.field(name, kind))
            elif not pa.types.is_boolean(kind):
                problems.append(expression.line(f"its value is {kind}", "a filter is true or false", "compare it"))
    return kinds


def _unify(schema: Schema, wanted: Needers, footers: Sequence[Footer], problems: list[str]) -> Iterator[pa.Field]:
    """Each wanted column with the type that those of all files become."""
    has_default = {source_of(schema, name) for name, spec in schema.columns.items() if spec.default is not None}
    for name, needers in wanted.items():
        having = [footer for footer in footers if footer.schema.get_field_index(name) >= 0]
        lacking = [footer.path for footer in footers if footer.schema.get_field_index(name) < 0]
        only_rows = all(needer.startswith("schema column") for needer in needers)
        if lacking and not (name in has_default and (having or only_rows)):
            problems.append(
                f"column '{name}' is missing in {_some(lacking)} → {', '.join(needers)} reads it → set `source` to the "
                "log's name of it, or give the column a default"
            )
            continue
        kinds = dict.fromkeys(plain(footer.schema.field(name).type) for footer in having)
        try:
            unified = pa.unify_schemas([pa.schema([(name, kind)]) for kind in kinds], promote_options="permissive")
        except pa.ArrowTypeError:
            kinds_text = ", ".join(sorted(map(str, kinds)))
            problems.append(
                f"column '{name}' is {kinds_text} in different files → a column has one type → convert the log"
            )
            continue
        yield from unified


def default_value(spec: Column, kind: pa.DataType, time_unit: str) -> pa.Scalar:
    """The default of a column as a value of the log. Raises ValueError where it is none."""
    value: Any = spec.default
    if spec.kind == "ids":
        value = [value]
    elif spec.kind == "vector":
        value = [float(value)] * spec.size
    elif pa.types.is_temporal(kind):
        return pa.scalar(int(value) * MICROSECONDS[time_unit], pa.timestamp("us")).cast(kind)
    try:
        return pa.scalar(value, kind)
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(str(error).splitlines()[0]) from error


def check_kinds(schema: Schema, kinds: pa.Schema) -> Iterator[str]:
    """Where columns of the log are not of the kind that the schema says, and defaults not of the columns' type."""
    for name, spec in schema.columns.items():
        source = source_of(schema, name)
        index = kinds.get_field_index(source)
        if index < 0:
            continue
        kind = kinds.field(index).type
        why = type_fault(spec.model_copy(update={"group": ""}), kind)
        if why:
            yield (
                f"column '{source}' of the log is {kind}, read by schema column '{name}' → {why}"
                " → fix its kind, or derive a column of it"
            )
        elif spec.default is not None:
            try:
                default_value(spec, kind, schema.time_unit)
            except ValueError as error:
                yield (
                    f"column '{name}': default = {spec.default!r} ({error}) → it stands for values of '{source}', "
                    f"which is {kind} → give one of its kind"
                )


def source_of(schema: Schema, column: str) -> str:
    """The log column that fills a schema column."""
    return schema.columns[column].source or column


def _some(paths: Sequence[str]) -> str:
    return f"'{paths[0]}'" if len(paths) == 1 else f"{len(paths)} files, first '{paths[0]}'"
