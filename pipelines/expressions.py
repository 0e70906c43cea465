"""SQL expressions over the columns of one event, evaluated by DuckDB: filters, labels, time features, casts.

An expression is deterministic and of one event alone: the same log gives the same rows whoever reads it, in whatever
pieces. So aggregates, windows, subqueries, random numbers and the clock are refused, by looking at DuckDB's own parse
of the text, before any row is read. The engine is locked: no files, no network, no extensions, one thread; UTC.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pyarrow as pa

from pipelines.errors import DataError, SchemaError

# Parse nodes of an expression of one event; everything else (windows, subqueries, *, parameters, …) is refused.
ALLOWED = {
    "BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION", "LAMBDA",
    "OPERATOR", "TYPE",
}  # fmt: skip
WORDS = {"WINDOW": "a window", "SUBQUERY": "a subquery", "STAR": "*", "PARAMETER": "a parameter"}
# "Consistent within a query" in DuckDB's catalogue for the session's time zone alone, which is fixed here. The others
# of that kind (the clock, settings, variables) are refused.
ZONED = {
    "+", "-", "century", "date_diff", "date_part", "date_sub", "date_trunc", "datediff", "datepart", "datesub",
    "datetrunc", "day", "dayname", "dayofmonth", "dayofweek", "dayofyear", "decade", "era", "generate_series", "hour",
    "isodow", "isoyear", "julian", "last_day", "make_timestamptz", "microsecond", "millennium", "millisecond", "minute",
    "month", "monthname", "quarter", "range", "second", "strftime", "time_bucket", "timezone", "timezone_hour",
    "timezone_minute", "week", "weekday", "weekofyear", "year", "yearweek",
}  # fmt: skip
LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "threads": 1,
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,  # no Python variable is ever a table
}


@dataclass(frozen=True)
class Expression:
    """key: its place in the run file, for error lines. text: SQL. reads: columns as it writes them. maybe: columns or,
    where none is called so, parameters of a lambda written with `->`. Picklable."""

    key: str
    text: str
    reads: tuple[str, ...]
    maybe: tuple[str, ...] = ()

    def line(self, what: str, rule: str, remedy: str) -> str:
        """An error line: value → rule → remedy."""
        return _line(self.key, self.text, what, rule, remedy)


@dataclass
class _Found:
    """What a parse tree holds. refused: {what: (rule, remedy)}."""

    reads: dict[str, None] = field(default_factory=dict)
    maybe: dict[str, None] = field(default_factory=dict)
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass
class _Function:
    kinds: set[str] = field(default_factory=set)
    stability: set[str] = field(default_factory=set)
    macros: list[tuple[list[str], str]] = field(default_factory=list)


@contextmanager
def engine() -> Iterator[Any]:
    """A DuckDB of its own (12 ms after the first), locked, for `type_of` and `evaluate`."""
    import duckdb  # noqa: PLC0415 - most logs need no expressions

    connection = duckdb.connect(":memory:", config=LOCKED)
    try:
        if connection.execute("SELECT count(*) FROM duckdb_settings() WHERE name = 'TimeZone'").fetchone() != (0,):
            connection.execute("SET TimeZone = 'UTC'")  # else of the machine; without ICU there are no time zones
        connection.execute("SET lock_configuration = true")
        yield connection
    finally:
        connection.close()


def parse(key: str, text: str) -> Expression:
    """Raises SchemaError, a line for everything in it that is not of one event or not deterministic."""
    with engine() as connection:
        tree, why = _tree(connection, text) if text.strip() else (None, "nothing")
        if tree is None:
            raise SchemaError([_line(key, text, why, "one SQL expression of DuckDB", "correct it")])
        found = _Found()
        _walk(connection, tree, frozenset(), found, frozenset())
    if found.refused:
        raise SchemaError([_line(key, text, what, rule, remedy) for what, (rule, remedy) in found.refused.items()])
    return Expression(key, text, tuple(found.reads), tuple(found.maybe))


def columns_of(expression: Expression, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The columns among `names` that it reads (DuckDB takes upper and lower case for the same), and problem lines."""
    names = list(names)
    found, problems = [], []
    for wanted in (*expression.reads, *expression.maybe):
        alike = [name for name in names if name.casefold() == wanted.casefold()]
        if len(alike) == 1:
            found.append(alike[0])
        elif alike:
            problems.append(
                expression.line(
                    f"{alike} differ in case only", "names are the same to SQL in either case", "rename one"
                )
            )
        elif wanted in expression.reads:
            rule = "it reads columns of the log and derived ones above it; nothing else, and no clock"
            problems.append(expression.line(f"no column '{wanted}'", rule, f"name one of {_some(names)}"))
    return list(dict.fromkeys(found)), problems


def type_of(connection: Any, expression: Expression, schema: pa.Schema) -> pa.DataType:
    """Its Arrow type over columns of these types (those it reads). Raises DataError where they do not fit."""
    kind = plain(evaluate(connection, expression, schema.empty_table()).type)
    inner = kind
    while pa.types.is_list(inner) or pa.types.is_fixed_size_list(inner):
        inner = inner.value_type
    if pa.types.is_nested(inner) or pa.types.is_interval(inner) or pa.types.is_time(inner) or pa.types.is_null(inner):
        rule = "values are numbers, booleans, strings, timestamps, dates, or lists of them"
        raise DataError(expression.line(f"its value is {kind}", rule, "cast it, or take a part of it"))
    return kind


