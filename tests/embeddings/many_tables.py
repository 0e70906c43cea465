"""Hundreds of tables of every sharding on real ranks, looked up and trained with their keys in either order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torchrec import KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.streamable import Pipelineable

from embeddings.init import fill, initialise
from embeddings.optim import fuse_optimizer
from embeddings.plan import make_plan
from embeddings.sharders import sharders
from embeddings.specs import TableSpec
from embeddings.tables import Tables, group_kjts, key_order, rows_by_table, table_groups
from pipelines.batch import Int64
from tests.embeddings.specs import spec

STEPS = 3
SEED = 5
KINDS: tuple[dict[str, Any], ...] = (
    {"width": 8, "sharding": "table_wise"},
    {"width": 8, "sharding": "row_wise"},
    {"width": 8, "sharding": "column_wise"},
    {"width": 4, "sharding": "table_wise"},
    {"width": 8, "sharding": "row_wise", "mapping": "vocabulary", "buckets": 3},
)


def many_specs(count: int) -> dict[str, TableSpec]:
    """Kinds in turn, so that no group's order is the order of its plan. 9 to 21 rows each."""
    tables = [spec(f"t{k}", rows=9 + 3 * (k % 5), **KINDS[k % len(KINDS)]) for k in range(count)]
    return {table.name: replace(table, optimizer="sgd", lr=0.5) for table in tables}


@dataclass
class ManyBatch(Pipelineable):
    kjts: dict[str, KeyedJaggedTensor]

    def to(self, device: torch.device, non_blocking: bool = False) -> ManyBatch:
        return self

    def record_stream(self, stream: torch.Stream) -> None:
        raise AssertionError("no streams on CPU")

    def pin_memory(self) -> ManyBatch:
        return self


class Loss(nn.Module):
    """Tells the looked-up rows; their gradient is the rows themselves."""

    def forward(self, joined: dict[str, torch.Tensor], batch: ManyBatch) -> tuple[torch.Tensor, dict[str, Any]]:
        rows = rows_by_table(joined, batch.kjts)
        told = {table: found.detach().clone() for table, found in rows.items()}
        return torch.stack([found.square().sum() for found in joined.values()]).sum() / 2, told


class Many(nn.Module):
    def __init__(self, specs: dict[str, TableSpec]) -> None:
        super().__init__()
        self.tables = Tables(specs)
        self.loss = Loss()

    def forward(self, batch: ManyBatch) -> tuple[torch.Tensor, dict[str, Any]]:
        rows = self.tables(batch.kjts)
        result: tuple[torch.Tensor, dict[str, Any]] = self.loss(rows, batch)
        return result


class NoDense:
    def zero_grad(self) -> None:
        """Nothing is dense."""

    def step(self) -> None:
        """Nothing is dense."""


def rows_of_step(specs: dict[str, TableSpec], step: int, rank: int) -> dict[str, Int64]:
    """Some tables are not looked up by a rank, and by rank 1 at step 1 none is."""
    rng = np.random.default_rng(10 * step + rank)
    rows = {}
    for name, table in specs.items():
        count = 0 if (step, rank) == (1, 1) else int(rng.integers(0, 6))
        rows[name] = np.sort(rng.permutation(table.rows)[:count])
    return rows


def look_up(rank: int, world_size: int, count: int) -> dict[str, Any]:
    """{"planned" or "given" order of keys: (groups, what each step looked up on this rank, collections pipelined)}."""
    specs = many_specs(count)
    found = {}
    for order in ("planned", "given"):
        model = Many(specs)
        fuse_optimizer(model.tables, specs)
        plan = make_plan(model, specs, world_size, process_group=dist.group.WORLD)
        sharded = DistributedModelParallel(model, device=torch.device("cpu"), plan=plan, sharders=sharders())
        initialise(sharded, specs, SEED)
        groups = key_order(model.tables) if order == "planned" else table_groups(specs)
        feed = iter([ManyBatch(group_kjts(groups, rows_of_step(specs, step, rank))) for step in range(STEPS)])
        no_dense: Any = NoDense()
        pipeline: Any = TrainPipelineSparseDist(sharded, no_dense, torch.device("cpu"))
        steps = [pipeline.progress(feed) for _ in range(STEPS)]
        found[order] = (groups, steps, len(pipeline._pipelined_modules))
    return found


def reference(specs: dict[str, TableSpec], world_size: int) -> list[list[dict[str, torch.Tensor]]]:
    """[step][rank]: what a plain table would give, trained by SGD with the mean of the ranks' gradients."""
    weights = {name: torch.empty(table.rows, table.width) for name, table in specs.items()}
    for name, table in specs.items():
        fill(weights[name], table, SEED)
    steps = []
    for step in range(STEPS):
        asked = [rows_of_step(specs, step, rank) for rank in range(world_size)]
        steps.append([{n: weights[n][torch.from_numpy(r)].clone() for n, r in rows.items()} for rows in asked])
        for name, weight in weights.items():
            gradient = torch.zeros_like(weight)
            for rows in asked:
                gradient[torch.from_numpy(rows[name])] += weight[torch.from_numpy(rows[name])] / world_size
            weights[name] = weight - 0.5 * gradient
    return steps
