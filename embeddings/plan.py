"""Which rank holds which part of which table: chosen, or given back from a file; the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch import nn
from torchrec.distributed.types import ShardingPlan

from embeddings.config import Embeddings
from embeddings.errors import PlanError
from embeddings.plan_boxes import Placement, from_torchrec, to_torchrec
from embeddings.plan_choice import Cluster, choose
from embeddings.plan_file import read_placement
from embeddings.plan_load import Codecs, StepIds, total_load, unknown_ids
from embeddings.plan_report import PlanReport
from embeddings.specs import TableSpec


@dataclass(frozen=True)
class Groups:
    """The world as `replicas` groups of `size` ranks that each hold all tables: ranks that follow one another, so that
    a group's exchange stays on few hosts."""

    replicas: int
    size: int

    def first_rank(self, rank: int) -> int:
        """Of the group that a rank is in."""
        return rank // self.size * self.size


def make_groups(replicas: int, world_size: int) -> Groups:
    """Raises PlanError when the world cannot be cut so."""
    if world_size % replicas:
        fitting = [count for count in range(1, replicas) if world_size % count == 0]
        raise PlanError(
            [
                f"embeddings.replicas = {replicas} on {world_size} ranks → groups have equally many ranks "
                f"→ {fitting[-1]} group(s) would do, or another number of ranks"
            ]
        )
    return Groups(replicas, world_size // replicas)


def make_plan(
    module: nn.Module,
    specs: dict[str, TableSpec],
    world_size: int,
    local_world_size: int = 0,
    device: str = "cpu",
    *,
    process_group: dist.ProcessGroup | None = None,
    config: Embeddings | None = None,
    ids: StepIds | None = None,
    memory_per_rank: int = 0,
) -> ShardingPlan:
    """A plan for the unsharded tables in `module`, which is what DistributedModelParallel will be given (with
    `sharders()`).

    world_size: of all ranks; under `config.replicas` the plan is of this rank's group. local_world_size: ranks a host,
    0 = all. memory_per_rank: bytes that tables may take of a rank, 0 = not known. ids: unique ids of a step. With a
    process group (of the world) rank 0 plans and the others are told; without one nothing is communicated.

    "auto" chooses between table_wise and row_wise, with which the result of training does not depend on the plan.
    When nothing fits the nearest is planned: `plan_fit.check_fit` then tells what does not fit. Raises PlanError, on
    every rank.
    """
    config = config or Embeddings()
    alone = process_group is None or dist.get_world_size(process_group) == 1
    told: list[Placement | PlanError | None] = [None]
    rank = 0 if process_group is None else dist.get_rank(process_group)
    if rank == 0:
        try:
            told = [make_placement(specs, world_size, local_world_size, device, config, ids, memory_per_rank)]
        except PlanError as error:
            told = [error]
    if not alone:
        dist.broadcast_object_list(told, group_src=0, group=process_group)
    placement = told[0]
    if isinstance(placement, PlanError):
        raise placement
    assert placement is not None
    first_rank = make_groups(config.replicas, world_size).first_rank(rank)
    return to_torchrec(placement, specs, module, device, local_world_size or world_size, first_rank)


def make_placement(
    specs: dict[str, TableSpec],
    world_size: int,
    local_world_size: int = 0,
    device: str = "cpu",
    config: Embeddings | None = None,
    ids: StepIds | None = None,
    memory_per_rank: int = 0,
) -> Placement:
    """See make_plan; the placement in one group of ranks."""
    config = config or Embeddings()
    size = make_groups(config.replicas, world_size).size
    cluster = Cluster(size, min(local_world_size or world_size, size), device, memory_per_rank)
    if config.plan:
        return read_placement(config.plan, specs, cluster, config.replicas)
    return choose(specs, cluster, ids or unknown_ids(specs, size), codecs(config))


def anywhere(config: Embeddings) -> Embeddings:
    """The same tables, free of what was asked for the machines they were trained on."""
    free = {"ranks": (), "kernel": ""}
    tables = {name: table.model_copy(update=free) for name, table in config.tables.items()}
    return config.model_copy(update={"replicas": 1, "plan": "", "kernel": "auto", "tables": tables})


def codecs(config: Embeddings) -> Codecs:
    """Of the run file."""
    return Codecs(config.forward_codec, config.backward_codec)


def report(
    plan: ShardingPlan | Placement,
    specs: dict[str, TableSpec],
    config: Embeddings,
    world_size: int,
    ids: StepIds | None = None,
) -> PlanReport:
    """What the plan of the first group of ranks puts where, and moves in a step."""
    placement = from_torchrec(plan, specs) if isinstance(plan, ShardingPlan) else plan
    size = make_groups(config.replicas, world_size).size
    ids = ids or unknown_ids(specs, size)
    load = total_load(placement, specs, ids, size, codecs(config))
    return PlanReport(placement, specs, load, ids, world_size, config.replicas, config.replica_sync_steps)
