"""A profile says what a slow count in plain Python says; where it is of a sample, the sample is spread and bounded."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import DataError
from pipelines.footers import read_footers
from pipelines.hashing import hash_strings
from pipelines.profile import choose_pieces, profile_segment
from pipelines.profile_format import FORMAT, read_profile
from pipelines.profile_sketches import Frequent, LowestHashes, Places
from pipelines.schema import Column, Schema
from pipelines.segments import Segment
from tests.pipelines.rows import COLUMNS, make_history_schema, make_rows, make_schema, to_table, write_rows

pytestmark = pytest.mark.timeout(60)


def one_segment(folder: Path) -> Segment:
    return Segment("day", tuple(sorted(map(str, folder.rglob("*.parquet")))))


def values_of(rows: list[dict[str, Any]], name: str) -> tuple[list[Any], list[int], int]:
    """All values of a column, list by list; the lengths of its outermost lists; null lists."""
    spec = COLUMNS[name]
    values = [row[name] for row in rows]
    lengths, null_lists = [], 0
    listed = ["group"] if "group" in spec else []
    listed += ["inner"] if spec["kind"] in ("ids", "vector") else []
    for level in listed:
        if level == "group" or (spec["kind"] == "ids" and "group" not in spec):
            lengths = [len(value or []) for value in values]
        if level == listed[0]:
            null_lists = sum(value is None for value in values)
        values = [element for value in values for element in value or []]
    return values, lengths, null_lists


def test_figures_are_those_of_a_slow_count(tmp_path: Path) -> None:
    rows = make_rows(90, seed=1) + make_rows(60, seed=2)
    write_rows(tmp_path / "a.parquet", rows[:90])
    write_rows(tmp_path / "b.parquet", rows[90:], row_group_rows=60)
    schema = make_schema()
    profile = profile_segment(one_segment(tmp_path), schema, sample_rows=0)
    assert (profile.rows, profile.rows_read, profile.files, profile.rows_per_file) == (150, 150, 2, (60, 90, 90))
    assert profile.times == (min(r["time"] for r in rows) * 10**6, max(r["time"] for r in rows) * 10**6)
    assert set(profile.columns) == set(COLUMNS)
    for name in COLUMNS.keys() - {"late"}:
        column, kind = profile.columns[name], COLUMNS[name]["kind"]
        values, lengths, null_lists = values_of(rows, name)
        nans = [value for value in values if isinstance(value, float) and math.isnan(value)]
        present = [value for value in values if value is not None and not any(value is nan for nan in nans)]
        scale = 10**6 if kind == "time" else 1
        numbers = kind not in ("id", "ids")
        if name in ("profile", "image", "score", "v_dwell"):
            present = [float(np.float32(value)) for value in present]
        count = Counter(value * scale for value in present) if numbers else Counter(present)
        assert column.values == len(values), name
        assert column.nulls == pytest.approx(sum(value is None for value in values) / len(values)), name
        assert column.nans == pytest.approx(len(nans) / len(values)), name
        assert column.null_lists == pytest.approx(null_lists / 150), name
        assert column.distinct == len(count), name
        shares = sorted((n / len(present) for n in count.values()), reverse=True)
        assert [top.share for top in column.top] == pytest.approx(shares[: len(column.top)]), name
        assert column.exact_top == (len(count) <= 32), name
        for top in column.top[:3]:
            value = float(top.value) if numbers else top.value.strip("'")
            told = {float(k) if numbers else str(k): n for k, n in count.items()}
            matching = [n for k, n in told.items() if (math.isclose(k, value) if numbers else k == value)]
            assert max(matching) / len(present) == pytest.approx(top.share), name
        for sentinel in (-1, 0):
            share = sum(value == sentinel for value in present) / len(present)
            assert column.sentinels.get(str(sentinel), 0.0) == pytest.approx(share), name
        if numbers:
            steps = np.quantile([v * scale for v in present], np.linspace(0, 1, 101), method="inverted_cdf")
            assert column.quantiles == pytest.approx(steps), name
        if lengths:
            assert column.lengths is not None
            assert (column.lengths.mean, column.lengths.deviation, column.lengths.max) == pytest.approx(
                (np.mean(lengths), np.std(lengths), max(lengths))
            ), name
    assert profile.columns["late"].coverage == 0.0


def test_label_rates_are_those_of_the_task_s_space_and_weight(tmp_path: Path) -> None:
    rows = make_rows(200, seed=3)
    write_rows(tmp_path / "a.parquet", rows)
    tasks = profile_segment(one_segment(tmp_path), make_schema(), 0).tasks
    positions = [p for r in rows for p in zip(r["click"], r["order"], r["ips"], strict=True)]
    clicks = [click for click, _, weight in positions if weight]
    orders = [order for click, order, _ in positions if click == 1]
    for name, labels in (("click", clicks), ("order", orders)):
        known = [label for label in labels if label is not None]
        assert (tasks[name].positions, tasks[name].labelled, tasks[name].positive) == (
            len(labels),
            len(known),
            sum(known),
        )
        assert tasks[name].rate == pytest.approx(np.mean(known))
    like = profile_segment(one_segment(tmp_path), make_history_schema(), 0).tasks["like"]
    labels = [label for row in rows for label in row["v_label"]]
    assert (like.positions, like.positive) == (len(labels), sum(bool(label) for label in labels))


def test_coverage_is_of_files_and_rows_and_types_are_told(tmp_path: Path) -> None:
    table = to_table(make_rows(30, seed=4))
    pq.write_table(table, tmp_path / "old.parquet")
    pq.write_table(table.slice(0, 10).append_column("late", pa.array(range(10))), tmp_path / "new.parquet")
    column = profile_segment(one_segment(tmp_path), make_schema(), 0).columns["late"]
    assert (column.coverage, column.covered_files) == (10 / 40, 1 / 2)
    assert (column.types, column.distinct, column.values) == ({"int64": 10}, 10, 10)


def test_row_groups_and_batches_make_no_difference_and_twice_is_the_same(tmp_path: Path) -> None:
    rows = make_rows(120, seed=5)
    profiles = []
    for size in (7, 50, 120):
        folder = tmp_path / str(size)
        write_rows(folder / "a.parquet", rows, row_group_rows=size)
        profiles.append(profile_segment(one_segment(folder), make_schema(), 0))
    assert profiles[0].columns == profiles[1].columns == profiles[2].columns
    again = profile_segment(one_segment(tmp_path / "7"), make_schema(), 0)
    assert again.to_json() == profiles[0].to_json()


def test_odd_types_are_counted(tmp_path: Path) -> None:
    """Null columns, dictionaries, decimals, booleans, dates, infinities, and words that stand for nothing."""
    names = ["", "null", "a", "a", None]
    table = pa.table(
        {
            "nothing": pa.nulls(5),
            "word": pa.array(names).dictionary_encode(),
            "flag": pa.array([True, False, None, True, True]),
            "price": pa.array([1, 2, 3, 4, 5], pa.decimal128(8, 2)),
            "day": pa.array([0, 1, 2, 3, 4], pa.date32()),
            "big": pa.array([1.0, -1.0, math.inf, math.inf, -0.0]),
            "lists": pa.nulls(5),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    kinds = {"nothing": "id", "word": "id", "flag": "id", "price": "dense", "day": "time", "big": "dense"}
    columns = {n: Column(role="time" if k == "time" else "context", kind=k) for n, k in kinds.items()}  # type: ignore[arg-type]
    columns["lists"] = Column(role="item", kind="id", group="candidates")
    found = profile_segment(one_segment(tmp_path), Schema(columns=columns), 0)
    assert found.columns["nothing"].nulls == 1.0
    assert found.columns["lists"].null_lists == 1.0
    assert found.columns["word"].sentinels == {"''": 0.25, "'null'": 0.25}
    assert found.columns["word"].top[0].value == "'a'"
    assert [top.value for top in found.columns["flag"].top] == ["1", "0"]
    assert found.columns["price"].quantiles[100] == 5.0
    assert found.times == (0, 4 * 86_400 * 10**6)
    assert found.columns["big"].sentinels == {"-1": 0.2, "0": 0.2}
    (tmp_path / "p.json").write_text(found.to_json())
    assert read_profile(tmp_path / "p.json") == found


def test_a_file_that_is_no_profile_is_refused_in_a_line(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", make_rows(5, seed=6))
    text = profile_segment(one_segment(tmp_path), make_schema(), 0).to_json()
    later = json.dumps(json.loads(text) | {"format": FORMAT + 1})
    for content, part in (("{}", "segment"), ("no", "the file"), (text[:-30], "the file"), (later, "format")):
        (tmp_path / "p.json").write_text(content)
        with pytest.raises(DataError, match=part) as caught:
            read_profile(tmp_path / "p.json")
        assert caught.value.problems[0].count(" → ") == 2
    with pytest.raises(DataError, match="No such file"):
        read_profile(tmp_path / "absent.json")


def test_a_broken_row_group_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.parquet", make_rows(40, seed=7), row_group_rows=40)
    segment, content = one_segment(tmp_path), bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet' row group 0 cannot be read"):
        profile_segment(segment, make_schema(), 0)


def test_a_sample_is_bounded_seeded_and_spread_over_the_files(tmp_path: Path) -> None:
    table = pa.table({"x": pa.array(range(1000))})
    for number in range(40):
        pq.write_table(table, tmp_path / f"{number:02d}.parquet", row_group_size=100)
    segment = one_segment(tmp_path)
    footers = read_footers(segment.files)
    pieces = choose_pieces(footers, "day", 4_000)
    assert pieces == choose_pieces(footers, "day", 4_000)
    assert sum(piece.rows for piece in pieces) == 4_000
    assert len({piece.path for piece in pieces}) > 30
    assert pieces != choose_pieces(footers, "another day", 4_000)
    few = choose_pieces(footers, "day", 320)
    assert len(few) == 32  # however small the sample, a fault in some files is met
    assert sum(piece.rows for piece in few) == 320
    for everything in (choose_pieces(footers, "day", 0), choose_pieces(footers, "day", 40_000)):
        assert sum(piece.rows for piece in everything) == 40_000
    schema = Schema(columns={"x": Column(role="context", kind="dense")})
    sampled = profile_segment(segment, schema, 4_000)
    assert (sampled.rows, sampled.rows_read) == (40_000, 4_000)
    assert abs(sampled.columns["x"].quantiles[50] - 500) < 100


def test_sketches_stay_small_and_close() -> None:
    rng = np.random.default_rng(0)
    lowest, frequent, places = LowestHashes(), Frequent(limit=1000), Places()
    ids = rng.integers(0, 50_000, 200_000)
    ids[rng.random(len(ids)) < 0.05] = -1
    for part in np.array_split(ids, 37):
        keys, counts = np.unique(part, return_counts=True)
        lowest.add(keys, counts)
        frequent.add(keys, counts)
        places.add(part.astype(np.float64))
    distinct = len(np.unique(ids))
    assert len(lowest.hashes) == 1024
    assert abs(lowest.distinct() / distinct - 1) < 0.1
    once = LowestHashes()
    once.add(*np.unique(ids, return_counts=True))
    assert np.array_equal(once.hashes, lowest.hashes)
    assert np.array_equal(once.counts, lowest.counts)
    assert len(frequent.keys) <= 1000
    [top] = frequent.top(1)
    assert (frequent.keys[top], frequent.counts[top]) == (-1, np.sum(ids == -1))
    assert abs(places.quantiles(100)[50] / np.median(ids) - 1) < 0.05
    assert places.span == (-1.0, float(ids.max()))


def test_sentinel_words_are_known_by_their_hash() -> None:
    from pipelines.profile_column import SENTINEL_IDS

    assert SENTINEL_IDS[int(hash_strings(pa.array([""]))[0])] == "''"
    assert SENTINEL_IDS[-1] == "-1"
