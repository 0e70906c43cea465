"""No row knows the future, every event is supervised once, and the same log gives the same rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from pipelines.config import Data, Prepare
from pipelines.errors import DataError, SchemaError
from pipelines.prepare import PrepareReport, prepare
from pipelines.prepare_ray import ray_session
from pipelines.schema import Column, History, Schema, Task
from pipelines.schema_check import check_schema
from tests.pipelines.prepare_reference import expected_rows, random_events, read_rows, write_events

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with ray_session("", 2):
        yield


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(EVENTS, tmp_path_factory.mktemp("prepare") / "log")


EVENTS = random_events(seed=3)
STATIC = {
    "user": Column(role="user", kind="id"),
    "country": Column(role="user", kind="id"),
    "request": Column(role="request", kind="id"),
    "time": Column(role="time", kind="time"),
}
CANDIDATES = {
    "item": Column(role="item", kind="id", group="candidates"),
    "author": Column(role="item", kind="id", group="candidates"),
    "tags": Column(role="item", kind="ids", group="candidates"),
    "click": Column(role="label", kind="dense", group="candidates"),
    "buy": Column(role="label", kind="dense", group="candidates"),
}


def history(name: str, *, known: bool = False) -> dict[str, Column]:
    columns = {
        f"{name}_item": Column(role="item", kind="id", group=f"history.{name}", source="item", shares="item"),
        f"{name}_tags": Column(role="item", kind="ids", group=f"history.{name}", source="tags", shares="tags"),
        f"{name}_click": Column(role="action", kind="id", group=f"history.{name}", source="click"),
        f"{name}_time": Column(role="time", kind="time", group=f"history.{name}", source="time"),
    }
    if known:
        columns[f"{name}_known"] = Column(role="time", kind="time", group=f"history.{name}", source="known")
    return columns


TASKS = {"click": Task(label="click"), "buy": Task(label="buy", space="click")}
SEVERAL = Schema(
    user="user",
    columns=STATIC | CANDIDATES | history("views") | history("clicks") | history("late", known=True),
    histories={
        "views": History(max_length=6, time="views_time"),
        "clicks": History(max_length=3, time="clicks_time"),
        "late": History(max_length=2, time="late_time", action_time="late_known"),
    },
    tasks=TASKS,
)
ORDERED = Schema(
    user="user",
    ties="order",
    columns=STATIC | CANDIDATES | history("views"),
    histories={"views": History(max_length=6, time="views_time")},
    tasks=TASKS,
)


def supervised_history(ties: Any, others: dict[str, Column], histories: dict[str, History]) -> Schema:
    columns = {
        "user": STATIC["user"],
        "country": STATIC["country"],
        "item": Column(role="item", kind="id", group="history.own"),
        "tags": Column(role="item", kind="ids", group="history.own"),
        "rating": Column(role="action", kind="id", group="history.own", source="click"),
        "click": Column(role="label", kind="dense", group="history.own"),
        "buy": Column(role="label", kind="dense", group="history.own"),
        "time": Column(role="time", kind="time", group="history.own"),
    }
    return Schema(
        user="user",
        supervision="history",
        supervised_history="own",
        ties=ties,
        columns=columns | others,
        histories={"own": History(max_length=12, time="time")} | histories,
        tasks=TASKS,
    )


CLICKS = {"clicks": History(max_length=3, time="clicks_time")}
WITH_FILTERS = {"request": "request", "history_filter": {"clicks": "click", "late": "click"}}
STRETCHES = {"context_events": 7, "supervised_events": 5}
CASES: dict[str, tuple[Schema, dict[str, Any]]] = {
    "candidates": (SEVERAL, WITH_FILTERS),
    "candidates, tie keys and a least history": (SEVERAL, WITH_FILTERS | {"tie_keys": ("place",), "min_history": 4}),
    "candidates, ties ordered": (ORDERED, {"request": "request", "tie_keys": ("place",), "min_history": 1}),
    "history": (
        supervised_history("exclude", history("clicks"), CLICKS),
        STRETCHES | {"min_history": 3, "history_filter": {"clicks": "click"}},
    ),
    "history, ties ordered, fractions": (
        supervised_history("order", {}, {}),
        STRETCHES | {"min_history": 3, "tie_keys": ("place",), "split": "fractions"},
    ),
}


def run(schema: Schema, log: Path | str, out: Path, **settings: Any) -> tuple[PrepareReport, Data]:
    data = Data(rows=str(out), prepare=Prepare(log=str(log), **settings))
    return prepare(schema, data, out), data


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_a_slow_reference(case: str, log: Path, tmp_path: Path) -> None:
    schema, settings = CASES[case]
    assert check_schema(schema) == []
    report, data = run(schema, log, tmp_path / "rows", partitions=3, row_group_rows=7, **settings)
    found, expected = read_rows(tmp_path / "rows"), expected_rows(schema, data, EVENTS)
    assert list(found) == sorted(expected)
    assert len(found) >= 3
    for segment, rows in expected.items():
        assert found[segment] == rows, segment
    assert report.events == len(EVENTS)
    assert {s.name: s.rows for s in report.segments} == {n.partition("=")[2]: len(rows) for n, rows in expected.items()}


def test_no_history_holds_the_future_and_ties_go_both_ways(log: Path, tmp_path: Path) -> None:
    run(SEVERAL, log, tmp_path / "exclude", **WITH_FILTERS)
    seen = 0
    for rows in read_rows(tmp_path / "exclude").values():
        for row in rows:
            seen += len(row["views_time"]) + len(row["clicks_time"]) + len(row["late_known"])
            assert all(t < row["time"] for name in ("views", "clicks", "late") for t in row[f"{name}_time"])
            assert all(t < row["time"] for t in row["late_known"])
            assert all(row["clicks_click"])
            assert row["views_time"] == sorted(row["views_time"])
    assert seen > 1000
    run(ORDERED, log, tmp_path / "order", request="request", tie_keys=("place",))
    ordered = [row for rows in read_rows(tmp_path / "order").values() for row in rows]
    assert all(t <= row["time"] for row in ordered for t in row["views_time"])
    assert any(row["time"] in row["views_time"] for row in ordered)


@pytest.mark.parametrize("split", ["time", "fractions"])
def test_every_event_with_enough_history_is_supervised_exactly_once(split: str, log: Path, tmp_path: Path) -> None:
    places = {"place": Column(role="key", kind="id", group="history.own")}
    schema = supervised_history("order", places, {})
    settings = STRETCHES | {"min_history": 4, "tie_keys": ("place",), "split": split}
    report, _ = run(schema, log, tmp_path / "rows", **settings)
    supervised: Counter[int] = Counter()
    shown: Counter[int] = Counter()
    for rows in read_rows(tmp_path / "rows").values():
        for row in rows:
            shown.update(row["place"])
            supervised.update(p for p, label in zip(row["place"], row["click"], strict=True) if label is not None)
            assert sum(label is not None for label in row["click"]) <= 5
            assert sum(label is None for label in row["click"]) <= 7
    by_user: dict[str, list[dict[str, Any]]] = {}
    for event in sorted(EVENTS, key=lambda e: (e["time"], e["place"])):
        by_user.setdefault(event["user"], []).append(event)
    assert set(supervised) == {event["place"] for mine in by_user.values() for event in mine[4:]}
    assert set(supervised.values()) == {1}
    assert set(shown) == {event["place"] for mine in by_user.values() if len(mine) > 4 for event in mine}
    assert report.supervised == len(supervised)
    assert sum(report.dropped.values()) == len(EVENTS) - len(supervised)


def test_two_runs_give_the_same_bytes_and_other_partitions_the_same_rows(log: Path, tmp_path: Path) -> None:
    for name, partitions in (("first", 2), ("again", 2), ("many", 5)):
        run(SEVERAL, log, tmp_path / name, partitions=partitions, **WITH_FILTERS)
    files = sorted(p.relative_to(tmp_path / "first") for p in (tmp_path / "first").rglob("*.parquet"))
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*.parquet"))
    assert all((tmp_path / "first" / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)
    assert len(list((tmp_path / "many").rglob("*.parquet"))) > len(files)
    assert read_rows(tmp_path / "many") == read_rows(tmp_path / "first")


def test_duckdb_reads_the_rows_and_days_break_at_midnight_utc(log: Path, tmp_path: Path) -> None:
    run(SEVERAL, log, tmp_path / "rows", **WITH_FILTERS)
    rows = duckdb.sql(
        f"from read_parquet('{tmp_path}/rows/*/*.parquet', hive_partitioning=true, hive_types_autocast=false)"
    )
    days = duckdb.sql(
        "select dt, count(*), min(time), max(time), sum(len(item)) from rows group by dt order by dt"
    ).fetchall()
    assert [day[0] for day in days] == ["2025-11-19", "2025-11-20", "2025-11-21"]
    borders = [(day[2] // 86_400, day[3] // 86_400) for day in days]
    assert borders == [(20_411, 20_411), (20_412, 20_412), (20_413, 20_413)]
    assert sum(day[4] for day in days) == len(EVENTS)
    assert rows.filter("len(item) != len(click) or len(views_item) != len(views_time)").fetchall() == []


def test_events_without_user_time_or_request_are_left_out_and_reported(tmp_path: Path) -> None:
    broken = [dict(event) for event in EVENTS]
    broken[0]["user"], broken[1]["time"], broken[2]["request"], broken[3]["request"] = None, None, None, None
    report, data = run(SEVERAL, write_events(broken, tmp_path / "log"), tmp_path / "rows", **WITH_FILTERS)
    whole = {"events without 'user'": 1, "events without 'time'": 1, "events without 'request'": 2}
    assert report.dropped == whole
    assert report.events == len(EVENTS) - 4
    assert sorted(read_rows(tmp_path / "rows").items()) == sorted(expected_rows(SEVERAL, data, broken[4:]).items())
    assert any("left out: 2 events without 'request'" in line for line in report.lines())


def test_older_files_may_lack_a_column_with_a_default_and_store_narrower_types(tmp_path: Path) -> None:
    folder = write_events(EVENTS, tmp_path / "log", files=2)
    older = pq.read_table(folder / "0.parquet").drop_columns(["author"])
    older = older.set_column(older.column_names.index("item"), "item", older["item"].cast(pa.int16()))
    pq.write_table(older, folder / "0.parquet")
    author = Column(role="item", kind="id", group="candidates", default="unknown")
    schema = SEVERAL.model_copy(update={"columns": SEVERAL.columns | {"author": author}})
    _, data = run(schema, folder, tmp_path / "rows", **WITH_FILTERS)
    events = [dict(event) for event in EVENTS]
    for event in events[: len(older)]:
        event["author"] = "unknown"
    assert read_rows(tmp_path / "rows") == expected_rows(schema, data, events)


def lines_of(error: pytest.ExceptionInfo[Any]) -> str:
    for problem in error.value.problems:
        assert "\n" not in problem
        assert problem.count("→") == 2, problem
    return str(error.value)


def test_bad_logs_are_told_in_one_line_each_and_leave_nothing_behind(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows"
    with pytest.raises(DataError) as error:
        run(SEVERAL, tmp_path / "nowhere", out)
    assert "nowhere" in lines_of(error)

    bad = write_events(EVENTS, tmp_path / "bad")
    (bad / "0.parquet").write_bytes((bad / "0.parquet").read_bytes()[:-100])
    (bad / "1.parquet").write_bytes(b"")
    with pytest.raises(DataError) as error:
        run(SEVERAL, bad, out)
    assert len(error.value.problems) == 2
    assert "0.parquet" in lines_of(error)

    short = write_events(EVENTS, tmp_path / "short")
    table = pq.read_table(short / "2.parquet")
    pq.write_table(table.drop_columns(["click", "place"]), short / "2.parquet")
    with pytest.raises(DataError) as error:
        run(SEVERAL, short, out, tie_keys=("place",))
    assert len(error.value.problems) == 2
    assert "'click'" in lines_of(error)
    assert "'place'" in lines_of(error)

    empty = write_events([], tmp_path / "empty")
    with pytest.raises(DataError) as error:
        run(SEVERAL, empty, out)
    assert "no events" in lines_of(error)
    assert not out.exists()
    assert not list(tmp_path.glob(".rows*"))


def test_a_row_group_that_cannot_be_read_stops_the_job_with_its_line(tmp_path: Path) -> None:
    folder = write_events(EVENTS, tmp_path / "log")
    path = folder / "1.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = b"\xff" * 396  # the footer stays whole
    path.write_bytes(bytes(content))
    with pytest.raises(DataError) as error:
        run(SEVERAL, folder, tmp_path / "rows", **WITH_FILTERS)
    assert "1.parquet" in lines_of(error)
    assert not (tmp_path / "rows").exists()


def test_settings_that_contradict_the_schema_are_all_told_at_once(log: Path, tmp_path: Path) -> None:
    schema = supervised_history("exclude", {}, {})
    settings = {
        "history_filter": {"gone": "click"},
        "split": "fractions",
        "fractions": (0.5, 0.4),
        "supervised_events": 90,
    }
    with pytest.raises(SchemaError) as error:
        run(schema, log, tmp_path / "rows", **settings)
    assert len(error.value.problems) == 3
    text = lines_of(error)
    assert all(word in text for word in ("gone", "fractions", "max_length 12"))


def test_a_folder_with_something_in_it_is_never_written_over(log: Path, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(DataError) as error:
        run(SEVERAL, log, tmp_path)
    assert "not empty" in lines_of(error)
    assert (tmp_path / "keep.txt").read_text() == "mine"


def test_the_ray_of_the_process_is_used_and_left_running(log: Path, tmp_path: Path) -> None:
    run(ORDERED, log, tmp_path / "rows", request="request", tie_keys=("place",))
    assert ray.is_initialized()


def test_days_are_added_and_refreshed_by_ray_tasks(tmp_path: Path) -> None:
    out, days = tmp_path / "rows", sorted({event["time"] // 86_400 for event in EVENTS})
    parts = {day: [event for event in EVENTS if event["time"] // 86_400 == day] for day in days}
    for number, day in enumerate(days):
        late = parts[days[0]][:3] if number == 2 else []
        mine = parts[day][3:] if number == 0 else parts[day]
        write_events([*mine, *late], tmp_path / "log" / str(day), files=1)
        report, data = run(SEVERAL, tmp_path / "log", out, **WITH_FILTERS)
    assert sum(report.late.values()) == 3
    report = prepare(SEVERAL, data, out, refresh=True)
    assert {segment.version for segment in report.segments} == {1, 2}
    run(SEVERAL, tmp_path / "log", tmp_path / "rebuilt", **WITH_FILTERS)
    assert read_rows(out) == read_rows(tmp_path / "rebuilt")
    assert ray.is_initialized()
