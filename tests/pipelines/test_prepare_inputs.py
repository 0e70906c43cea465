"""What `data prepare` takes in: every kind of field, filters and derived columns, manifests; splits by user or file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.carry import carry_window
from pipelines.errors import DataError, SchemaError
from pipelines.footers import check_files
from pipelines.hashing import derive_seed, ids_of, mix
from pipelines.prepare_ray import ray_session
from pipelines.schema import Column
from pipelines.schema_check import check_schema
from pipelines.segments import list_segments
from pipelines.windows import Pass
from tests.pipelines.kinds_log import (
    DAY,
    DERIVE,
    LOG_SCHEMA,
    SCHEMA,
    by_request,
    make_events,
    passing,
    run,
    write,
)
from tests.pipelines.prepare_reference import Event, expected_rows, read_rows
from tests.pipelines.reference import assert_batch_equals

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with ray_session("", 2):
        yield


def test_every_kind_goes_from_the_log_into_rows_and_batches(tmp_path: Path) -> None:
    events = make_events(1)
    assert check_schema(SCHEMA) == []
    report, data = run(write(events, tmp_path / "log"), tmp_path / "rows", partitions=2, row_group_rows=9)
    left = passing(events)
    assert report.events == len(left) < len(events)
    assert report.dropped == {"events that data.prepare.filter does not let pass": len(events) - len(left)}
    expected = expected_rows(SCHEMA, data, left)
    assert read_rows(tmp_path / "rows") == expected
    # … readable by others …
    pattern = f"{tmp_path}/rows/*/*.parquet"
    total = sum(len(rows) for rows in expected.values())
    assert duckdb.sql(f"SELECT count(*), sum(len(image)) FROM '{pattern}'").fetchall() == [(total, len(left))]
    assert pl.read_parquet(pattern).height == total
    # … and into batches.
    segments = list_segments(str(tmp_path / "rows"))
    assert check_files(SCHEMA, segments) == []
    pass_ = Pass(SCHEMA, data, segments, seed=1)
    seen = 0
    for window in pass_.windows_from():
        files = {stretch.file: stretch.path for stretch in window.stretches}
        read = {file: pq.ParquetFile(path).read().to_pylist() for file, path in files.items()}
        for batch in carry_window(window, pass_.reading, 1, [0])[0]:
            rows = [read[file][row] for file, row in zip(batch.file.tolist(), batch.row.tolist(), strict=True)]
            assert_batch_equals(batch, SCHEMA, rows)
            assert set(batch.dense) >= {"taste", "load", "image", "pair", "sound", "h_image", "h_pair", "h_stars"}
            assert set(batch.fields) >= {"age", "interests", "hour", "h_hour", "words", "h_loud", "price_range"}
            seen += batch.rows
    assert seen == total


def test_rows_do_not_depend_on_partitions_or_on_how_the_log_is_cut(tmp_path: Path) -> None:
    events = make_events(2)
    run(write(events, tmp_path / "log", files=1), tmp_path / "one", partitions=1)
    run(write(events, tmp_path / "many", files=5), tmp_path / "five", partitions=5)
    assert read_rows(tmp_path / "one") == read_rows(tmp_path / "five")


def test_older_files_may_lack_columns_of_any_kind_and_expressions_see_the_defaults(tmp_path: Path) -> None:
    events = make_events(3)
    folder = write(events, tmp_path / "log", files=2)
    older = pq.read_table(folder / "0.parquet")
    defaults: dict[str, Any] = {"words": "none", "sound": 0.5, "brand": "acme", "interests": 7, "device": "pc"}
    pq.write_table(older.drop_columns(list(defaults)), folder / "0.parquet")
    columns = {n: c.model_copy(update={"default": defaults.get(n)}) for n, c in SCHEMA.columns.items()}
    schema = SCHEMA.model_copy(update={"columns": columns})
    _, data = run(folder, tmp_path / "rows", schema)
    filled = {"words": ["none"], "sound": [0.5] * 3, "brand": "acme", "interests": [7], "device": "pc"}
    whole = [event | filled if place < len(older) else event for place, event in enumerate(events)]
    assert read_rows(tmp_path / "rows") == expected_rows(schema, data, passing(whole))


def test_a_split_by_users_parts_whole_users_by_a_seeded_hash(tmp_path: Path) -> None:
    events = make_events(4, requests=400, users=120)
    log = write(events, tmp_path / "log")
    report, data = run(log, tmp_path / "rows", split="users", fractions=(0.5, 0.3, 0.2), split_seed=7, partitions=3)
    expected: dict[str, list[Event]] = {}
    seed = derive_seed("split by user", 7)
    for rows in expected_rows(SCHEMA, data, passing(events)).values():
        for row in rows:
            place = Fraction(int(mix(ids_of(pa.array([row["user"]])), seed)[0]), 2**64)
            name = "1-train" if place < Fraction(1, 2) else "2-valid" if place < Fraction(4, 5) else "3-test"
            expected.setdefault(f"segment={name}", []).append(row)
    found = read_rows(tmp_path / "rows")
    assert {n: by_request(rows) for n, rows in found.items()} == {n: by_request(r) for n, r in expected.items()}
    users = {name: {row["user"] for row in rows} for name, rows in found.items()}
    assert len(set().union(*users.values())) == sum(len(names) for names in users.values())
    assert {f"segment={s.name}": s.users for s in report.segments} == {n: len(u) for n, u in users.items()}
    total = sum(segment.users for segment in report.segments)
    for segment, share in zip(report.segments, (0.5, 0.3, 0.2), strict=True):
        assert abs(segment.users / total - share) < 0.15
        words = f"{segment.users:,} users ({segment.users / total:.1%} of all)"
        assert any(line.startswith(segment.name) and words in line for line in report.lines())

    run(log, tmp_path / "again", split="users", fractions=(0.5, 0.3, 0.2), split_seed=7, partitions=1)
    assert read_rows(tmp_path / "again") == found
    run(log, tmp_path / "other", split="users", fractions=(0.8, 0.2), split_seed=8)
    other = read_rows(tmp_path / "other")
    assert list(other) == ["segment=1-train", "segment=2-test"]
    assert {row["user"] for row in other["segment=2-test"]} != users["segment=3-test"]


def manifest(log: Path, path: Path, **changes: Any) -> Path:
    """Of a log of one file a day: segments named by day."""
    entries = []
    for file in sorted(log.glob("*.parquet")):
        rows = pq.read_metadata(file).num_rows
        entries.append({"path": str(file), "rows": rows, "segment": file.stem} | changes.get(file.stem, {}))
    path.write_text(json.dumps(entries))
    return path


def by_day(events: list[Event], folder: Path) -> Path:
    folder.mkdir()
    days: dict[int, list[Event]] = {}
    for event in events:
        days.setdefault(event["time"] // DAY, []).append(event)
    for day, mine in days.items():
        pq.write_table(pa.Table.from_pylist(mine, LOG_SCHEMA), folder / f"day-{day}.parquet")
    return folder


def test_a_manifest_gives_the_rows_of_its_folder_and_may_name_the_segments(tmp_path: Path) -> None:
    events = make_events(5)
    log = by_day(events, tmp_path / "log")
    listed = manifest(log, tmp_path / "m.json")
    run(log, tmp_path / "folder")
    run(listed, tmp_path / "listed")
    rows = read_rows(tmp_path / "folder")
    assert read_rows(tmp_path / "listed") == rows
    report, _ = run(listed, tmp_path / "named", split="manifest")
    named = read_rows(tmp_path / "named")
    assert list(named) == [f"segment={file.stem}" for file in sorted(log.glob("*.parquet"))]
    assert list(named.values()) == list(rows.values())  # days by another name
    assert [segment.name for segment in report.segments] == [file.stem for file in sorted(log.glob("*.parquet"))]


def test_segments_of_a_manifest_that_are_not_in_time_order_are_told(tmp_path: Path) -> None:
    log = by_day(make_events(6), tmp_path / "log")
    first, second, *_ = sorted(log.glob("*.parquet"))
    changes = {first.stem: {"segment": "b"}, second.stem: {"segment": "a"}}
    swapped = manifest(log, tmp_path / "m.json", **changes)
    with pytest.raises(DataError) as error:
        run(swapped, tmp_path / "rows", split="manifest")
    assert any("segment 'a' has events up to 2025" in line and "'b' from 2025" in line for line in lines_of(error))
    with pytest.raises(DataError) as error:
        run(log, tmp_path / "rows", split="manifest")
    assert any("names no segments" in line for line in lines_of(error))
    assert not (tmp_path / "rows").exists()


def lines_of(error: pytest.ExceptionInfo[Any]) -> list[str]:
    for problem in error.value.problems:
        assert "\n" not in problem
        assert problem.count("→") == 2, problem
    return list(error.value.problems)


def test_settings_are_told_at_once_before_the_log_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SchemaError) as error:
        run(
            tmp_path / "nowhere",
            tmp_path / "rows",
            split="users",
            fractions=(0.5, 0.6),
            filter="random() < 0.1",
            derive={"ok": "item + 1", "total": "sum(item)", "_x": "1", "bad": "item +"},
        )
    lines = lines_of(error)
    assert len(lines) == 5
    for word in ("fractions", "random()", "sum()", "'_x'", "data.prepare.derive.bad"):
        assert any(word in line for line in lines), word


def test_what_does_not_fit_the_log_is_told_at_once_and_before_a_row_is_read(tmp_path: Path) -> None:
    log = by_day(make_events(7), tmp_path / "log")
    file = sorted(log.glob("*.parquet"))[0]
    content = bytearray(file.read_bytes())
    content[4:2000] = b"\xff" * 1996  # rows cannot be read; the footer is whole
    file.write_bytes(bytes(content))
    listed = manifest(log, tmp_path / "m.json", **{file.stem: {"rows": 3}})
    with pytest.raises(DataError) as error:
        run(
            listed,
            tmp_path / "rows",
            derive=DERIVE | {"item": "1", "lost": "gone + 1", "bad": "hour(brand + 1)", "more": "bad + lost + item"},
            tie_keys=("nothing",),
        )
    lines = lines_of(error)
    assert len(lines) == 5
    told = ("3 by its manifest", "derive 'item' is a column", "no column 'gone'", "'nothing' is missing", "brand + 1")
    for word in told:
        assert any(word in line for line in lines), word

    with pytest.raises(DataError) as error:
        run(log, tmp_path / "rows", filter="item", derive=DERIVE | {"hour": "hour(brand + 1)", "late": "hour > 3"})
    lines = lines_of(error)
    assert len(lines) == 2
    assert any("a filter is true or false" in line for line in lines)
    assert any("hour(brand + 1)" in line for line in lines)

    changed = {
        "age": Column(role="user", kind="ids"),
        "taste": Column(role="user", kind="vector", size=4),
        "device": Column(role="context", kind="dense"),
        "words": Column(role="item", kind="ids", group="candidates", source="brand"),
        "load": Column(role="context", kind="dense", source="liked", default=0.5),
    }
    schema = SCHEMA.model_copy(update={"columns": SCHEMA.columns | changed})
    with pytest.raises(DataError) as error:
        run(log, tmp_path / "rows", schema, tie_keys=("price", "words"), history_filter={"likes": "brand"})
    lines = lines_of(error)
    for word in ("'age'", "size = 4", "'device'", "schema column 'words'", "tie_keys", "history_filter"):
        assert any(word in line for line in lines), word
    assert not (tmp_path / "rows").exists()


def test_a_value_that_no_expression_can_take_stops_the_job_with_its_file_and_the_filter_spares_it(
    tmp_path: Path,
) -> None:
    events = make_events(8)
    events[0] |= {"brand": "not a number", "bot": True}
    number = {"number": "CASE WHEN brand LIKE '%num%' THEN brand END::INTEGER"}
    columns = SCHEMA.columns | {"number": Column(role="context", kind="id")}
    schema = SCHEMA.model_copy(update={"columns": columns})
    log = write(events, tmp_path / "log")
    run(log, tmp_path / "spared", schema, derive=DERIVE | number)
    with pytest.raises(DataError) as error:
        run(log, tmp_path / "rows", schema, derive=DERIVE | number, filter="")
    [line] = lines_of(error)
    assert "'not a number'" in line
    assert "0.parquet" in line
    assert not (tmp_path / "rows").exists()


def test_users_times_and_requests_may_be_derived_and_events_without_them_are_counted(tmp_path: Path) -> None:
    events = make_events(9)
    derived = DERIVE | {
        "who": "nullif(user, 'u3')",
        "asked": "CASE WHEN request <> 5 THEN 'r' || request END",
        "at": "make_timestamp(time * 1000000 + 500)",
    }
    columns = SCHEMA.columns | {
        "user": Column(role="user", kind="id", source="who"),
        "request": Column(role="request", kind="id", source="asked"),
        "time": Column(role="time", kind="time", source="at"),
        "h_time": Column(role="time", kind="time", group="history.seen", source="at"),
        "liked_time": Column(role="time", kind="time", group="history.likes", source="at"),
    }
    schema = SCHEMA.model_copy(update={"columns": columns})
    report, _ = run(write(events, tmp_path / "log"), tmp_path / "rows", schema, derive=derived, request="asked")
    left = passing(events)
    nobody = [event for event in left if event["user"] == "u3"]
    unasked = [event for event in left if event["user"] != "u3" and event["request"] == 5]
    assert report.dropped["events without 'who'"] == len(nobody) > 0
    assert report.dropped.get("events without 'asked'", 0) == len(unasked)
    assert report.events == len(left) - len(nobody) - len(unasked)
    rows = [row for found in read_rows(tmp_path / "rows").values() for row in found]
    assert all(row["time"].microsecond == 500 and row["request"].startswith("r") for row in rows)
