"""Somebody's own Parquet: found for what it is, and a draft that loads."""

from __future__ import annotations

import json
import random
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import DataError
from pipelines.footers import check_files
from pipelines.inspect import Findings, inspect
from pipelines.schema import Schema
from pipelines.schema_check import check_schema
from pipelines.segments import list_segments


def candidate_rows(count: int) -> list[dict[str, Any]]:
    rng = random.Random(1)
    rows = []
    for number in range(count):
        seen, bought, shown = rng.randrange(9), rng.randrange(4), rng.randint(2, 4)
        now = datetime(2026, 11, 20, tzinfo=UTC) + timedelta(minutes=number)
        clicks = [rng.randrange(2) for _ in range(shown)]
        rows.append(
            {
                "user_id": number % 20,
                "city": f"city {number % 20 % 7}",
                "age": [None, 20, 31, 44, 58, 23, 37, 61, 19, 70][number % 20 % 10],
                "page": rng.randrange(5),
                "interests": [f"topic {rng.randrange(9)}" for _ in range(rng.randrange(4))],
                "profile": [rng.random() for _ in range(3)],
                "request_id": f"r{number}",
                "time": now,
                "hist_item": [rng.randrange(99) for _ in range(seen)],
                "hist_click": [rng.randrange(2) for _ in range(seen)],
                "hist_time": [now - timedelta(hours=place + 1) for place in reversed(range(seen))],
                "buys_item": [rng.randrange(99) for _ in range(bought)],
                "buys_time": [now - timedelta(days=place + 1) for place in reversed(range(bought))],
                "item": [rng.randrange(99) for _ in range(shown)],
                "price": [rng.random() for _ in range(shown)],
                "click": clicks,
                "purchase": [rng.choice([0, 1, None]) if click else None for click in clicks],
                "is long, with a name": rng.random(),
            }
        )
    return rows


def history_rows(count: int) -> list[dict[str, Any]]:
    rng = random.Random(2)
    rows = []
    for number in range(count):
        length = rng.randint(1, 30)
        rows.append(
            {
                "uid": f"u{number}",
                "movie": [rng.randrange(50) for _ in range(length)],
                "rating": [rng.randrange(1, 6) for _ in range(length)],
                "ts": sorted(1_763_596_800_000 + rng.randrange(10**9) for _ in range(length)),
                "liked": [rng.choice([0, 1, None]) for _ in range(length)],
            }
        )
    return rows


def written(rows: list[dict[str, Any]], folder: Path) -> Findings:
    for day, part in (("2026-11-19", rows[::2]), ("2026-11-20", rows[1::2])):
        path = folder / f"dt={day}" / "part.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(part), path, row_group_size=50)
    return inspect(str(folder))


def drafted(findings: Findings) -> Schema:
    return Schema.model_validate_json(json.dumps(tomllib.loads(findings.schema_toml())["schema"]))


@pytest.mark.parametrize("rows", [candidate_rows(300), history_rows(300)], ids=["candidates", "history"])
def test_the_draft_loads_and_fits_itself_and_the_files(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    findings = written(rows, tmp_path / "rows")
    schema = drafted(findings)
    assert check_schema(schema) == []
    assert check_files(schema, list_segments(str(tmp_path / "rows"))) == []
    assert set(schema.columns) == set(rows[0])
    text = findings.schema_toml()
    assert all("# guess: " in line for line in text.splitlines() if line.startswith(tuple(rows[0])) and "role" in line)
    assert "MISSING" not in text


def test_candidates_histories_and_roles_are_told_apart(tmp_path: Path) -> None:
    schema = drafted(written(candidate_rows(300), tmp_path / "rows"))
    roles = {name: (column.role, column.kind, column.group, column.shares) for name, column in schema.columns.items()}
    assert schema.user == "user_id"
    assert schema.supervision == "candidates"
    assert roles["city"] == ("user", "id", "", "")
    assert roles["page"] == ("context", "id", "", "")
    assert roles["age"][:2] == ("user", "bucket")
    assert len(schema.columns["age"].boundaries) >= 3
    assert roles["interests"][1] == "ids"
    assert (roles["profile"][1], schema.columns["profile"].size) == ("vector", 3)
    assert roles["request_id"][0] == "request"
    assert roles["time"] == ("time", "time", "", "")
    assert roles["price"] == ("item", "dense", "candidates", "")
    assert roles["hist_item"] == ("item", "id", "history.hist", "item")
    assert roles["hist_click"] == ("action", "id", "history.hist", "")
    assert roles["buys_item"] == ("item", "id", "history.buys", "item")
    assert {name: history.time for name, history in schema.histories.items()} == {
        "hist": "hist_time",
        "buys": "buys_time",
    }
    assert schema.histories["hist"].max_length == 8
    assert {name: task.space for name, task in schema.tasks.items()} == {"click": "", "purchase": "click"}


def test_labels_beside_times_are_history_supervision_and_ratings_are_no_input_at_their_event(tmp_path: Path) -> None:
    schema = drafted(written(history_rows(300), tmp_path / "rows"))
    assert (schema.user, schema.supervision, schema.supervised_history) == ("uid", "history", "h1")
    assert {name: column.role for name, column in schema.columns.items()} == {
        "uid": "user", "movie": "item", "rating": "action", "ts": "time", "liked": "label",
    }  # fmt: skip
    assert schema.time_unit == "ms"


def test_findings_tell_lengths_values_nulls_and_rates(tmp_path: Path) -> None:
    rows = candidate_rows(300)
    findings = written(rows, tmp_path / "rows")
    assert (findings.rows, findings.files, findings.segments) == (300, 2, ("2026-11-19", "2026-11-20"))
    lengths = [len(row["hist_item"]) for row in rows]
    assert findings.column("hist_item").mean_length == pytest.approx(sum(lengths) / 300)
    assert findings.column("hist_item").max_length == max(lengths)
    assert findings.column("age").nulls == pytest.approx(sum(row["age"] is None for row in rows) / 300)
    assert findings.column("user_id").distinct == 20
    clicks = [click for row in rows for click in row["click"]]
    assert findings.column("click").rate == pytest.approx(sum(clicks) / len(clicks))
    text = "\n".join(findings.lines())
    assert f"0/1, rate {sum(clicks) / len(clicks):.4f}" in text
    assert "lists of equal length: hist_item, hist_click, hist_time" in text
    assert "sample of 300 rows" in text


def test_what_a_draft_lacks_is_said_at_its_head(tmp_path: Path) -> None:
    rows = [{"who": number, "things": [1, 2], "more": [3, 4]} for number in range(10)]
    text = written(rows, tmp_path / "rows").schema_toml()
    assert "# MISSING: no column is named like a user" in text
    assert "# MISSING: no list of 0 and 1 was found" in text


def test_nothing_to_look_at_and_a_draft_that_is_there_already(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone"):
        inspect(str(tmp_path / "gone"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no footer")
    with pytest.raises(DataError, match=r"bad\.parquet"):
        inspect(str(tmp_path / "bad.parquet"))
    findings = written(history_rows(10), tmp_path / "rows")
    findings.write_schema(tmp_path / "schema.toml")
    assert (tmp_path / "schema.toml").read_text() == findings.schema_toml()
    with pytest.raises(DataError, match="exists"):
        findings.write_schema(tmp_path / "schema.toml")
