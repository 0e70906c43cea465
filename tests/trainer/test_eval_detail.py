"""Slices and files of predictions: the data's own ids, every scored position once, the same on any number of ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embeddings.config import Embeddings
from pipelines.errors import DataError
from pipelines.row_columns import list_lengths, per_position
from pipelines.segments import Segment
from tests.distributed.ranks import run_ranks
from tests.pipelines.rows import COLUMNS, make_history_schema, make_rows, make_schema, to_table
from tests.trainer.runs import Never, tiny_config
from trainer.compare_verb import compare_runs
from trainer.config import Config
from trainer.errors import CheckpointError, ConfigError
from trainer.eval_detail import Detail
from trainer.job import Job
from trainer.metrics import exact
from trainer.prediction_files import Manifest, read_manifest, require_free
from trainer.run_dir import RunDir
from trainer.slices import MOST_SLICES, Slicer, as_words
from trainer.wanted import OTHER, Wanted

KEYS = {"request_id": {"role": "request", "kind": "id"}, "shop": {"role": "key", "kind": "id"}}


def _write(path: Path, count: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = to_table(make_rows(count, seed))
    ids = [f"r{seed}-{row}" for row in range(count)]
    table = table.append_column("request_id", pa.array(ids)).append_column("shop", pa.array([i[::-1] for i in ids]))
    pq.write_table(table, path, row_group_size=7)


def _configs(rows: Path) -> dict[str, Config]:
    base = replace(tiny_config(rows, train={"max_steps": 1}), embeddings=Embeddings(width=8, default_rows=64))
    of_history = make_history_schema()
    return {
        "candidates": replace(base, schema=make_schema(columns=COLUMNS | KEYS)),
        "history": replace(base, schema=of_history.model_copy(update={"columns": of_history.columns | _keys()})),
    }


def _keys() -> dict[str, Any]:
    return {name: make_schema(columns=COLUMNS | KEYS).columns[name] for name in KEYS}


def _train_and_evaluate(rank: int, world_size: int, folder: Path, train: bool) -> list[dict[str, Any] | None]:
    from trainer.worker import run_evaluation, run_worker

    found = []
    for name, config in _configs(folder / "rows").items():
        run = RunDir(folder / "runs" / name)
        if train:
            run.prepare("never")
            before = {n: column for n, column in config.schema.columns.items() if n != "shop"}  # a key may come later
            trained = replace(config, schema=config.schema.model_copy(update={"columns": before}))
            run_worker(Job(trained, str(run.path), Never(), threads=1))
        by = "age" if name == "candidates" else "v_click"
        wanted = Wanted(by, str(folder / f"{name}-{world_size}"), checkpoint=1 if name == "history" else None)
        job = Job(config, str(run.path), Never(), resume="must", threads=1)
        found.append(run_evaluation(job, str(folder / "held out"), wanted=wanted))
    return found


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, list[dict[str, Any]]]]:
    """Two models, scored by one process and by two."""
    folder = tmp_path_factory.mktemp("detail")
    _write(folder / "rows" / "rows.parquet", 12, 1)
    _write(folder / "held out" / "dt=a" / "one.parquet", 17, 2)
    _write(folder / "held out" / "dt=a" / "two.parquet", 9, 3)
    _write(folder / "held out" / "dt=b" / "three.parquet", 1, 4)
    return folder, {
        ranks: run_ranks(_train_and_evaluate, ranks, folder, ranks == 1, timeout=170)[0] for ranks in (1, 2)
    }


@pytest.mark.timeout(350)
def test_every_scored_position_is_there_once_with_the_ids_of_the_data(
    evaluated: tuple[Path, dict[int, list[dict[str, Any]]]],
) -> None:
    folder, _ = evaluated
    lists = {"candidates": ("item", "click", "time"), "history": ("v_item", "v_label", "v_time")}
    for name, (item, label, time) in lists.items():
        task = "click" if name == "candidates" else "like"
        for ranks in (1, 2):
            written = folder / f"{name}-{ranks}"
            manifest = read_manifest(str(written))
            assert len(manifest.parts) == ranks
            assert (manifest.request, manifest.candidate) == (("request_id", "shop"), (item,))
            rows = duckdb.sql(f"select * from '{written}/*.parquet'").fetchall()
            columns = [column[0] for column in duckdb.sql(f"describe select * from '{written}/*.parquet'").fetchall()]
            found = [dict(zip(columns, row, strict=True)) for row in rows]
            assert len(found) == manifest.rows
            seen = set()
            for row in found:
                raw = pq.read_table(row["source_file"]).slice(row["source_row"], 1).to_pylist()[0]
                at = row["source_position"]
                seen.add((row["request_id"], at))
                assert (row["request_id"], row["shop"]) == (raw["request_id"], raw["shop"])
                assert row["user_id"] == raw["user_id"]
                assert row[item] == raw[item][at]
                seconds = raw[time] if name == "candidates" else raw[time][at]
                assert row[time].timestamp() == seconds
                if row[f"{task}_label"] is not None:
                    assert row[f"{task}_label"] == raw[label][at]
                else:
                    assert row[f"{task}_weight"] == 0
                assert 0 < row[f"{task}_probability"] < 1
            assert len(seen) == len(found)
            assert len(found) == _positions(folder, name)


def _positions(folder: Path, name: str) -> int:
    rows = [row for path in (folder / "held out").rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    if name == "candidates":
        return sum(len(row["item"]) for row in rows)
    return sum(label is not None for row in rows for label in row["v_label"][-4:])  # max_length


@pytest.mark.timeout(350)
def test_scores_and_slices_do_not_depend_on_the_ranks_and_are_those_of_the_files(
    evaluated: tuple[Path, dict[int, list[dict[str, Any]]]],
) -> None:
    folder, results = evaluated
    for place, (name, by) in enumerate({"candidates": "age", "history": "v_click"}.items()):
        one, two = (results[ranks][place]["evals"][-1] for ranks in (1, 2))
        assert one["slices"]["by"] == by
        assert list(one["slices"]["values"]) == list(two["slices"]["values"])
        task = "click" if name == "candidates" else "like"
        parts = [pq.read_table(path) for path in sorted((folder / f"{name}-1").glob("*.parquet"))]
        table = pa.concat_tables(parts)
        schema = _configs(folder)[name].schema
        words = as_words(table[by].combine_chunks(), schema.columns[by].boundaries).fill_null("(null)").to_pylist()
        p, y, w = (table[f"{task}_{what}"].to_numpy() for what in ("probability", "label", "weight"))
        for value, of_tasks in {None: one["tasks"], **one["slices"]["values"]}.items():
            here = w > 0 if value is None else (w > 0) & (np.array(words) == value)
            expected = exact.evaluate_task(p[here], y[here], w[here])
            assert (of_tasks[task]["examples"], of_tasks[task]["auc"]) == (expected.examples, expected.auc), value
            assert of_tasks[task]["ne"] == expected.ne
        for value in one["slices"]["values"]:
            a, b = (found["slices"]["values"][value][task] for found in (one, two))
            assert a["examples"] == b["examples"]
            assert a["ne"] == (None if b["ne"] is None else pytest.approx(b["ne"], rel=1e-5))
            assert a["gauc_one_class_users"] == b["gauc_one_class_users"]


def test_the_rarest_values_share_one_slice() -> None:
    slicer = Slicer()
    values = [f"v{n:02d}" for n in range(30) for _ in range(n + 1)] + [None] * 40 + ["unseen"] * 99
    counted = np.array([value != "unseen" for value in values])
    codes = slicer.codes(pa.array(values), counted)
    chosen = slicer.choose(None)
    assert chosen.values == ("(null)", *(f"v{n:02d}" for n in range(29, 10, -1)), OTHER)
    assert len(chosen.values) == MOST_SLICES + 1
    assert chosen.others == 11
    found = [chosen.values[chosen.codes[code]] for code in codes[counted]]
    expected = [v if v in chosen.values else "(null)" if v is None else OTHER for v in values if v != "unseen"]
    assert found == expected


def test_slices_of_buckets_are_their_intervals() -> None:
    ages = pa.array([17, 18.0, 70, None, float("nan")], pa.float64(), from_pandas=False)
    words = as_words(ages, make_schema().columns["age"].boundaries)
    assert words.to_pylist() == ["< 18", "18 – 30", "≥ 50", None, None]


def test_lists_that_are_not_of_the_scored_positions_are_refused_and_of_cut_ones_the_newest_are_taken() -> None:
    lists, cut = pa.chunked_array([[[1, 2, 3], [4], None, [5, 6]]]), np.array([2, 1, 0, 0])
    values, places = per_position("x", lists, cut, list_lengths(lists))
    assert (values.to_pylist(), places.tolist()) == ([2, 3, 4], [1, 2, 0])
    with pytest.raises(DataError, match="'x' has lists that are not as long"):
        per_position("x", lists, cut, np.array([3, 2, 0, 2]))


def test_what_cannot_be_is_said_in_one_line(tmp_path: Path) -> None:
    _write(tmp_path / "rows.parquet", 3, 1)
    segments = (Segment("", (str(tmp_path / "rows.parquet"),)),)
    about = Manifest("run", "checkpoint", 1, "rows", ("click",))
    schema = make_schema(columns=COLUMNS | KEYS)
    for field, words in {"nothing": "one of: ", "v_item": "a column of history.views", "tags": "lists"}.items():
        with pytest.raises(ConfigError, match=words):
            Detail(schema, segments, Wanted(by=field), about, None)  # type: ignore[arg-type]
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="is not empty"):
        require_free(str(tmp_path / "used"))
    with pytest.raises(CheckpointError, match="_SUCCESS"):
        read_manifest(str(tmp_path / "used"))
    (tmp_path / "used" / "_SUCCESS").write_text(json.dumps({"run": "a"}))
    with pytest.raises(CheckpointError, match="_SUCCESS"):
        read_manifest(str(tmp_path / "used"))


@pytest.mark.timeout(350)
def test_two_runs_are_compared_on_the_same_rows(
    evaluated: tuple[Path, dict[int, list[dict[str, Any]]]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, _ = evaluated
    run, found = str(folder / "runs" / "candidates"), tmp_path / "found.json"
    try:
        compare_runs([run, run], str(folder / "held out"), (), "age", 20, 1, str(found))
    finally:
        torch.use_deterministic_algorithms(False)
    said = capsys.readouterr().out
    assert "click: the two predict the same, to the bit" in said
    assert set(json.loads(found.read_text())["slices"]) >= {"18 – 30", "(null)"}
