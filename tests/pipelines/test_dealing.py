"""Ranks carry alike, whatever the histories' tail, and dealing changes no global batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.batch import Batch
from pipelines.carry import carry_window
from pipelines.config import Data
from pipelines.reading import RowCost
from pipelines.schema import Column, History, Schema
from pipelines.segments import Segment
from pipelines.windows import Pass

LONGEST = 1024
TOWER = RowCost(fixed=4.0e6, linear=1.4e5, quadratic=128.0)  # two full layers of width 64
TAILS = {
    "lognormal": lambda rng, rows: rng.lognormal(3.4, 1.1, rows).astype(np.int64),
    "geometric": lambda rng, rows: rng.geometric(1 / 120, rows),
}


def write(path: Path, tail: str, rows: int) -> Path:
    rng = np.random.default_rng(5)
    lengths = np.minimum(TAILS[tail](rng, rows), LONGEST)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    times = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    table = {
        "user": np.arange(rows),
        "time": np.full(rows, 10**6),
        "past": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(times % 97)),
        "past_time": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(times)),
        "item": pa.array([[1]] * rows),
    }
    pq.write_table(pa.table(table), path)
    return path


def batches(path: Path, global_batch: int, ranks: int, cost: RowCost) -> list[list[Batch]]:
    """[of each rank][of each global batch]"""
    columns = {
        "user": Column(role="user", kind="id"),
        "time": Column(role="time", kind="time"),
        "past": Column(role="item", kind="id", group="history.past"),
        "past_time": Column(role="time", kind="time", group="history.past"),
        "item": Column(role="item", kind="id", group="candidates"),
    }
    histories = {"past": History(max_length=LONGEST, time="past_time")}
    schema = Schema(user="user", columns=columns, histories=histories)
    data = Data(rows=str(path), global_batch=global_batch, window_batches=2)
    pass_ = Pass(schema, data, [Segment("all", (str(path),))], seed=1, cost=cost)
    found: list[list[Batch]] = [[] for _ in range(ranks)]
    for window in pass_.windows_from():
        for rank, carried in carry_window(window, pass_.reading, ranks, range(ranks)).items():
            found[rank] += carried
    return found


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(("ranks", "global_batch"), [(8, 512), (8, 4096), (64, 4096)])
@pytest.mark.parametrize("cost", [RowCost(), TOWER], ids=["by length", "by the tower"])
def test_ranks_carry_alike(tmp_path: Path, tail: str, ranks: int, global_batch: int, cost: RowCost) -> None:
    """Largest over mean at most 1.05, of the lengths of the batches as they were read."""
    path = write(tmp_path / "rows.parquet", tail, 2 * global_batch)
    dealt = batches(path, global_batch, ranks, cost)
    for step in range(2):
        loads = []
        for rank in range(ranks):
            batch = dealt[rank][step]
            assert not batch.filler
            lengths = batch.history_lengths["past"].astype(float) + batch.candidate_lengths
            loads.append((cost.fixed + cost.linear * lengths + cost.quadratic * lengths**2).sum())
        assert max(loads) / np.mean(loads) <= 1.05


def test_dealing_leaves_global_batches_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", "lognormal", 1000)
    wanted = [sorted(batch.row.tolist()) for batch in batches(path, 300, 1, RowCost())[0]]
    for ranks in (3, 64):
        dealt = batches(path, 300, ranks, TOWER)
        for step, rows in enumerate(wanted):
            assert sorted(row for rank in dealt for row in rank[step].row.tolist()) == rows
            assert all(rank[step].rows for rank in dealt), "no rank is without rows where there are enough"
