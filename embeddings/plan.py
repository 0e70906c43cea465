"""Which rank holds which part of which table: TorchRec's planner, held to what the specs ask for."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch.distributed as dist
from torch import nn
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharding_spec.api import EnumerableShardingSpec
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.proposers import GreedyProposer, UniformProposer
from torchrec.distributed.planner.stats import NoopEmbeddingStats
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    PlannerError,
    PlannerErrorType,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan, ShardingType

from embeddings.config import Embeddings
from embeddings.errors import PlanDoesNotFitError, PlanError
from embeddings.plan_report import PlanReport, TableReport, optimizer_bytes
from embeddings.sharders import sharders
from embeddings.specs import TableSpec
from embeddings.tables import module_name

log = logging.getLogger(__name__)

UNBOUNDED = 1 << 60


def make_plan(
    module: nn.Module,
    specs: dict[str, TableSpec],
    world_size: int,
    local_world_size: int = 0,
    device: str = "cpu",
    *,
    process_group: dist.ProcessGroup | None = None,
    memory_per_rank: int = 0,
    ids_per_rank: int = 4096,
) -> ShardingPlan:
    """A plan for the unsharded tables in `module`, which is what DistributedModelParallel will be given (with
    `sharders()`).

    local_world_size: ranks a host, 0 = all. memory_per_rank: bytes that tables may take of a rank, 0 = not known.
    ids_per_rank: unique ids a rank looks up per table and step, for the planner's estimates. With a process group
    rank 0 plans and the others are told; without one nothing is communicated.

    "auto" chooses between table_wise and row_wise, with which the result of training does not depend on the plan.
    When the planner finds nothing within the memory it plans without that bound (and says so): `check_fit` then tells
    what does not fit. Raises PlanError, on every rank.
    """

    def plan() -> ShardingPlan:
        return _plan(
            module, specs, _Cluster(world_size, local_world_size or world_size, device, memory_per_rank), ids_per_rank
        )

    if process_group is None or dist.get_world_size(process_group) == 1:
        return plan()
    told: list[ShardingPlan | PlanError | None] = [None]
    if dist.get_rank(process_group) == 0:
        try:
            told = [plan()]
        except PlanError as error:
            told = [error]
    dist.broadcast_object_list(told, dist.get_global_rank(process_group, 0), process_group)
    if isinstance(told[0], PlanError):
        raise told[0]
    return told[0]


def report(plan: ShardingPlan, specs: dict[str, TableSpec], config: Embeddings, world_size: int) -> PlanReport:
    """What the plan puts where."""
    by_name = {module_name(spec.name): spec for spec in specs.values()}
    tables = []
    for module_plan in plan.plan.values():
        if not isinstance(module_plan, EmbeddingModuleShardingPlan):
            continue
        for name, parameter in module_plan.items():
            spec = by_name[name]
            weights, states = [0] * world_size, [0] * world_size
            for shard in parameter.sharding_spec.shards:
                rows, columns = shard.shard_sizes
                rank = shard.placement.rank()
                weights[rank] += 4 * rows * columns
                states[rank] += optimizer_bytes(config.optimizer, rows, columns)
            tables.append(
                TableReport(
                    spec.name, spec.rows, spec.width, "float32", spec.mapping, parameter.sharding_type, weights, states
                )
            )
    order = list(specs)
    return PlanReport(world_size, sorted(tables, key=lambda table: order.index(table.name)))


def check_fit(plan_report: PlanReport, memory_per_rank: int) -> None:
    """Raises PlanDoesNotFitError when the tables of some rank take more than `memory_per_rank` bytes."""
    problems = plan_report.misfits(memory_per_rank)
    if problems:
        raise PlanDoesNotFitError(problems)


@dataclass(frozen=True)
class _Cluster:
    """memory: bytes of a rank, 0 = not known."""

    world_size: int
    local_world_size: int
    device: str
    memory: int

    def topology(self) -> Topology:
        memory = self.memory or UNBOUNDED
        return TopologyFactory.create_topology(
            TrainerConfig(world_size=self.world_size, local_world_size=self.local_world_size),
            HardwareConfig(hbm_cap_bytes=memory, ddr_cap_bytes=memory),
            KernelConfig(compute_device=self.device),
        )


def _plan(module: nn.Module, specs: dict[str, TableSpec], cluster: _Cluster, ids_per_rank: int) -> ShardingPlan:
    world_size = cluster.world_size
    planner = EmbeddingShardingPlanner(
        topology=cluster.topology(),
        batch_size=1,  # a KJT has stride 1: all unique ids of a table are one "sample"
        constraints={module_name(spec.name): _constraints(spec, world_size, ids_per_rank) for spec in specs.values()},
        # The grid search over all choices is exponential in the number of tables.
        proposer=[GreedyProposer(), GreedyProposer(use_depth=False), UniformProposer()],
        storage_reservation=FixedPercentageStorageReservation(0.0),
        stats=NoopEmbeddingStats(),
        debug=False,
    )
    try:
        plan = planner.plan(module, sharders())
    except PlannerError as error:
        if cluster.memory and error.error_type is PlannerErrorType.INSUFFICIENT_STORAGE:
            log.warning("the planner finds no plan within %d bytes a rank; planning without that bound", cluster.memory)
            return _plan(module, specs, replace(cluster, memory=0), ids_per_rank)
        raise PlanError([f"no sharding plan for {world_size} ranks: {str(error).splitlines()[0]}"]) from error
    _end_shards_at_bucket_borders(plan, specs, world_size)
    return plan


def _constraints(spec: TableSpec, world_size: int, ids_per_rank: int) -> ParameterConstraints:
    choices = [ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value]
    return ParameterConstraints(
        sharding_types=choices if spec.sharding == "auto" else [spec.sharding],
        compute_kernels=[EmbeddingComputeKernel.FUSED.value],
        min_partition=spec.split_width(world_size),
        pooling_factors=[float(min(ids_per_rank, spec.rows))],
    )


def _end_shards_at_bucket_borders(plan: ShardingPlan, specs: dict[str, TableSpec], world_size: int) -> None:
    """The planner cuts rows into ⌈rows / world_size⌉; a vocabulary's shards are whole buckets (see
    embeddings.sharders).
    """
    by_name = {module_name(spec.name): spec for spec in specs.values() if spec.is_bucketed}
    for module_plan in plan.plan.values():
        assert isinstance(module_plan, EmbeddingModuleShardingPlan)
        for name in by_name.keys() & module_plan.keys():
            spec = by_name[name]
            shards = []
            for rank, shard in enumerate(module_plan[name].sharding_spec.shards):
                buckets = spec.buckets_of_rank(rank, world_size)
                offset, rows = buckets.start * spec.rows_per_bucket, len(buckets) * spec.rows_per_bucket
                shards.append(ShardMetadata([offset, 0], [rows, spec.width], shard.placement))
            module_plan[name].sharding_spec = EnumerableShardingSpec(shards)