def plain(kind: pa.DataType) -> pa.DataType:
    """Without what is encoding and no type: dictionaries, views, large offsets, names of elements, half precision."""
    if pa.types.is_dictionary(kind):
        return plain(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(plain(kind.value_type), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(plain(kind.value_type))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return pa.float32() if pa.types.is_float16(kind) else kind


def evaluate(connection: Any, expression: Expression, table: pa.Table, where: str = "the log") -> pa.ChunkedArray:
    """A value for each row of the table, in its order; the table has the columns that are read, and no others.

    Raises DataError where a value cannot be made; `where` says which rows these were.
    """
    import duckdb  # noqa: PLC0415

    if not table.num_columns:
        table = pa.table({"nothing": pa.nulls(len(table), pa.int8())})
    connection.register("log", table)
    try:
        result = connection.sql(_select(expression.text)).to_arrow_table().column(0)
    except duckdb.Error as error:
        rule = f"it is evaluated for every event of {where}"
        raise DataError(expression.line(_first_line(error), rule, "correct it, or use try_cast or a CASE")) from error
    finally:
        connection.unregister("log")
    if len(result) != len(table):
        rule = f"one value an event ({len(result)} for {len(table)})"
        raise DataError(expression.line("not one value an event", rule, "correct it"))
    return result


def _select(text: str) -> str:
    return f"SELECT ({text}\n) FROM log"  # noqa: S608 - the newline ends a comment; parse() holds it to one expression


def _tree(connection: Any, text: str) -> tuple[dict[str, Any] | None, str]:
    """The parse of one expression, or why it is not one."""
    answer = _parse_sql(connection, _select(text))
    if answer["error"]:
        return None, answer["error_message"].splitlines()[0]
    plain = _parse_sql(connection, _select("NULL"))
    nodes = [statement["node"] for statement in answer["statements"]]
    expected = _without_places(plain["statements"][0]["node"]) | {"select_list": None}
    if len(nodes) != 1 or _without_places(nodes[0]) | {"select_list": None} != expected:
        return None, "more than an expression"
    items = nodes[0]["select_list"]
    if len(items) != 1 or items[0]["alias"]:
        return None, "more than an expression"
    return dict(items[0]), ""


def _parse_sql(connection: Any, sql: str) -> dict[str, Any]:
    [answer] = connection.execute("SELECT json_serialize_sql($1::VARCHAR)", [sql]).fetchone()
    parsed: dict[str, Any] = json.loads(answer)
    return parsed


def _without_places(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_places(value) for key, value in node.items() if not key.startswith("query_location")}
    return [_without_places(value) for value in node] if isinstance(node, list) else node


def _walk(connection: Any, node: Any, scope: frozenset[str], found: _Found, macros: frozenset[str]) -> None:
    """scope: names that are parameters here. macros: those we are inside of."""
    if isinstance(node, list):
        for item in node:
            _walk(connection, item, scope, found, macros)
    if not isinstance(node, dict):
        return
    kind = node.get("class")
    if kind is not None and kind not in ALLOWED:
        what = WORDS.get(kind, f"a {kind.lower().replace('_', ' ')}")
        found.refused[what] = ("an expression is of one event's own columns", "write it without, or beforehand")
        return
    if kind == "COLUMN_REF":
        name = node["column_names"][0]
        if name.casefold() not in scope:
            found.reads[name] = None
        return
    if kind == "LAMBDA":
        inside = _Found()
        _walk(connection, node["lhs"], frozenset(), inside, macros)
        if node["syntax_type"] == "SINGLE_ARROW":  # or JSON extraction: then these are columns
            found.maybe |= inside.reads
        _walk(connection, node["expr"], scope | {name.casefold() for name in inside.reads}, found, macros)
        return
    if kind == "FUNCTION":
        _check_function(connection, node["function_name"], found, macros)
    for value in node.values():
        _walk(connection, value, scope, found, macros)


def _check_function(connection: Any, name: str, found: _Found, macros: frozenset[str]) -> None:
    function = _functions().get(name.casefold(), _Function())
    what = f"{name}()"
    unsure = function.stability - {"CONSISTENT"} - ({"CONSISTENT_WITHIN_QUERY"} if name.casefold() in ZONED else set())
    if function.kinds & {"aggregate", "window"}:
        rule = "an aggregate is of many events, an expression of one"
        found.refused[what] = (rule, "for an event's own list take list_sum and its like; the past is in histories")
    elif not function.kinds & {"scalar", "macro"}:
        found.refused[what] = ("it is no function of one event's values", "see DuckDB's scalar functions")
    elif unsure:
        rule = "the same log gives the same rows, whenever and wherever they are made"
        found.refused[what] = (rule, "derive it from the event's own columns")
    if name.casefold() in macros:
        return
    for parameters, definition in function.macros:
        inside = _Found()
        tree, _ = _tree(connection, definition)
        _walk(connection, tree, frozenset(parameters), inside, macros | {name.casefold()})
        if inside.refused or inside.reads or tree is None:
            rule = "an expression is of one event's own columns"
            found.refused.setdefault(what, (rule, "write it without, or beforehand"))


@cache
def _functions() -> dict[str, _Function]:
    """DuckDB's catalogue of what it is shipped with."""
    functions: dict[str, _Function] = {}
    with engine() as connection:
        rows = connection.execute(
            "SELECT function_name, function_type, stability, parameters, macro_definition FROM duckdb_functions()"
        ).fetchall()
    for name, kind, stability, parameters, definition in rows:
        function = functions.setdefault(name.casefold(), _Function())
        function.kinds.add(kind)
        if kind == "scalar":
            function.stability.add(stability)
        if kind == "macro":
            function.macros.append(([parameter.casefold() for parameter in parameters], definition))
    return functions


def _line(key: str, text: str, what: str, rule: str, remedy: str) -> str:
    shown = " ".join(text.split())
    return f"{key} = '{shown if len(shown) <= 80 else shown[:79] + '…'}': {what} → {rule} → {remedy}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].partition("Error: ")[2] or str(error).splitlines()[0]


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:12])}, … ({len(names)} columns)"
