"""The smallest recommender on top of Tables, trained as the trainer does, and a plain reference to hold it against."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec import KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.types import ShardingPlan
from torchrec.streamable import Pipelineable

from embeddings.config import Codec
from embeddings.init import fill, initialise
from embeddings.optim import fuse_optimizer
from embeddings.plan import make_plan
from embeddings.sharders import sharders
from embeddings.specs import TableSpec
from embeddings.tables import Tables, group_kjts, module_name, rows_by_table, table_groups
from embeddings.touched import RowMap, watch_rows
from tests.distributed.wire import counted_bytes
from tests.embeddings.specs import spec

LR_DENSE = 0.1
Shards = dict[str, list[tuple[int, int, torch.Tensor]]]

STEPS = 5
SPECS = {
    s.name: s
    for s in [
        spec("items", 60, 16, "table_wise"),  # a name that nn.ModuleDict has for a method
        spec("geo.city", 37, 16, "row_wise"),  # a name with a dot; rows that 2 does not divide
        spec("user", 40, 16, "row_wise", mapping="vocabulary", buckets=5),  # shards of 3 and 2 buckets
        spec("hour", 30, 8, "column_wise", mapping="identity"),
    ]
}
# Every optimizer and dtype that CPU has, each with settings of its own, in one model.
MIXED = {
    s.name: s
    for s in [
        replace(spec("sgd32", 60, 16, "table_wise"), optimizer="sgd", lr=0.3),
        replace(spec("sgd16", 37, 16, "row_wise"), optimizer="sgd", lr=2.0, dtype="fp16", init="normal"),
        replace(spec("ada32", 30, 8, "column_wise"), optimizer="adagrad", lr=0.1, eps=1e-3, init="zeros"),
        replace(spec("ada16", 33, 16, "table_wise"), optimizer="adagrad", lr=0.05, dtype="fp16"),
        replace(spec("row32", 40, 16, "row_wise"), optimizer="rowwise_adagrad", lr=0.1, weight_decay=0.3),
        replace(spec("row16", 44, 16, "column_wise"), optimizer="rowwise_adagrad", lr=0.1, dtype="fp16"),
        replace(spec("frozen", 50, 16, "row_wise"), optimizer="rowwise_adagrad", weight_decay=0.3, frozen=True),
    ]
}


@dataclass(frozen=True)
class Run:
    """What is trained, and how its rows travel."""

    specs: dict[str, TableSpec]
    forward_codec: Codec = "fp32"
    backward_codec: Codec = "fp32"


def with_optimizer(optimizer: Any, lr: float) -> dict[str, TableSpec]:
    """SPECS, all of them with this optimizer."""
    return {name: replace(table, optimizer=optimizer, lr=lr) for name, table in SPECS.items()}


ROWWISE = with_optimizer("rowwise_adagrad", 0.1)
RUNS = {
    "rowwise_adagrad": Run(ROWWISE),
    "again": Run(ROWWISE),
    "adagrad": Run(with_optimizer("adagrad", 0.1)),
    "sgd": Run(with_optimizer("sgd", 0.3)),
    "mixed": Run(MIXED),
    "fp16": Run(ROWWISE, "fp16", "fp16"),
    "bf16": Run(ROWWISE, "fp32", "bf16"),
    "int8": Run(ROWWISE, "int8", "int8"),
}
# On 3 ranks: whole groups of which the last one or two hold no row.
ROWLESS = Run(
    {
        s.name: s
        for s in [
            spec("tiny", 4, 8, "row_wise"),
            spec("user", 40, 16, "row_wise", mapping="vocabulary", buckets=1),
        ]
    }
)
FROZEN_STATE = 0.5  # what a frozen table's optimizer state is, before and after


@dataclass
class ToyBatch(Pipelineable):
    """targets {table: [U, W]}; weight: what each row's loss counts."""

    kjts: dict[str, KeyedJaggedTensor]
    targets: dict[str, torch.Tensor]
    weight: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> ToyBatch:
        return self

    def record_stream(self, stream: torch.Stream) -> None:
        raise AssertionError("no streams on CPU")

    def pin_memory(self) -> ToyBatch:
        return self


