"""Expressions are of one event, deterministic and locked in: the same values in the same order, whoever evaluates."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import DataError, SchemaError
from pipelines.expressions import ZONED, columns_of, engine, evaluate, parse, type_of

pytestmark = pytest.mark.timeout(60)

# What is refused, and a word of the line that says so.
REFUSED = {
    "sum(a)": "aggregate", "count(*)": "aggregate", "max(a) FILTER (WHERE b)": "aggregate", "first(a)": "aggregate",
    "CASE WHEN b THEN avg(a) END": "aggregate", "geomean(a)": "geomean", "wavg(a, a)": "wavg",
    "row_number() OVER ()": "a window", "sum(a) OVER (PARTITION BY u ORDER BY ts)": "a window",
    "lag(a) OVER (ORDER BY ts)": "a window",
    "(SELECT 1)": "a subquery", "a IN (SELECT a FROM log)": "a subquery", "EXISTS(FROM log)": "a subquery",
    "*": "*", "COLUMNS(*)": "*", "log.*": "*", "unnest(l)": "unnest()", "?": "a parameter", "$1": "a parameter",
    "#1": "positional", "DEFAULT": "default",
    "random()": "random()", "a + random()": "random()", "try(random())": "random()", "uuid()": "uuid()",
    "list_transform(l, lambda x: x + random())": "random()", "now()": "now()", "today()": "today()",
    "get_current_timestamp()": "get_current", "ago(INTERVAL 1 DAY)": "ago()", "age(ts)": "age()",
    "current_setting('threads')": "current_setting", "getvariable('x')": "getvariable", "nextval('s')": "nextval",
    "pg_sleep(9)": "pg_sleep()", "read_text('/etc/passwd')": "read_text()", "query('SELECT 1')": "query()",
    "no_such_function(a)": "no_such_function()", "format_type(1, 2)": "format_type()",
    "": "nothing", "  ": "nothing", "a b": "syntax", "a AS b": "syntax", "a; SELECT 1": "syntax", "a FROM x": "syntax",
    "a) FROM log; SELECT (1": "more than an expression", "a) AS x, (b": "more than an expression",
    "a), (b": "more than an expression", "a) FROM log; DROP TABLE log; SELECT (1": "Only SELECT",
    "DISTINCT a": "syntax", "a /*": "comment", "a) FROM log --": "syntax",
}  # fmt: skip


def table(count: int = 5) -> pa.Table:
    at = np.arange(count)
    return pa.table(
        {
            "a": pa.array([None if i % 7 == 3 else i for i in at.tolist()], pa.int32()),
            "b": pa.array((at % 2 == 0).tolist()),
            "d": pa.array([str(i % 3) for i in at.tolist()]).dictionary_encode(),
            "l": pa.array([[i, i + 1] for i in at.tolist()], pa.large_list(pa.int64())),
            "s": pa.array([{"k": i, "tags": ["x"]} for i in at.tolist()]),
            "ts": pa.array((at * 3_600_000_000 + 1_763_596_800_000_000).tolist(), pa.timestamp("us")),
            "j": pa.array([f'{{"price": {i}}}' for i in at.tolist()]),
        }
    )


def value(text: str, rows: pa.Table) -> list[Any]:
    expression = parse("data.prepare.derive.x", text)
    found, problems = columns_of(expression, rows.column_names)
    assert problems == []
    with engine() as connection:
        return list(evaluate(connection, expression, rows.select(found)).to_pylist())


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_of_one_event_or_not_deterministic_is_refused_in_a_line(text: str) -> None:
    with pytest.raises(SchemaError) as error:
        parse("data.prepare.derive.x", text)
    for line in error.value.problems:
        assert line.startswith("data.prepare.derive.x = '")
        assert line.count("→") == 2
        assert "\n" not in line
    assert REFUSED[text] in str(error.value)


def test_a_name_that_is_no_column_is_told_even_where_sql_knows_it() -> None:
    for text in ("current_date", "current_timestamp", "user", "rowid", "log.a", "gone > 3"):
        found, [line] = columns_of(parse("data.prepare.filter", text), ["a", "b"])
        assert found == []
        assert line.count("→") == 2
        assert "a, b" in line
    # … and is a column where the log has one of that name.
    assert value("upper(user)", pa.table({"user": ["ann"]})) == ["ANN"]


def test_every_function_of_the_catalogue_that_may_change_within_a_day_is_judged() -> None:
    """Of those that DuckDB holds constant for a query only, these read the time zone alone; the others are refused."""
    rows = duckdb.connect().sql(
        "SELECT DISTINCT function_name, stability FROM duckdb_functions() WHERE stability != 'CONSISTENT'"
    )
    names = {name for name, stability in rows.fetchall() if stability == "CONSISTENT_WITHIN_QUERY"}
    refused = {
        "age", "current_database", "current_date", "current_localtime", "current_localtimestamp", "current_schema",
        "current_schemas", "current_setting", "get_current_time", "get_current_timestamp", "getvariable",
        "in_search_path", "now", "today", "transaction_timestamp", "txid_current",
    }  # fmt: skip
    assert names == ZONED | refused


def test_values_are_those_of_python_in_the_order_of_the_rows() -> None:
    rows = table(50)
    events = rows.to_pylist()
    for text, expected in {
        "a > 3": [None if e["a"] is None else e["a"] > 3 for e in events],
        "A % 5 = 0 AND b -- a comment": [
            e["a"] % 5 == 0 if e["b"] and e["a"] is not None else None if e["b"] else False for e in events
        ],
        "if(b, 1, 0)": [int(e["b"]) for e in events],
        "coalesce(a, -1)::BIGINT": [-1 if e["a"] is None else e["a"] for e in events],
        "try_cast(d AS INTEGER)": [int(e["d"]) for e in events],
        "list_sum(l)::BIGINT": [sum(e["l"]) for e in events],
        "[x * 2 FOR x IN l IF x > 3]": [[x * 2 for x in e["l"] if x > 3] for e in events],
        "list_transform(l, lambda x: x + a)": [
            [None if e["a"] is None else x + e["a"] for x in e["l"]] for e in events
        ],
        "s.k + s['k']": [2 * e["s"]["k"] for e in events],
        "(j -> 'price')::INTEGER": list(range(50)),
        "[a, a]::FLOAT[2]": [[e["a"], e["a"]] for e in events],
        "7": [7] * 50,
    }.items():
        assert value(text, rows) == expected, text


def test_order_and_number_hold_for_many_rows_and_in_pieces() -> None:
    rows = table(300_000).select(["a", "ts"])
    expression = parse("k", "CASE WHEN a % 3 = 0 THEN epoch_us(ts) ELSE a END")
    with engine() as connection:
        whole = evaluate(connection, expression, rows).combine_chunks()
        pieces = [evaluate(connection, expression, rows.slice(at, 70_001)) for at in range(0, 300_000, 70_001)]
    a, ts = rows["a"].to_numpy(zero_copy_only=False), rows["ts"].cast(pa.int64()).to_numpy()
    expected = np.where(a % 3 == 0, ts, a)
    assert np.array_equal(whole.to_numpy(zero_copy_only=False), expected, equal_nan=True)
    assert pa.concat_arrays([chunk for piece in pieces for chunk in piece.chunks]).equals(whole)


def test_time_features_are_of_utc_or_of_the_zone_that_is_named_wherever_the_machine_is() -> None:
    rows = pa.table({"ts": table(48)["ts"], "aware": table(48)["ts"].cast(pa.timestamp("us", "Asia/Tokyo"))})
    moments = [moment.replace(tzinfo=UTC) for moment in rows["ts"].to_pylist()]
    berlin = [moment.astimezone(ZoneInfo("Europe/Berlin")) for moment in moments]
    assert value("hour(ts)", rows) == [m.hour for m in moments]
    assert value("hour(aware)", rows) == [m.hour for m in moments]
    assert value("isodow(ts)", rows) == [m.isoweekday() for m in moments]
    assert value("dayofweek(ts)", rows) == [m.isoweekday() % 7 for m in moments]  # Sunday is 0
    assert value("hour(aware AT TIME ZONE 'Europe/Berlin')", rows) == [m.hour for m in berlin]
    in_berlin = "ts AT TIME ZONE 'UTC' AT TIME ZONE 'Europe/Berlin'"
    assert value(f"dayofweek({in_berlin}) * 24 + hour({in_berlin})", rows) == [
        m.isoweekday() % 7 * 24 + m.hour for m in berlin
    ]
    seconds = pa.table({"t": [int(m.timestamp()) for m in moments]})
    assert value("hour(to_timestamp(t))", seconds) == [m.hour for m in moments]
    assert value("make_timestamp(t * 1000000)", seconds) == rows["ts"].to_pylist()
    assert datetime(2025, 11, 20, tzinfo=UTC) == moments[0]
    code = (
        "import pyarrow as pa; from pipelines.expressions import *; e = parse('k', 'hour(to_timestamp(t))')\n"
        "with engine() as c: print(evaluate(c, e, pa.table({'t': [0]})).to_pylist())"
    )
    environment = os.environ | {"TZ": "America/New_York", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout.strip() == "[0]"


def test_what_does_not_fit_the_columns_is_told_before_a_row_is_read() -> None:
    schema = table().schema
    for text, word in {
        "hour(d)": "hour", "a + l": "+", "a::no_such_type": "no_such_type", "s": "struct", "INTERVAL 1 DAY": "interval",
        "NULL": "null", "a, b": "struct", "ts::TIME": "time64", "d = 1 OR list_sum(d) = 1": "list_aggr",
    }.items():  # fmt: skip
        expression = parse("data.prepare.derive.x", text)
        found, problems = columns_of(expression, schema.names)
        assert problems == []
        with engine() as connection, pytest.raises(DataError) as error:
            type_of(connection, expression, pa.schema([schema.field(name) for name in found]))
        [line] = error.value.problems
        assert word in line
        assert line.count("→") == 2
        assert "\n" not in line


def test_a_value_that_cannot_be_made_names_expression_rule_and_remedy() -> None:
    expression = parse("data.prepare.derive.x", "d::INTEGER")
    with engine() as connection:
        assert type_of(connection, expression, table().select(["d"]).schema) == pa.int32()
        with pytest.raises(DataError) as error:
            evaluate(connection, expression, pa.table({"d": ["1", "two"]}), "'log.parquet'")
    [line] = error.value.problems
    assert "'two'" in line
    assert "'log.parquet'" in line
    assert "try_cast" in line


def test_names_that_differ_in_case_only_are_told() -> None:
    _, [line] = columns_of(parse("data.prepare.filter", "a > 1"), ["A", "a"])
    assert "case" in line


def test_the_page_s_expressions_are_expressions() -> None:
    text = (Path(__file__).parents[2] / "docs" / "prepare-inputs.md").read_text(encoding="utf-8")
    prepare = tomllib.loads(text.split("```toml\n")[1].split("```")[0])["data"]["prepare"]
    times = re.findall(r"`([^`]+)`", text.split("### Time")[1].split("The session's zone")[0])
    columns = {"ts": "TIMESTAMPTZ", "s": "BIGINT", "ms": "BIGINT", "tz_name": "VARCHAR"}
    texts = [prepare["filter"], *prepare["derive"].values(), *(t for t in times if "(" in t)]
    assert len(texts) >= 18
    for text in texts:
        expression = parse("k", text)
        if set(expression.reads) <= set(columns):
            rows = ", ".join(f"NULL::{kind} AS {name}" for name, kind in columns.items())
            assert duckdb.connect().sql(f"SELECT {text} FROM (SELECT {rows})").fetchall() == [(None,)]


def test_the_engine_reads_no_file_and_cannot_be_unlocked(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a\n1\n")
    frame = pa.table({"a": [1]})
    with engine() as connection:
        for sql in (
            f"SELECT * FROM '{tmp_path}/x.csv'",
            f"COPY (SELECT 1) TO '{tmp_path}/out.csv'",
            f"ATTACH '{tmp_path}/x.db'",
            "INSTALL httpfs",
            "LOAD httpfs",
            "SET threads = 4",
            "SET enable_external_access = true",
            "SET lock_configuration = false",
            "SELECT * FROM frame",
        ):
            with pytest.raises(duckdb.Error):
                connection.execute(sql)
        assert connection.execute("SELECT current_setting('threads')").fetchone() == (1,)
    assert len(frame) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.csv"]
