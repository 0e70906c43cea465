"""The record of what was trained: its hashes against a slow reference, from batches and files; its sets of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.batch import Batch
from pipelines.schema import MISSING_ID, Schema
from pipelines.segments import list_segments
from pipelines.stream import ThreadExecutor, batches
from pipelines.windows import Pass, plan_segment
from tests.pipelines.rows import make_data, make_history_schema, make_rows, make_schema, write_rows
from trainer.audit_files import fingerprint_of, hashes_of_file, read_file_footers
from trainer.consumed import ids_of_rows
from trainer.consumed_format import (
    RowSet,
    decode_rows,
    encode_rows,
    folder_of,
    hashed_columns,
    name_below,
    name_hash,
    place_hashes,
    row_hashes,
)

pytestmark = pytest.mark.timeout(60)
MASK = 2**64 - 1


def slow_mix(value: int, seed: int) -> int:
    """splitmix64's output function, number by number."""
    z = (value + (seed + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def slow_fnv(text: str) -> int:
    state = 0xCBF29CE484222325
    for octet in text.encode():
        state = ((state ^ octet) * 0x100000001B3) & MASK
    return state


def slow_id(value: Any) -> int:
    if value is None:
        return MISSING_ID
    return slow_fnv(value) if isinstance(value, str) else value


def slow_row(row: dict[str, Any], number: int, file: str, schema: Schema) -> int:
    """The hash of one row's ids as its docstring says it, over Python values."""
    sums = 0
    for column, factor in hashed_columns(schema).items():
        spec = schema.columns[column]
        value = row.get(column, spec.default)
        values = (value or []) if spec.group else [value]
        history = schema.histories.get(spec.group.removeprefix("history."))
        if history is not None:
            values = values[-history.max_length :]
        for place, each in enumerate(values):
            sums += slow_mix(slow_id(each) & MASK, 0) * int(factor) * (2 * place + 1)
    place = slow_mix(number ^ slow_fnv(file), 1)
    return slow_mix((sums & MASK) ^ place, 2)


@pytest.mark.parametrize("schema", [make_schema(), make_history_schema()], ids=["candidates", "history"])
def test_batches_and_files_have_the_hashes_of_the_reference(tmp_path: Path, schema: Schema) -> None:
    """Strings, nulls, empty and null lists, events beyond max_length, a column that the file lacks; row groups that
    windows cut; two tables that columns share."""
    columns = hashed_columns(schema)
    assert {"user_id", "late", "v_item"} <= columns.keys()
    assert not {"slot", "v_click"} & columns.keys(), "train_only and actions are not what the file holds"
    rows = {name: make_rows(count, seed=count) for name, count in (("a.parquet", 23), ("b.parquet", 4))}
    for name, of_file in rows.items():
        write_rows(tmp_path / "day" / name, of_file)
    expected = {
        (name, number): slow_row(row, number, name, schema)
        for name, of_file in rows.items()
        for number, row in enumerate(of_file)
    }

    [segment] = list_segments(str(tmp_path / "day"))
    footers, problems = read_file_footers(segment)
    assert problems == []
    from_files = {
        (footer.name, number): int(found)
        for footer in footers
        for number, found in enumerate(hashes_of_file(footer, schema, columns)[1])
    }
    assert from_files == expected

    assert fingerprint_of(footers) == plan_segment(segment, make_data(tmp_path / "day"), seed=5, epoch=0).fingerprint

    pass_ = Pass(schema, make_data(tmp_path / "day", order="shuffle"), [segment], seed=5)
    from_batches: dict[tuple[str, int], int] = {}
    for batch in batches(pass_, 1, 0, None, ThreadExecutor()):
        from_batches |= hashes_of_batch(batch, schema, segment.files)
    assert from_batches == expected


def hashes_of_batch(batch: Batch, schema: Schema, files: tuple[str, ...]) -> dict[tuple[str, int], int]:
    names = [name_below(folder_of(files), files[file]) for file in batch.file]
    places = place_hashes(np.array([name_hash(name) for name in names]), batch.row)
    hashes = row_hashes(ids_of_rows(batch, schema, hashed_columns(schema)), places)
    return {(name, int(row)): int(found) for name, row, found in zip(names, batch.row, hashes, strict=True)}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**40) | st.integers(0, 300), min_size=1, max_size=60))
def test_a_set_of_rows_comes_back(rows: list[int]) -> None:
    packed = encode_rows(np.array(rows))
    assert decode_rows(RowSet.model_validate_json(packed.model_dump_json())).tolist() == sorted(rows)


def test_a_set_of_rows_takes_a_byte_a_row_and_a_run_none() -> None:
    rows = np.flatnonzero(np.random.default_rng(0).random(40_000) < 0.5)  # one of two ranks' share
    assert len(encode_rows(rows).model_dump_json()) < len(rows)
    assert len(encode_rows(np.arange(10**6)).model_dump_json()) < 100


@pytest.mark.parametrize(
    "change",
    [{"count": 4}, {"last": 9}, {"deltas": ""}, {"deltas": "AAAA"}, {"deltas": "?"}, {"width": 3}, {"width": 0}],
)
def test_a_changed_set_is_refused(change: dict[str, Any]) -> None:
    packed = encode_rows(np.array([1, 2, 8]))
    assert packed.width == 1
    with pytest.raises(ValueError):
        decode_rows(packed.model_copy(update=change))


def test_names_are_below_the_segment_s_folder_wherever_it_is() -> None:
    for folder in ("rows/dt=1/", "/data/rows/dt=1/", "s3://bucket/rows/dt=1/"):
        files = [f"{folder}{name}" for name in ("part-0.parquet", "part-1.parquet", "deep/part-1.parquet")]
        assert [name_below(folder_of(files), file) for file in files] == [
            "part-0.parquet",
            "part-1.parquet",
            "deep/part-1.parquet",
        ]
        assert name_below(folder_of(files[:1]), files[0]) == "part-0.parquet"
    query = ["s3://bucket/rows/a.parquet?endpoint_override=localhost:9000/x"]
    assert name_below(folder_of(query), query[0]) == "a.parquet"
