"""The bytes that a plan foretells are the bytes that cross the wire, on real gloo ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from embeddings.plan import make_placement
from embeddings.plan_load import Codecs, StepIds, total_load
from embeddings.tables import group_kjts, table_groups
from tests.distributed.ranks import run_ranks
from tests.embeddings.specs import spec
from tests.embeddings.toy import Run, ToyBatch, build, targets_of

IDS = 400
SPECS = {
    s.name: s
    for s in (
        spec("whole", 5000, 16, "table_wise"),
        spec("columns", 5000, 16, "column_wise"),
        spec("rows", 5000, 16, "row_wise"),
    )
}


def _sent(rank: int, world_size: int) -> dict[str, float]:
    """Bytes of float values that this rank sends to the others in one forward, and in one backward."""
    model, _ = build(Run(SPECS), rank, world_size)
    generator = torch.Generator().manual_seed(rank)
    half = {name: torch.randperm(2500, generator=generator)[: IDS // 2].sort().values for name in SPECS}
    rows = {name: torch.cat([rows, rows + 2500]) for name, rows in half.items()}  # even on both ranks' blocks
    batch = ToyBatch(
        group_kjts(table_groups(SPECS), {name: found.numpy() for name, found in rows.items()}),
        targets_of(SPECS, rows, 0),
        torch.tensor(1.0),
    )
    told = {"sum": 0.0}
    exchange = dist.all_to_all_single

    names = ("output", "input", "output_split_sizes", "input_split_sizes")

    def counting(*given: Any, **named: Any) -> Any:
        told_of = dict(zip(names, given, strict=False)) | named
        values, parts = told_of["input"], told_of.get("input_split_sizes")
        if values.is_floating_point():
            assert parts
            told["sum"] += (sum(parts) - parts[rank]) / max(1, sum(parts)) * values.nbytes
        return exchange(*given, **named)

    dist.all_to_all_single = counting
    loss, _ = model(batch)
    forward, told["sum"] = told["sum"], 0.0
    loss.backward()
    dist.all_to_all_single = exchange
    return {"forward": forward, "backward": told["sum"]}


@pytest.mark.timeout(150)
def test_rows_and_gradients_on_the_wire_are_those_of_the_plan() -> None:
    """400 ids a table and rank on 2 ranks, half of them in each block of rows."""
    found = run_ranks(_sent, 2, timeout=120)
    ids = StepIds(dict.fromkeys(SPECS, float(IDS)), dict.fromkeys(SPECS, 2.0 * IDS), "")
    load = total_load(make_placement(SPECS, 2), SPECS, ids, 2, Codecs())
    for rank in range(2):
        assert found[rank]["forward"] == load.rows_sent[rank], rank
        assert found[rank]["backward"] == load.gradients_sent[rank], rank
