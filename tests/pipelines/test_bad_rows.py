"""Bad rows: named, or blank and written down; no other row's batch changes by a bit."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.batch import QUARANTINED, TRAINED, Batch
from pipelines.carry import carry_window
from pipelines.errors import DataError
from pipelines.footers import check_files
from pipelines.schema import MISSING_ID, Schema
from pipelines.segments import Segment
from pipelines.windows import Pass
from tests.pipelines.reference import assert_batch_equals
from tests.pipelines.rows import make_data, make_rows, make_schema, to_table, write_rows

SHOWN: dict[str, Any] = {
    "item": [1], "words": [[]], "image": [[1.0, 2.0]], "click": [1], "order": [1], "ips": [1.0],
}  # fmt: skip
INF, NAN = float("inf"), float("nan")
BAD: list[tuple[dict[str, Any], str, str, str]] = [
    (SHOWN | {"click": [3]}, "click", "3", "labels are 0, 1 or null"),
    (SHOWN | {"order": [NAN]}, "order", "nan", "labels are 0, 1 or null"),
    (SHOWN | {"ips": [-1.0]}, "ips", "-1", "weights are finite and not negative"),
    (SHOWN | {"ips": [INF]}, "ips", "inf", "weights are finite and not negative"),
    (SHOWN | {"image": [[1.0]]}, "image", "1 floats", "size = 2"),
    (SHOWN | {"image": [[1.0, NAN]]}, "image", "nan", "finite numbers"),
    (SHOWN | {"click": [1, 0]}, "click", "a list of 2 (column 'item': 1)", "group candidates have one length"),
    ({"score": NAN}, "score", "nan", "numbers are finite"),
    ({"score": -INF}, "score", "-inf", "numbers are finite"),
    ({"slot": MISSING_ID}, "slot", str(MISSING_ID), "stands for null"),
    ({"late": 10**6}, "late", "1000000", "max_id"),
    ({"late": -1}, "late", "-1", "max_id"),
    ({"tags": [5, -7]}, "tags", "-7", "max_id"),
    ({"time": None}, "time", "null", "has its time"),
    ({"time": 2**60}, "time", str(2**60), "a time in s is at most"),
    ({"user_id": None}, "user_id", "null", "every row names its user"),
    ({"b_time": [5, 4], "b_item": [1, 2]}, "b_time", "an earlier time after a later one", "oldest first"),
    ({"b_time": [5, None], "b_item": [1, 2]}, "b_time", "null", "has its time"),
]
LIMITS = {"late": 999, "tags": 99}


def strict_schema() -> Schema:
    columns = dict(make_schema().columns)
    columns |= {name: columns[name].model_copy(update={"max_id": limit}) for name, limit in LIMITS.items()}
    return make_schema(columns=columns)


def good_rows(count: int, seed: int) -> list[dict[str, Any]]:
    rows = make_rows(count, seed)
    for row in rows:
        row["tags"] = [abs(tag) for tag in row["tags"]] if row["tags"] else row["tags"]
        row["late"] = 7
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = to_table(rows).append_column("late", pa.array([row["late"] for row in rows]))
    pq.write_table(table, path, row_group_size=7)
    return path


def blank(schema: Schema) -> dict[str, Any]:
    """What a quarantined row reads as."""
    empty = {name: [] if spec.group else None for name, spec in schema.columns.items()}
    return empty | {"time": 0}


def read(files: list[Path], schema: Schema, quarantine: str = "", ranks: int = 2, **data: Any) -> list[Batch]:
    pass_ = Pass(
        schema,
        make_data(files[0], **data),
        [Segment("day/1", tuple(str(file) for file in files))],
        seed=3,
        quarantine=quarantine,
    )
    found = []
    for window in pass_.windows_from():
        carried = carry_window(window, pass_.reading, ranks, range(ranks))
        found += [batch for rank in carried.values() for batch in rank]
    return found


def entries(folder: Path) -> list[dict[str, Any]]:
    return [line for file in sorted(folder.iterdir()) for line in pq.read_table(file).to_pylist()]


@pytest.mark.parametrize(("change", "column", "value", "reason"), BAD)
def test_a_bad_row_is_named_or_set_aside(
    tmp_path: Path, change: dict[str, Any], column: str, value: str, reason: str
) -> None:
    rows, schema = good_rows(20, 0), strict_schema()
    rows[17] |= change
    path = write(tmp_path / "rows.parquet", rows)
    with pytest.raises(DataError) as caught:
        read([path], schema)
    [line] = caught.value.problems
    for part in (f"column '{column}' holds {value} in '{path}' row 17 → ", reason):
        assert part in line
    for batch in read([path], schema, str(tmp_path / "aside")):
        assert batch.status.tolist() == [QUARANTINED if row == 17 else TRAINED for row in batch.row]
    [entry] = entries(tmp_path / "aside")
    assert (entry["segment"], entry["epoch"], entry["window"]) == ("day/1", 0, 1)
    assert (entry["path"], entry["row"], entry["column"], entry["value"]) == (str(path), 17, column, value)
    assert reason in entry["reason"]
    assert json.loads(entry["raw"])["v_item"] == rows[17]["v_item"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_bad_row_changes_another(tmp_path: Path, seed: int) -> None:
    """Against the slow reference, bad rows blank: of any kind, anywhere, as many as come."""
    random_, schema = random.Random(seed), strict_schema()
    rows = good_rows(60, seed)
    spoilt = random_.sample(range(60), random_.choice([1, 7, 40]))
    for index in spoilt:
        for change, *_ in random_.sample(BAD, random_.choice([1, 1, 3])):
            rows[index] |= change
    path = write(tmp_path / "rows.parquet", rows)
    aside = tmp_path / "aside"
    for batch in read([path], schema, str(aside)):
        expected = [blank(schema) if index in spoilt else rows[index] for index in batch.row]
        if not batch.filler:
            assert_batch_equals(batch, schema, expected)
            assert (batch.status == QUARANTINED).tolist() == [index in spoilt for index in batch.row]
    assert {entry["row"] for entry in entries(aside)} == set(spoilt)
    before = {file.name: file.read_bytes() for file in aside.iterdir()}
    read([path], schema, str(aside), ranks=1)
    assert {file.name: file.read_bytes() for file in aside.iterdir()} == before, "whoever reads writes the same"
    assert all(name.startswith("train-day%2F1-epoch0-window0000") for name in before)


def test_a_row_group_that_cannot_be_decoded_is_set_aside(tmp_path: Path) -> None:
    rows, schema = good_rows(21, 1), strict_schema()
    path = write(tmp_path / "rows.parquet", rows)
    chunk = pq.read_metadata(path).row_group(1).column(0)
    damaged = bytearray(path.read_bytes())
    damaged[chunk.data_page_offset : chunk.data_page_offset + 12] = b"\xff" * 12
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="cannot be read"):
        read([path], schema)
    for batch in read([path], schema, str(tmp_path / "aside")):
        assert (batch.status == QUARANTINED).tolist() == [7 <= row < 14 for row in batch.row]
        if not batch.filler:
            assert_batch_equals(batch, schema, [blank(schema) if 7 <= r < 14 else rows[r] for r in batch.row])
    found = entries(tmp_path / "aside")
    assert sorted(entry["row"] for entry in found) == list(range(7, 14))
    assert all("row group 1, column 'user_id' cannot be read" in entry["reason"] for entry in found)


def test_a_file_cut_short_after_it_was_planned_is_set_aside_and_a_lost_one_is_not(tmp_path: Path) -> None:
    schema = strict_schema()
    good, cut = (write(tmp_path / name, good_rows(10, 2)) for name in ("a.parquet", "b.parquet"))
    data = make_data(tmp_path)
    pass_ = Pass(schema, data, [Segment("all", (str(good), str(cut)))], quarantine=str(tmp_path / "aside"))
    windows = list(pass_.windows_from())
    cut.write_bytes(cut.read_bytes()[:-300])
    for window in windows:
        for batch in carry_window(window, pass_.reading, 1, [0])[0]:
            assert (batch.status == QUARANTINED).tolist() == [file == 1 for file in batch.file]
    assert len(entries(tmp_path / "aside")) == 10
    cut.unlink()
    with pytest.raises(DataError, match=r"'.*b\.parquet' cannot be read"):
        carry_window(windows[-1], pass_.reading, 1, [0])


@pytest.mark.parametrize("drift", ["another type", "no column"])
def test_a_file_whose_column_drifted_is_set_aside(tmp_path: Path, drift: str) -> None:
    rows, schema = good_rows(10, 3), strict_schema()
    good = write(tmp_path / "a.parquet", rows)
    table = pq.read_table(good)
    at = table.column_names.index("score")
    strange = table.set_column(at, "score", pa.array(["high"] * 10)) if drift == "another type" else table.drop("score")
    pq.write_table(strange, tmp_path / "b.parquet")
    files = [good, tmp_path / "b.parquet"]
    words = {"another type": "column 'score' is string in ", "no column": "column 'score' is missing in "}
    with pytest.raises(DataError, match=words[drift]):
        read(files, schema)
    for batch in read(files, schema, str(tmp_path / "aside")):
        assert (batch.status == QUARANTINED).tolist() == [file == 1 for file in batch.file]
        pairs = zip(batch.file, batch.row, strict=True)
        assert_batch_equals(batch, schema, [blank(schema) if file else rows[row] for file, row in pairs])
    assert {entry["column"] for entry in entries(tmp_path / "aside")} == {"score"}


def test_nothing_is_written_where_nothing_is_bad(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.parquet", make_rows(20, 0))
    batches = read([path], make_schema(), str(tmp_path / "aside"))
    assert np.concatenate([batch.status for batch in batches]).max() == TRAINED
    assert not (tmp_path / "aside").exists()


def test_a_column_of_another_type_in_some_files_is_an_error_at_the_start_or_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = to_table(good_rows(6, seed=3))
    pq.write_table(table, tmp_path / "a.parquet")
    texts = pa.array(["x"] * 6)
    pq.write_table(table.set_column(table.column_names.index("score"), "score", texts), tmp_path / "b.parquet")
    segments = [Segment("all", (str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")))]
    [line] = check_files(make_schema(), segments)
    assert "column 'score' is string" in line
    assert check_files(make_schema(), segments, quarantine=True) == []
    assert "their rows are quarantined" in caplog.text
    reading = make_data(tmp_path, on_bad_row="quarantine")
    pass_ = Pass(make_schema(), reading, segments, shuffle=False, quarantine=str(tmp_path / "quarantine"))
    status = [
        (Path(segments[0].files[file]).name, row_status)
        for window in pass_.windows_from()
        for batch in carry_window(window, pass_.reading, 1, [0])[0]
        for file, row_status in zip(batch.file.tolist(), batch.status.tolist(), strict=True)
    ]
    assert set(status) == {("a.parquet", TRAINED), ("b.parquet", QUARANTINED)}
