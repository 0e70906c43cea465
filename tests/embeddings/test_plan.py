"""The plan verb's part: a plan without processes, what it puts where, and what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from embeddings.config import Embeddings
from embeddings.errors import PlanDoesNotFitError
from embeddings.optim import fuse_optimizer
from embeddings.plan import check_fit, make_plan, report
from embeddings.plan_report import PlanReport
from embeddings.tables import Tables
from tests.embeddings.specs import spec

SPECS = {
    s.name: s
    for s in [
        spec("big", 1_000_000, 16, "row_wise"),
        spec("tags", 1000, 16, "table_wise"),
        spec("wide", 600, 16, "column_wise"),
        spec("vocab", 640, 8, "row_wise", mapping="vocabulary", buckets=64),
        spec("any", 500, 8, "auto"),
    ]
}


def _report(world_size: int, config: Embeddings | None = None, device: str = "cpu", memory: int = 0) -> PlanReport:
    config = config or Embeddings()
    tables = Tables(SPECS)
    fuse_optimizer(tables, {name: replace(table, optimizer=config.optimizer) for name, table in SPECS.items()})
    plan = make_plan(tables, SPECS, world_size, device=device, memory_per_rank=memory)
    return report(plan, SPECS, config, world_size)


@pytest.mark.parametrize(("world_size", "device"), [(1, "cpu"), (2, "cpu"), (3, "cpu"), (8, "cuda"), (100, "cuda")])
def test_a_plan_places_every_byte_once_at_any_world_size(world_size: int, device: str) -> None:
    planned = _report(world_size, device=device)
    assert [table.name for table in planned.tables] == list(SPECS)
    for table in planned.tables:
        assert sum(table.weight_bytes) == 4 * table.rows * table.width, table.name
        asked = SPECS[table.name].sharding
        assert table.sharding == asked or (asked == "auto" and table.sharding in {"table_wise", "row_wise"})


def test_shards_of_a_vocabulary_are_whole_buckets() -> None:
    (vocab,) = [table for table in _report(3).tables if table.name == "vocab"]
    assert vocab.weight_bytes == [22 * 10 * 8 * 4, 22 * 10 * 8 * 4, 20 * 10 * 8 * 4]


def test_optimizer_state_is_counted_as_it_is_kept() -> None:
    def state(optimizer: str) -> dict[str, int]:
        config = Embeddings(optimizer=optimizer)  # type: ignore[arg-type]
        return {table.name: sum(table.optimizer_bytes) for table in _report(2, config).tables}

    assert set(state("sgd").values()) == {0}
    assert state("adagrad")["tags"] == 1000 * 16 * 4
    assert state("rowwise_adagrad")["tags"] == 1000 * 4
    assert state("rowwise_adagrad")["wide"] == 2 * 600 * 4, "one state per column shard"


def test_the_report_is_an_aligned_table_and_plain_json() -> None:
    planned = _report(2)
    lines = planned.lines()
    assert len(lines) == 1 + len(SPECS) + 1 + 1 + 2
    (big,) = [line for line in lines if line.startswith("big")]
    assert " ".join(big.split()) == "big 1,000,000 16 float32 hash row_wise 0–1 61.0 MiB 3.8 MiB"
    starts = [line.index("float32") for line in lines[1 : 1 + len(SPECS)]]
    assert all(a == b for a, b in pairwise(starts))
    assert planned.to_json() == json.loads(json.dumps(planned.to_json()))
    assert planned.to_json()["rank_bytes"] == planned.bytes
    assert sum(planned.bytes) == sum(sum(table.bytes) for table in planned.tables)


def test_what_fits_passes_and_what_does_not_says_which_by_how_much_and_what_helps() -> None:
    mib = 1 << 20
    planned = _report(2, memory=50 * mib)
    check_fit(planned, 50 * mib)
    tight = _report(2, memory=20 * mib)
    with pytest.raises(PlanDoesNotFitError) as caught:
        check_fit(tight, 20 * mib)
    assert len(caught.value.problems) == 2, "one line a rank"
    line = caught.value.problems[0]
    excess = (tight.bytes[0] - 20 * mib) / mib
    assert f"{excess:.1f} MiB too much" in line
    assert "big 32.4 MiB" in line
    assert "at least 4 ranks" in line


def test_the_same_model_gives_the_same_plan() -> None:
    assert _report(3).to_json() == _report(3).to_json()


def test_tables_on_meta_take_no_memory() -> None:
    assert all(parameter.device == torch.device("meta") for parameter in Tables(SPECS).parameters())