class Head(nn.Module):
    """Not linear in the rows, so that a wrong update shows in the next step's gradient. Widths up to 16."""

    def __init__(self, tables: list[str]) -> None:
        super().__init__()
        self.names = tables
        self.dense = nn.Linear(16, 1)

    def forward(self, joined: dict[str, torch.Tensor], batch: ToyBatch) -> torch.Tensor:
        return self.of_tables(rows_by_table(joined, batch.kjts), batch.targets)

    def of_tables(self, rows: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> torch.Tensor:
        """rows {table: [U, W]}."""
        losses = []
        for name in self.names:
            product_UW = rows[name] * targets[name]
            score_U = self.dense(nn.functional.pad(product_UW, (0, 16 - targets[name].shape[1])))
            losses.append((score_U + rows[name].sum(1, keepdim=True)).tanh().square().sum())
        return torch.stack(losses).sum()


class Toy(nn.Module):
    def __init__(self, specs: dict[str, TableSpec]) -> None:
        super().__init__()
        self.tables = Tables(specs)
        self.head = Head(list(specs))

    def forward(self, batch: ToyBatch) -> tuple[torch.Tensor, torch.Tensor]:
        loss = self.head(self.tables(batch.kjts), batch) * batch.weight
        return loss, loss.detach()


def rows_of_step(specs: dict[str, TableSpec], step: int, rank: int) -> dict[str, torch.Tensor]:
    """Other unique rows and other counts on every rank and step; rank 1 has none at step 1."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    share = 0.0 if (step, rank) == (1, 1) else 0.3 + 0.2 * rank
    return {
        name: torch.randperm(table.rows, generator=generator)[: int(share * table.rows)].sort().values
        for name, table in specs.items()
    }


def targets_of(specs: dict[str, TableSpec], rows: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
    return {
        name: torch.sin(rows[name][:, None] * 0.7 + torch.arange(table.width) + step) for name, table in specs.items()
    }


def seeded_dense(head: Head) -> None:
    with torch.no_grad():
        head.dense.weight.copy_(torch.cos(torch.arange(16.0)) * 0.3)
        head.dense.bias.zero_()


def build(run: Run, rank: int, world_size: int) -> tuple[DistributedModelParallel, ShardingPlan]:
    """The toy, sharded over the default group, with its initial values."""
    specs = run.specs
    model = Toy(specs)
    seeded_dense(model.head)
    fuse_optimizer(model.tables, specs)
    plan = make_plan(model, specs, world_size, process_group=dist.group.WORLD)
    sharded = DistributedModelParallel(
        model, device=torch.device("cpu"), plan=plan, sharders=sharders(run.forward_codec, run.backward_codec)
    )
    initialise(sharded, specs, seed=5)
    return sharded, plan


def local_shards(sharded: nn.Module, specs: dict[str, TableSpec]) -> Shards:
    """{table: [(first row, first column, values)]} of this rank."""
    state = sharded.state_dict()
    found: Shards = {}
    for name in specs:
        (value,) = [v for k, v in state.items() if k.endswith(f"embeddings.{module_name(name)}.weight")]
        found[name] = [(*s.metadata.shard_offsets, s.tensor.detach().clone()) for s in value.local_shards()]
    return found


def whole_tables(specs: dict[str, TableSpec], ranks: list[Shards]) -> dict[str, torch.Tensor]:
    """All ranks' shards put together; every cell exactly once."""
    whole = {}
    for name, table_spec in specs.items():
        table = torch.full((table_spec.rows, table_spec.width), torch.nan)
        seen = torch.zeros_like(table)
        for shards in ranks:
            for row, column, values in shards[name]:
                where = (slice(row, row + values.shape[0]), slice(column, column + values.shape[1]))
                table[where] = values
                seen[where] += 1
        assert bool((seen == 1).all()), f"shards of {name} do not tile it"
        whole[name] = table
    return whole


def train_on_ranks(rank: int, world_size: int) -> dict[str, Any]:
    runs = RUNS if world_size == 2 else {"rowwise_adagrad": RUNS["rowwise_adagrad"], "rowless": ROWLESS}
    return {name: train(run, STEPS, rank, world_size) for name, run in runs.items()}


def train(run: Run, steps: int, rank: int, world_size: int) -> dict[str, Any]:
    """Trains through TrainPipelineSparseDist; this rank's shards before and after, what was pipelined, bytes sent."""
    specs = run.specs
    sharded, plan = build(run, rank, world_size)
    frozen = [state for name in specs if specs[name].frozen for state in _states(sharded, name)]
    for state in frozen:
        state.fill_(FROZEN_STATE)
    before = local_shards(sharded, specs)
    with counted_bytes() as sent:
        losses, pipelined = train_model(sharded, specs, steps, rank, world_size)
    return {
        "before": before,
        "after": local_shards(sharded, specs),
        "losses": losses,
        "pipelined": pipelined,
        "collections": len(Tables(specs).collections),
        "states": _state_rows(sharded, specs),
        "frozen_states": [state.clone() for state in frozen],
        "sent": sum(size for dtype, size in sent.items() if dtype not in {torch.int32, torch.int64}),
        "placements": {
            name: [(s.shard_offsets, s.shard_sizes, s.placement.rank()) for s in parameter.sharding_spec.shards]
            for module_plan in plan.plan.values()
            for name, parameter in module_plan.items()
        },
    }


def train_model(
    sharded: DistributedModelParallel, specs: dict[str, TableSpec], steps: int, rank: int, world_size: int
) -> tuple[list[float], int]:
    """(losses, modules that were pipelined). The model can be called as it is afterwards."""
    dense = torch.optim.SGD([p for n, p in sharded.named_parameters() if ".dense." in n], lr=LR_DENSE)
    pipeline: Any = TrainPipelineSparseDist(sharded, dense, torch.device("cpu"))
    batches = iter([_batch(specs, step, rank, world_size) for step in range(steps)])
    losses = [float(pipeline.progress(batches)) for _ in range(steps)]
    pipelined = len(pipeline._pipelined_modules)
    pipeline.detach()
    return losses, pipelined


def _states(sharded: DistributedModelParallel, table: str) -> list[torch.Tensor]:
    """This rank's parts of a table's optimizer state: the very memory."""
    states = sharded.fused_optimizer.state_dict()["state"]
    (found,) = [state for key, state in states.items() if key.endswith(f".{module_name(table)}.weight")]
    return [shard.tensor for value in found.values() for shard in value.local_shards()]


def _state_rows(sharded: DistributedModelParallel, specs: dict[str, TableSpec]) -> dict[str, list[tuple[int, int]]]:
    """{table: (first row, rows) of each part of its optimizer's state on this rank}."""
    states = sharded.fused_optimizer.state_dict()["state"]
    return {
        name: [
            (s.metadata.shard_offsets[0], s.metadata.shard_sizes[0])
            for key, state in states.items()
            if key.endswith(f".{module_name(name)}.weight")
            for value in state.values()
            for s in value.local_shards()
        ]
        for name in specs
    }


def _batch(specs: dict[str, TableSpec], step: int, rank: int, world_size: int) -> ToyBatch:
    rows = rows_of_step(specs, step, rank)
    total = sum(len(r) for other in range(world_size) for r in rows_of_step(specs, step, other).values())
    # As the trainer scales it: TorchRec and DDP average over ranks, so this makes it the mean over the global batch.
    weight = torch.tensor(world_size / total)
    return ToyBatch(_kjts(specs, rows), targets_of(specs, rows, step), weight)


def _kjts(specs: dict[str, TableSpec], rows: dict[str, torch.Tensor]) -> dict[str, KeyedJaggedTensor]:
    return group_kjts(table_groups(specs), {table: found.numpy() for table, found in rows.items()})


def reference(
    specs: dict[str, TableSpec], steps: int, world_size: int, column_shards: dict[str, int]
) -> dict[str, torch.Tensor]:
    """Plain torch in one process on the same global batches: index_select on whole tables, FBGEMM's update rules by
    hand. column_shards {table: n}: one row-wise state for each of its n column shards. Weights are float32 that the
    table's dtype has."""
    weights = {name: torch.empty(table.rows, table.width, dtype=table.torch_dtype) for name, table in specs.items()}
    for name, table in specs.items():
        fill(weights[name], table, 5)
    weights = {name: weight.float() for name, weight in weights.items()}
    states = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    head = Head(list(specs))
    seeded_dense(head)
    dense = torch.optim.SGD(head.parameters(), lr=LR_DENSE)
    for step in range(steps):
        for weight in weights.values():
            weight.requires_grad_()
        per_rank = [rows_of_step(specs, step, rank) for rank in range(world_size)]
        total = sum(len(r) for rows in per_rank for r in rows.values())
        losses = [
            head.of_tables({n: weights[n].index_select(0, r) for n, r in rows.items()}, targets_of(specs, rows, step))
            / total
            for rows in per_rank
        ]
        torch.stack(losses).sum().backward()
        dense.step()
        dense.zero_grad()
        for name, weight in weights.items():
            grad = weight.grad if weight.grad is not None else torch.zeros_like(weight)
            seen = torch.unique(torch.cat([rows[name] for rows in per_rank]))
            updated = _updated(weight.detach(), grad, states[name], specs[name], column_shards.get(name, 1), seen)
            weights[name] = updated.to(specs[name].torch_dtype).float()
    return weights


def _updated(
    weight: torch.Tensor,
    grad: torch.Tensor,
    state: torch.Tensor,
    spec: TableSpec,
    column_shards: int,
    seen: torch.Tensor,
) -> torch.Tensor:
    if spec.frozen:
        return weight
    if spec.optimizer == "sgd":
        return weight - spec.lr * grad
    if spec.weight_decay:
        grad = grad.index_add(0, seen, weight[seen], alpha=spec.weight_decay)
    square = grad.square()
    if spec.optimizer == "rowwise_adagrad":
        parts = square.chunk(column_shards, dim=1)
        square = torch.cat([part.mean(1, keepdim=True).expand_as(part) for part in parts], dim=1)
    state += square
    return weight - spec.lr * grad / (state.sqrt() + spec.eps)


def touched_on_ranks(rank: int, world_size: int) -> dict[str, Any]:
    """Three steps, a generation ended after the second, then an evaluation: what was marked, and the rows at the
    start, after two steps and at the end."""
    sharded, _ = build(RUNS["adagrad"], rank, world_size)
    touched = watch_rows(sharded, SPECS)
    start = local_shards(sharded, SPECS)
    dense = torch.optim.SGD([p for n, p in sharded.named_parameters() if ".dense." in n], lr=LR_DENSE)
    pipeline: Any = TrainPipelineSparseDist(sharded, dense, torch.device("cpu"))
    batches = iter([_batch(SPECS, step, rank, world_size) for step in range(3)])
    found: dict[str, Any] = {"start": start, "watched": 0, "watched_too_late": 0}

    def watcher(row_map: RowMap, positions: torch.Tensor) -> None:
        """No row that comes for the first time has changed yet."""
        now = local_shards(sharded, SPECS)
        for shard in row_map.shards:
            inside = (positions >= shard.base) & (positions < shard.base + shard.rows)
            rows = positions[inside] - shard.base
            rows = rows[shard.generation_R[rows] == 0]
            found["watched"] += len(rows)
            for (_, _, before), (_, _, after) in zip(start[shard.table], now[shard.table], strict=True):
                found["watched_too_late"] += int((before[rows] != after[rows]).sum())

    touched.watcher = watcher
    for step in range(3):
        if step == 2:
            found["middle"] = local_shards(sharded, SPECS)
            touched.end_generation()
        pipeline.progress(batches)
    found["end"] = local_shards(sharded, SPECS)
    found["generations"] = [(s.table, s.first, s.generation_R.clone()) for s in touched.shards()]
    model = pipeline.detach().eval()
    with torch.no_grad():
        model(_batch(SPECS, 3, rank, world_size))
    found["marked_by_evaluation"] = any(
        not torch.equal(s.generation_R, kept[2]) for s, kept in zip(touched.shards(), found["generations"], strict=True)
    )
    return found
