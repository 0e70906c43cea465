"""The model learns: a planted signal in the fields and one in the order of the history, each held against chance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embeddings.config import Embeddings, Table
from model.config import Model
from pipelines.config import Data, Downsampling
from pipelines.schema import Schema
from tests.trainer.runs import Run, train_all
from trainer.config import Config
from trainer.config_sections import Checkpoint, Optim, Telemetry, Train

ITEMS, EVENTS, SHOWN = 6, 5, 4
TRAIN_ROWS, TEST_ROWS = 900, 300
SCHEMA = {
    "user": "user",
    "columns": {
        "user": {"role": "user", "kind": "id"},
        "time": {"role": "time", "kind": "time"},
        "seen": {"role": "item", "kind": "id", "group": "history.views", "shares": "item"},
        "seen_time": {"role": "time", "kind": "time", "group": "history.views"},
        "item": {"role": "item", "kind": "id", "group": "candidates"},
        "click": {"role": "label", "kind": "dense", "group": "candidates"},
    },
    "histories": {"views": {"max_length": EVENTS, "time": "seen_time"}},
    "tasks": {"click": {"label": "click"}},
}


def write_planted(folder: Path, in_order: bool) -> Path:
    """A candidate is clicked with .75 where it is what was seen last, else with .15; item 0 is liked better.
    in_order: False shuffles what was seen, after the clicks were drawn."""
    rng = np.random.default_rng(3)
    shuffler = np.random.default_rng(4)
    count = TRAIN_ROWS + TEST_ROWS
    seen_RE = rng.integers(0, ITEMS, (count, EVENTS))
    item_RS = np.argsort(rng.random((count, ITEMS)), axis=1)[:, :SHOWN]
    chance_RS = np.where(item_RS == seen_RE[:, -1:], 0.75, 0.15) * np.where(item_RS == 0, 1.3, 1.0)
    click_RS = (rng.random(chance_RS.shape) < chance_RS).astype(np.int8)
    if not in_order:
        seen_RE = shuffler.permuted(seen_RE, axis=1)
    table = pa.table(
        {
            "user": rng.integers(0, 50, count),
            "time": np.full(count, 100),
            "seen": seen_RE.tolist(),
            "seen_time": np.tile(np.arange(EVENTS) * 10, (count, 1)).tolist(),
            "item": item_RS.tolist(),
            "click": click_RS.tolist(),
        }
    )
    for segment, part in {"1-train": table.slice(0, TRAIN_ROWS), "2-test": table.slice(TRAIN_ROWS)}.items():
        (folder / f"segment={segment}").mkdir(parents=True)
        pq.write_table(part, folder / f"segment={segment}" / "part-0.parquet", row_group_size=100)
    return folder


def config_of(rows: Path) -> Config:
    return Config(
        schema=Schema(**SCHEMA),
        data=Data(rows=str(rows), global_batch=20, window_batches=15, order="shuffle", epochs=6),
        embeddings=Embeddings(width=8, tables={"item": Table(rows=64), "user": Table(rows=64)}, lr=0.1),
        model=Model(dim=16, num_layers=2, full_layers=1, num_heads=2, windows=(8,), time_gaps=False),
        optim=Optim(lr=4e-3, warmup_examples=2_000),
        train=Train(log_every=45),
        checkpoint=Checkpoint(every_minutes=0.0),
        telemetry=Telemetry(prometheus=False, tensorboard=False),
    )


@pytest.mark.timeout(170)
def test_a_planted_signal_is_learnt_and_the_order_of_the_history_counts(tmp_path: Path) -> None:
    runs = [
        Run(config_of(write_planted(tmp_path / f"rows {name}", in_order)), tmp_path / name)
        for name, in_order in {"ordered": True, "shuffled": False}.items()
    ]
    ordered, shuffled = (result["evals"][0]["tasks"]["click"] for result in train_all(runs, 1))
    assert ordered["ne"] < 0.95
    assert ordered["auc"] > shuffled["auc"] + 0.05
    assert ordered["ne"] < shuffled["ne"] - 0.05
    assert ordered["calibration"] == pytest.approx(1, abs=0.15)


@pytest.mark.timeout(170)
def test_a_model_of_a_down_sampled_log_predicts_the_rates_of_the_whole(tmp_path: Path) -> None:
    """Without correction its predictions would be nearly twice too high."""
    rows = write_planted(tmp_path / "rows", in_order=True)
    runs = []
    for correct in ("weight", "offset"):
        config = config_of(rows)
        downsampling = Downsampling(negative_rates={"click": 0.4}, sample=True, correct=correct)
        config = replace(config, data=config.data.model_copy(update={"downsampling": downsampling}))
        runs.append(Run(config, tmp_path / correct))
    for result in train_all(runs, 1):
        held_out = result["evals"][0]["tasks"]["click"]
        assert held_out["calibration"] == pytest.approx(1, abs=0.2)
        assert held_out["auc"] > 0.55
        assert result["train"]["tasks"]["click"]["calibration"] == pytest.approx(1, abs=0.3)
