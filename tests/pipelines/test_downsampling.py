"""A down-sampled log counts as what it was drawn from: weights and offsets by hand, the same draw for every reader."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.batch import SAMPLED_OUT, TRAINED, Batch
from pipelines.carry import carry_window
from pipelines.config import Data, Downsampling
from pipelines.downsampling_check import check_downsampling
from pipelines.errors import DataError
from pipelines.schema import Column, Schema, Task
from pipelines.segments import Segment
from pipelines.windows import Pass

LABELS = [[1, 0, None], [0, 0], [1], [0], [0, 1, 0, 0]]


def make_schema(rate_group: str = "candidates") -> Schema:
    return Schema(
        user="user",
        columns={
            "user": Column(role="user", kind="id"),
            "request": Column(role="request", kind="id"),
            "time": Column(role="time", kind="time"),
            "item": Column(role="item", kind="id", group="candidates"),
            "click": Column(role="label", kind="dense", group="candidates"),
            "buy": Column(role="label", kind="dense", group="candidates"),
            "worth": Column(role="weight", kind="dense", group="candidates"),
            "kept": Column(role="weight", kind="dense", group=rate_group),
        },
        tasks={"click": Task(label="click", weight="worth"), "buy": Task(label="buy", space="click")},
    )


def write(path: Path, labels: list[list[Any]] = LABELS, kept: Any = None, repeat: int = 1) -> Path:
    labels = labels * repeat
    table = {
        "user": list(range(len(labels))),
        "request": [1000 + place for place in range(len(labels))],
        "time": [100] * len(labels),
        "item": [list(range(len(row))) for row in labels],
        "click": pa.array(labels, pa.list_(pa.int8())),
        "buy": pa.array([[v and 1 for v in row] for row in labels], pa.list_(pa.int8())),
        "worth": [[2.0] * len(row) for row in labels],
        "kept": kept if kept is not None else [[0.5] * len(row) for row in labels],
    }
    pq.write_table(pa.table(table), path, row_group_size=16)
    return path


def read(path: Path, schema: Schema, world_size: int = 1, shuffle: bool = False, **settings: Any) -> list[Batch]:
    data = Data(rows=str(path), global_batch=8, window_batches=2, downsampling=Downsampling(**settings))
    pass_ = Pass(schema, data, [Segment("all", (str(path),))], shuffle=shuffle)
    carried = [carry_window(w, pass_.reading, world_size, range(world_size)) for w in pass_.windows_from()]
    return [batch for window in carried for rank in window.values() for batch in rank if not batch.filler]


def test_negatives_weigh_one_over_their_rate_in_loss_and_metrics(tmp_path: Path) -> None:
    [batch] = read(write(tmp_path / "a.parquet"), make_schema(), negative_rates={"click": 0.25})
    expected = [2 if v else 8 if v == 0 else 0 for row in LABELS for v in row]
    assert batch.weights["click"].tolist() == expected
    assert batch.metric_weights is batch.weights
    assert batch.weights["buy"].tolist() == [1.0 if v else 0.0 for row in LABELS for v in row]  # only clicks: rate 1
    assert batch.offsets == {}


def test_an_offset_leaves_the_loss_weights_and_corrects_the_metrics(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    [batch] = read(path, make_schema(), negative_rates={"click": 0.25}, correct="offset")
    assert batch.weights["click"].tolist() == [2.0 if v is not None else 0.0 for row in LABELS for v in row]
    assert batch.metric_weights["click"].tolist() == [2 if v else 8 if v == 0 else 0 for row in LABELS for v in row]
    assert batch.offsets.keys() == {"click"}
    np.testing.assert_allclose(batch.offsets["click"], math.log(4), rtol=1e-6)


@pytest.mark.parametrize("group", ["", "candidates"])
def test_a_rate_column_beside_the_labels_or_of_the_request(tmp_path: Path, group: str) -> None:
    kept = (
        [0.5, 0.25, 1.0, 0.1, 0.5]
        if not group
        else [[r] * len(v) for r, v in zip([0.5, 0.25, 1, 0.1, 0.5], LABELS, strict=True)]
    )
    path = write(tmp_path / "a.parquet", kept=kept)
    [batch] = read(path, make_schema(group), rate_column="kept")
    rates = np.repeat([0.5, 0.25, 1.0, 0.1, 0.5], [len(row) for row in LABELS])
    labelled = np.array([v is not None for row in LABELS for v in row])
    np.testing.assert_allclose(batch.weights["click"], np.where(labelled, 2 / rates, 0), rtol=1e-6)


@pytest.mark.parametrize("bad", [0.0, 1.5, None])
def test_a_rate_that_is_none_is_named(tmp_path: Path, bad: float | None) -> None:
    kept = [[0.5] * len(row) for row in LABELS]
    kept[1][1] = bad
    path = write(tmp_path / "a.parquet", kept=pa.array(kept, pa.list_(pa.float64())))
    with pytest.raises(
        DataError, match=rf"'kept' holds {'null' if bad is None else f'{bad:g}'} in .* row 1 → keep rates"
    ):
        read(path, make_schema(), rate_column="kept")


def test_sampling_here_keeps_the_same_examples_for_every_reader_and_spares_evaluation(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", repeat=200)
    settings = {"negative_rates": {"click": 0.3}, "sample": True}

    def kept_of(batches: list[Batch]) -> set[tuple[int, int]]:
        found = set()
        for batch in batches:
            rows = np.repeat(batch.request, batch.candidate_lengths)
            places = np.concatenate([np.arange(length) for length in batch.candidate_lengths])
            negative = (batch.labels["click"] == 0) & (batch.weights["click"] > 0)
            found |= set(zip(rows[negative].tolist(), places[negative].tolist(), strict=True))
            # 2 ÷ .3 for every negative that stays, and a row that loses all of its examples says so
            assert np.allclose(batch.metric_weights["click"][negative], 2 / 0.3)
            weight_R = np.add.reduceat(
                batch.weights["click"], np.cumsum(batch.candidate_lengths) - batch.candidate_lengths
            )
            assert np.array_equal(batch.status == SAMPLED_OUT, weight_R == 0)
        return found

    once = kept_of(read(path, make_schema(), shuffle=True, **settings))
    assert once == kept_of(read(path, make_schema(), world_size=3, shuffle=True, **settings))
    negatives = 200 * sum(v == 0 for row in LABELS for v in row)
    assert 0.25 * negatives < len(once) < 0.35 * negatives
    for batch in read(path, make_schema(), **settings):  # evaluation: the whole log, as it is
        assert set(batch.metric_weights["click"].tolist()) <= {0.0, 2.0}
        assert set(batch.status.tolist()) == {TRAINED}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "are both absent"),
        ({"rate_column": "kept", "negative_rates": {"click": 0.5}}, "are both given"),
        ({"rate_column": "click"}, "role label"),
        ({"rate_column": "nothing"}, "no such column"),
        ({"negative_rates": {"item": 0.5}}, "rates are of label columns"),
        ({"negative_rates": {"click": 0.0}}, r"in \(0, 1\]"),
        ({"rate_column": "kept", "sample": True}, "sample with rate_column"),
        ({"rate_column": "kept", "correct": "offset"}, "offset needs the rate of negatives"),
        ({"negative_rates": {"click": 0.5, "buy": 0.5}, "correct": "offset"}, "its offset is not known"),
    ],
)
def test_settings_that_contradict_the_schema_or_themselves(settings: dict[str, Any], says: str) -> None:
    lines = list(check_downsampling(make_schema(), Downsampling(**settings), "candidates"))
    assert len([line for line in lines if re.search(says, line)]) == 1
    assert all(line.count("→") == 2 for line in lines)


def test_a_space_keeps_another_label_s_rate_away_from_an_offset() -> None:
    settings = Downsampling(negative_rates={"click": 0.5}, correct="offset")
    assert list(check_downsampling(make_schema(), settings, "candidates")) == []
