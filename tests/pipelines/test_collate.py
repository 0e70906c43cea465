"""Batches are what a slow reference makes of the same rows, whatever the schema, the shuffle and the world size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.batch import Batch
from pipelines.carry import carry_window
from pipelines.errors import DataError
from pipelines.reading import Reading
from pipelines.schema import Schema
from pipelines.segments import Segment
from pipelines.windows import Pass
from tests.pipelines.reference import assert_batch_equals
from tests.pipelines.rows import make_data, make_history_schema, make_rows, make_schema, to_table, write_rows

ONE_HISTORY = {"views": {"max_length": 4, "time": "v_time", "action_time": "v_known"}}
SCHEMAS = {
    "candidates": make_schema(),
    "history": make_history_schema(),
    "history, ties in order": make_history_schema(ties="order"),
    "candidates, ties in order": make_schema(
        ties="order",
        histories=ONE_HISTORY,
        columns={n: c for n, c in make_schema().columns.items() if not n.startswith("b_")},
    ),
    "no action time": make_history_schema(ties="order", histories={"views": {"max_length": 3, "time": "v_time"}}),
}


def batches_of(path: Path, schema: Schema, world_size: int = 1, shuffle: bool = True, **data: Any) -> list[Batch]:
    """All batches of a file, of all ranks."""
    settings = make_data(path, **data)
    pass_ = Pass(schema, settings, [Segment("all", (str(path),))], seed=1, shuffle=shuffle)
    found = []
    for window in pass_.windows_from():
        carried = carry_window(window, pass_.reading, world_size, range(world_size))
        found += [batch for rank in carried.values() for batch in rank]
    return found


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_batches_equal_the_reference(tmp_path: Path, name: str, seed: int) -> None:
    rows = make_rows(43, seed)
    path = write_rows(tmp_path / "rows.parquet", rows)
    for batch in batches_of(path, SCHEMAS[name], world_size=2):
        if not batch.filler:
            assert_batch_equals(batch, SCHEMAS[name], [rows[index] for index in batch.row])


def test_a_rank_without_rows_gets_a_weightless_copy(tmp_path: Path) -> None:
    rows = make_rows(7, 0)
    path = write_rows(tmp_path / "rows.parquet", rows)
    last = [batch for batch in batches_of(path, make_schema(), world_size=3) if batch.position.batch == 1]
    assert [batch.filler for batch in last] == [False, False, True]
    filler, first = last[2], last[0] if last[0].row[0] == last[2].row[0] else last[1]
    assert filler.rows == 1
    assert filler.row[0] == first.row[0]
    assert len(filler.tables["item"].ids) > 0
    for table in filler.tables.values():
        assert not table.counts.any()
    for task in ("click", "order"):
        assert not filler.weights[task].any()
        assert not filler.labels[task].any()


def test_sampled_out_rows_keep_their_place_without_weight(tmp_path: Path) -> None:
    rows = make_rows(200, 3)
    path = write_rows(tmp_path / "rows.parquet", rows, 50)
    schema = make_schema()
    whole = batches_of(path, schema)
    kept_rows = set()
    for full, sampled in zip(whole, batches_of(path, schema, sample=0.3), strict=True):
        assert full.row.tolist() == sampled.row.tolist()
        kept = [float(w > 0) for w in np.add.reduceat(sampled.weights["click"], _begins(sampled))]
        kept_rows |= {int(r) for r, k in zip(full.request, kept, strict=True) if k}
        lost = {int(r) for r, k, f in zip(full.request, kept, _sums(full), strict=True) if not k and f}
        assert not lost & kept_rows, "requests are kept whole"
    requests = {int(r) for batch in whole for r in batch.request}
    assert 0.15 * len(requests) < len(kept_rows) < 0.45 * len(requests)


def _begins(batch: Batch) -> np.ndarray:
    return np.cumsum(batch.candidate_lengths) - batch.candidate_lengths


def _sums(batch: Batch) -> np.ndarray:
    return np.add.reduceat(batch.weights["click"], _begins(batch))


def test_train_only_columns_are_served_in_evaluation(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.parquet", make_rows(12, 0))
    batch = batches_of(path, make_schema(), shuffle=False)[0]
    assert batch.row.tolist() == [0, 1, 2, 3, 4]
    assert batch.tables["slot"].ids.tolist() == [0]
    assert 0 not in batches_of(path, make_schema())[0].tables["slot"].ids


def test_arrow_types_do_not_change_a_batch(tmp_path: Path) -> None:
    """Timestamps, dictionaries, large lists, wider integers: the same values, the same batch, also in one window."""
    rows = make_rows(20, 5)
    table = to_table(rows)
    other = table
    for name, column in {
        "user_id": table["user_id"].dictionary_encode(),
        "time": pa.array([r["time"] * 10**9 for r in rows], pa.timestamp("ns", "UTC")),
        "v_time": table["v_time"].cast(pa.large_list(pa.timestamp("s"))),
        "click": table["click"].cast(pa.list_(pa.float32())),
        "item": table["item"].cast(pa.list_(pa.uint64())),
        "slot": table["slot"].cast(pa.int16()),
        "tags": table["tags"].cast(pa.large_list(pa.int64())),
        "v_item": table["v_item"].cast(pa.list_(pa.int32())),
        "score": table["score"].cast(pa.float64()),
    }.items():
        other = other.set_column(other.column_names.index(name), name, column)
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(other, tmp_path / "b.parquet")
    schema, data = make_schema(), make_data(tmp_path, global_batch=40)
    segment = Segment("all", (str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")))
    [window] = Pass(schema, data, [segment], shuffle=False).windows_from()
    [batch] = carry_window(window, Reading(schema, data), 1, [0])[0]
    assert batch.file.tolist() == [0] * 20 + [1] * 20
    assert batch.row.tolist() == [*range(20), *range(20)]
    rows = [{name: value for name, value in row.items() if name != "slot"} | {"slot": 0} for row in rows]
    assert_batch_equals(batch, schema, rows + rows)


def test_columns_that_older_files_lack_read_as_their_default(tmp_path: Path) -> None:
    """Static and in lists, in one window with files that have them; without a default the column is named."""
    rows = make_rows(20, 6)
    table = to_table(rows)
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.drop_columns(["v_price", "words", "score"]), tmp_path / "b.parquet")
    columns = dict(make_schema().columns)
    for name, default in (("v_price", 0.25), ("words", "new"), ("score", 3)):
        columns[name] = columns[name].model_copy(update={"default": default})
    schema, data = make_schema(columns=columns), make_data(tmp_path, global_batch=40)
    segment = Segment("all", (str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")))
    [window] = Pass(schema, data, [segment]).windows_from()
    [batch] = carry_window(window, Reading(schema, data), 1, [0])[0]
    filled = [
        row | {"v_price": [0.25] * len(row["v_item"]), "words": [["new"]] * len(row["item"]), "score": 3.0}
        for row in rows
    ]
    both = rows + filled
    assert_batch_equals(batch, schema, [both[20 * f + r] for f, r in zip(batch.file, batch.row, strict=True)])
    with pytest.raises(DataError, match=r"column 'score' is missing in '.*b\.parquet'"):
        carry_window(window, Reading(make_schema(), data), 1, [0])


def bad_rows(change: dict[str, Any]) -> list[dict[str, Any]]:
    rows = make_rows(20, 0)
    rows[17] = rows[17] | change
    return rows


SHOWN = {"item": [1], "words": [[]], "image": [[1.0, 2.0]], "click": [1], "order": [1], "ips": [1.0]}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (SHOWN | {"click": [3]}, ["'click' holds 3", "labels are 0, 1 or null"]),
        (SHOWN | {"order": [float("nan")]}, ["'order' holds nan", "labels are 0, 1 or null"]),
        (SHOWN | {"ips": [-1.0]}, ["'ips' holds -1", "not negative"]),
        (SHOWN | {"image": [[1.0]]}, ["'image' holds 1 floats", "size = 2"]),
        ({"order": [0.5] * 9}, ["group candidates have one length"]),
        ({"time": None}, ["'time' holds null", "has its time"]),
        ({"b_time": [5, 4], "b_item": [1, 2]}, ["earlier time after a later one", "oldest first"]),
    ],
)
def test_bad_values_are_named(tmp_path: Path, change: dict[str, Any], parts: list[str]) -> None:
    path = write_rows(tmp_path / "rows.parquet", bad_rows(change))
    with pytest.raises(DataError) as caught:
        batches_of(path, make_schema())
    [line] = caught.value.problems
    for part in [*parts, f"'{path}' row 17", " → "]:
        assert part in line


def test_all_bad_columns_are_named_at_once(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.parquet", bad_rows({"time": None, "image": [[1.0]], "ips": [-1.0] * 7}))
    with pytest.raises(DataError) as caught:
        batches_of(path, make_schema())
    assert len(caught.value.problems) >= 3
