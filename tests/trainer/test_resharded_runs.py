"""A run that goes on under another sharding and another number of ranks, again and again, ends where one process does
that was never stopped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from embeddings.config import Table
from tests.pipelines.rows import write_segments
from tests.trainer.runs import Run, differing, newest_state, saved_tensors, tiny_config, train_all


@dataclass(frozen=True)
class Leg:
    """Up to which step, on how many ranks, each table sharded how."""

    upto: int
    ranks: int
    sharding: str


LEGS = {
    # Element-wise states are the same under every sharding; row-wise ones where a row is not cut.
    "adagrad": [
        Leg(2, 2, "table_wise"), Leg(4, 3, "column_wise"), Leg(6, 1, "row_wise"), Leg(0, 2, "column_wise"),
    ],
    "rowwise_adagrad": [
        Leg(2, 2, "row_wise"), Leg(4, 3, "table_wise"), Leg(6, 1, "table_wise"), Leg(0, 2, "row_wise"),
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_any_plan_to_any_plan_through_the_trainer(tmp_path: Path) -> None:
    rows = write_segments(tmp_path / "rows", {"2026-01-01": [14, 9], "2026-01-02": [11, 1]})

    def run(optimizer: str, leg: Leg, name: str) -> Run:
        tables = {"item": Table(rows=256, mapping="vocabulary", buckets=8), "tags": Table(rows=50)}
        embeddings = {"tables": tables, "optimizer": optimizer, "sharding": leg.sharding}
        config = tiny_config(rows, embeddings=embeddings, train={"max_steps": leg.upto})
        return Run(config, tmp_path / name / optimizer, "auto")

    train_all([run(optimizer, Leg(0, 1, "auto"), "never stopped") for optimizer in LEGS], 1)
    for legs in zip(*LEGS.values(), strict=True):
        train_all([run(optimizer, leg, "legs") for optimizer, leg in zip(LEGS, legs, strict=True)], legs[0].ranks)
    for optimizer, legs in LEGS.items():
        whole, found = tmp_path / "never stopped" / optimizer, tmp_path / "legs" / optimizer
        assert differing(saved_tensors(whole), saved_tensors(found), tolerance=5e-5) == [], optimizer
        state = newest_state(found)
        assert len(state.resumed_from) == len(legs) - 1
        assert (state.step, state.examples) == (newest_state(whole).step, newest_state(whole).examples)
