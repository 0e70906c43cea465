"""A small model as the trainer has it: sharded tables with fused row-wise Adagrad, a dense layer with AdamW."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torchrec
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.sharding_plan import column_wise, construct_module_sharding_plan, row_wise, table_wise
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.optim import RowWiseAdagrad

from embeddings.held import Held, whole
from embeddings.held_tables import held_dense, held_tables
from embeddings.tables import module_name
from tests.embeddings.specs import spec

TABLES = {"user": 10, "item": 4}  # of 10 rows three ranks hold 4, 4 and 2, of 4 rows 2, 2 and none
WIDTH = 8
SPECS = {name: spec(name, rows, WIDTH, "auto") for name, rows in TABLES.items()}


def adam_tensors(optimizer: torch.optim.Optimizer, named: list[tuple[str, nn.Parameter]]) -> dict[str, Any]:
    """{parameter: its moments}, made as the optimizer itself would where it has taken no step."""
    for _, parameter in named:
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
    return {name: dict(optimizer.state[parameter]) for name, parameter in named}


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = torchrec.EmbeddingCollection(
            tables=[
                torchrec.EmbeddingConfig(
                    name=module_name(name), embedding_dim=WIDTH, num_embeddings=rows, feature_names=[name]
                )
                for name, rows in TABLES.items()
            ]
        )
        self.dense = nn.Linear(WIDTH, 1)

    def forward(self, kjt: Any) -> torch.Tensor:
        rows = self.tables(kjt)
        return sum(self.dense(rows[name].values()).sum() for name in TABLES)


class Sharded:
    """`sharding`: table_wise, row_wise or column_wise, of all tables. Starts from the same weights under any of
    them."""

    def __init__(self, sharding: str, seed: int) -> None:
        torch.manual_seed(seed)
        world_size = dist.get_world_size()
        toy = Toy()
        _apply_optimizer_in_backward(RowWiseAdagrad, toy.tables.parameters(), {"lr": 0.1})
        per_table = {
            module_name(name): table_wise(rank=number % world_size)
            if sharding == "table_wise"
            else row_wise()
            if sharding == "row_wise"
            else column_wise(ranks=[0, world_size - 1])
            for number, name in enumerate(TABLES)
        }
        sharder = EmbeddingCollectionSharder()
        plan = construct_module_sharding_plan(
            toy.tables, per_table, sharder=sharder, local_size=world_size, world_size=world_size, device_type="cpu"
        )
        self.model = DistributedModelParallel(
            toy,
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            device=torch.device("cpu"),
            plan=ShardingPlan(plan={"tables": plan}),
            sharders=[sharder],
        )
        self.named = [(name, p) for name, p in self.model.named_parameters() if "dense" in name]
        self.optimizer = torch.optim.AdamW([p for _, p in self.named], lr=0.01)

    def step(self, step: int) -> None:
        """One update; every rank has the same ids, so the dense gradients agree without a reduction."""
        generator = torch.Generator().manual_seed(step)
        values = torch.cat([torch.randint(rows, (4,), generator=generator) for rows in TABLES.values()])
        kjt = torchrec.KeyedJaggedTensor(keys=list(TABLES), values=values, lengths=torch.full((len(TABLES),), 4))
        self.optimizer.zero_grad()
        (self.model(kjt) ** 2).backward()
        self.optimizer.step()

    def tensors(self) -> dict[str, Held]:
        held = {f"tables/{name}": table for name, table in held_tables(self.model, SPECS).items()}
        held |= {f"dense/{name}": dense for name, dense in held_dense(self.model, SPECS).items()}
        for name, moments in adam_tensors(self.optimizer, self.named).items():
            held |= {f"dense_optimizer/{name}/{key}": whole(moment) for key, moment in moments.items()}
        return held

    def gathered(self) -> dict[str, list[Any]]:
        """{name: whole tensor as a list}, the same on every rank."""
        parts = {
            name: (held.size, [(chunk.offsets, chunk.tensor.clone()) for chunk in held.chunks])
            for name, held in self.tensors().items()
        }
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, parts)
        tensors: dict[str, torch.Tensor] = {}
        for of_rank in everywhere:
            for name, (size, boxes) in of_rank.items():
                target = tensors.setdefault(name, torch.full(size, float("nan")))
                for offsets, values in boxes:
                    target[tuple(slice(o, o + n) for o, n in zip(offsets, values.shape, strict=True))] = values
        return {name: tensor.tolist() for name, tensor in tensors.items()}
