"""What `data prepare` takes in: every kind of field, filters and derived columns, manifests; splits by user or file."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.carry import carry_window
from pipelines.config import Data, Prepare
from pipelines.errors import DataError, SchemaError
from pipelines.footers import check_files
from pipelines.hashing import derive_seed, ids_of, mix
from pipelines.prepare import PrepareReport, prepare
from pipelines.prepare_ray import ray_session
from pipelines.schema import Column, History, Schema, Task
from pipelines.schema_check import check_schema
from pipelines.segments import list_segments
from pipelines.windows import Pass
from tests.pipelines.prepare_reference import MIDNIGHT, Event, expected_rows, read_rows
from tests.pipelines.reference import assert_batch_equals

pytestmark = pytest.mark.timeout(120)
DAY = 86_400
LOG_TYPES = {
    "user": pa.large_string(), "account": pa.int64(), "age": pa.float64(), "interests": pa.list_(pa.int32()),
    "taste": pa.list_(pa.float32(), 3), "request": pa.int64(), "time": pa.int64(), "load": pa.float32(),
    "device": pa.dictionary(pa.int8(), pa.string()), "item": pa.int64(), "brand": pa.string(), "bot": pa.bool_(),
    "words": pa.large_list(pa.large_string()), "price": pa.float64(), "image": pa.list_(pa.float32(), 2),
    "sound": pa.list_(pa.float32()), "rating": pa.int8(),
}  # fmt: skip
LOG_SCHEMA = pa.schema(list(LOG_TYPES.items()))
DERIVE = {
    "ts": "to_timestamp(time) AT TIME ZONE 'UTC'",
    "hour": "hour(ts)",
    "weekday": "isodow(to_timestamp(time) AT TIME ZONE 'America/Sao_Paulo')",
    "liked": "rating > 3",
    "rated": "CASE WHEN rating IS NOT NULL THEN rating >= 3 END",
    "pence": "(price * 100)::BIGINT",
    "first_word": "words[1]",
    "pair": "[price, coalesce(rating, 0)]::FLOAT[2]",
    "upper_words": "list_transform(words, lambda w: upper(w))",
    "weight": "CASE WHEN brand = 'acme' THEN 2.5 ELSE 1 END::DOUBLE",
}
FILTER = "NOT bot AND item <> 13"


def item_fields(prefix: str, group: str, shared: bool) -> dict[str, Column]:
    """Every kind in a list group."""

    def column(name: str, kind: str, **more: Any) -> tuple[str, Column]:
        if shared and kind in ("id", "ids", "bucket"):
            more["shares"] = name
        source = more.pop("source", name)
        fields = {"role": "item", "kind": kind, "group": group, "source": source} | more
        return f"{prefix}{name}", Column.model_validate(fields)

    return dict(
        [
            column("item", "id"),
            column("brand", "id"),
            column("words", "ids"),
            column("loud", "ids", source="upper_words"),
            column("price_range", "bucket", boundaries=(1.0, 2.5, 7.0), source="price"),
            column("price", "dense"),
            column("pence", "dense"),
            column("image", "vector", size=2),
            column("pair", "vector", size=2),
            column("sound", "vector", size=3),
            column("first_word", "id"),
        ]
    )


SCHEMA = Schema(
    user="user",
    columns={
        "user": Column(role="user", kind="id"),
        "account": Column(role="user", kind="id"),
        "age": Column(role="user", kind="bucket", boundaries=(18.0, 30.0)),
        "interests": Column(role="user", kind="ids"),
        "taste": Column(role="user", kind="vector", size=3),
        "request": Column(role="request", kind="id"),
        "time": Column(role="time", kind="time"),
        "when": Column(role="key", kind="time", source="ts"),
        "device": Column(role="context", kind="id"),
        "hour": Column(role="context", kind="id"),
        "weekday": Column(role="context", kind="id"),
        "load": Column(role="context", kind="dense"),
    }
    | item_fields("", "candidates", shared=False)
    | {
        "liked": Column(role="label", kind="dense", group="candidates"),
        "rated": Column(role="label", kind="dense", group="candidates"),
        "weight": Column(role="weight", kind="dense", group="candidates"),
    }
    | item_fields("h_", "history.seen", shared=True)
    | {
        "h_rating": Column(role="action", kind="id", group="history.seen", source="rating"),
        "h_stars": Column(role="action", kind="dense", group="history.seen", source="rating"),
        "h_hour": Column(role="context", kind="id", group="history.seen", source="hour"),
        "h_device": Column(role="context", kind="id", group="history.seen", source="device"),
        "h_time": Column(role="time", kind="time", group="history.seen", source="time"),
        "liked_item": Column(role="item", kind="id", group="history.likes", source="item", shares="item"),
        "liked_time": Column(role="time", kind="time", group="history.likes", source="time"),
    },
    histories={
        "seen": History(max_length=8, time="h_time"),
        "likes": History(max_length=3, time="liked_time"),
    },
    tasks={"liked": Task(label="liked", weight="weight"), "rated": Task(label="rated", space="liked")},
)
SETTINGS: dict[str, Any] = {
    "request": "request",
    "derive": DERIVE,
    "filter": FILTER,
    "history_filter": {"likes": "liked"},
    "tie_keys": ("pence", "item"),
}


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with ray_session("", 2):
        yield


def make_events(seed: int, requests: int = 160, users: int = 15) -> list[Event]:
    rng = random.Random(seed)

    def floats(count: int) -> list[float]:
        """That float32 holds, so that rows read back are equal."""
        return [rng.choice([0.5, -1.25, 3.0]) for _ in range(count)]

    events = []
    for request in range(requests):
        user = rng.randrange(users)
        time = MIDNIGHT + rng.choice([-DAY, -3, 0, 7_200, 40_000, DAY - 1, DAY]) + rng.randrange(3)
        for item in rng.sample(range(40), rng.randint(1, 3)):
            events.append(
                {
                    "user": f"u{user}",
                    "account": 2**40 + user,
                    "age": rng.choice([None, 17.5, 18.0, 44.0]),
                    "interests": rng.choice([None, [], [3], [1, 2, None]]),
                    "taste": rng.choice([None, floats(3)]),
                    "request": request,
                    "time": time,
                    "device": rng.choice(["phone", "tv", None]),
                    "load": rng.choice([None, 0.25, 8.0]),
                    "item": item,
                    "brand": rng.choice(["acme", "böb", "", None]),
                    "words": rng.choice([None, [], ["red"], ["blue", None, "ö"]]),
                    "price": rng.choice([0.99, 1.0, 2.5, 20.0]),
                    "image": rng.choice([None, floats(2)]),
                    "sound": rng.choice([None, floats(3)]),
                    "rating": rng.choice([None, 1, 3, 5]),
                    "bot": rng.choice([None, True, *[False] * 8]),
                }
            )
    rng.shuffle(events)
    return events


def derive(event: Event) -> Event:
    """DERIVE in Python."""
    moment = datetime.fromtimestamp(event["time"], UTC)
    rating, words = event["rating"], event["words"]
    return event | {
        "ts": moment.replace(tzinfo=None),
        "hour": moment.hour,
        "weekday": moment.astimezone(ZoneInfo("America/Sao_Paulo")).isoweekday(),
        "liked": None if rating is None else rating > 3,
        "rated": None if rating is None else rating >= 3,
        "pence": round(event["price"] * 100),
        "first_word": words[0] if words else None,
        "pair": [pytest.approx(event["price"], rel=1e-6), rating or 0],
        "upper_words": None if words is None else [None if w is None else w.upper() for w in words],
        "weight": 2.5 if event["brand"] == "acme" else 1.0,
    }


def passing(events: list[Event]) -> list[Event]:
    """Those that FILTER lets pass, with derived columns."""
    return [derive(event) for event in events if event["bot"] is False and event["item"] != 13]


def write(events: list[Event], folder: Path, files: int = 3) -> Path:
    folder.mkdir(parents=True)
    for index in range(files):
        part = events[index * len(events) // files : (index + 1) * len(events) // files]
        pq.write_table(pa.Table.from_pylist(part, LOG_SCHEMA), folder / f"{index}.parquet", row_group_size=50)
    return folder


def run(log: Path | str, out: Path, schema: Schema = SCHEMA, **settings: Any) -> tuple[PrepareReport, Data]:
    data = Data(
        rows=str(out), prepare=Prepare(log=str(log), **(SETTINGS | settings)), global_batch=16, window_batches=2
    )
    return prepare(schema, data, out), data


def by_request(rows: list[Event]) -> list[Event]:
    return sorted(rows, key=lambda row: row["request"])


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
