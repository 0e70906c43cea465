"""Where a table lies: its sharding type and the boxes that its ranks hold, to and from TorchRec's ShardingPlan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from torch import nn
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharding_spec.api import EnumerableShardingSpec
from torchrec import EmbeddingCollection
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ParameterSharding, ShardingPlan

from embeddings.specs import TableSpec
from embeddings.tables import module_name

ShardingType = Literal["table_wise", "row_wise", "column_wise"]
KernelType = Literal["fused", "fused_uvm", "fused_uvm_caching"]


@dataclass(frozen=True)
class Box:
    """Rows row … row + rows − 1 and columns column … column + columns − 1 of a table, on a rank."""

    rank: int
    row: int
    rows: int
    column: int
    columns: int


@dataclass(frozen=True)
class Placed:
    """One table's place. boxes tile it; row-wise there is one for each rank, maybe of no rows."""

    table: str
    sharding: ShardingType
    kernel: KernelType
    boxes: tuple[Box, ...]


Placement = dict[str, Placed]


def row_blocks(spec: TableSpec, world_size: int) -> list[tuple[int, int]]:
    """(first row, rows) of each rank's row-wise shard: ⌈rows / world_size⌉ a rank, or whole buckets."""
    if spec.is_bucketed:
        held = [spec.buckets_of_rank(rank, world_size) for rank in range(world_size)]
        return [(buckets.start * spec.rows_per_bucket, len(buckets) * spec.rows_per_bucket) for buckets in held]
    block = -(-spec.rows // world_size)
    starts = [min(rank * block, spec.rows) for rank in range(world_size)]
    return [(start, min(block, spec.rows - start)) for start in starts]


def table_boxes(spec: TableSpec, sharding: ShardingType, ranks: Sequence[int], world_size: int) -> tuple[Box, ...]:
    """The boxes of a table under a sharding type. ranks: of the one shard, of each column shard; row-wise all have
    one."""
    if sharding == "row_wise":
        return tuple(
            Box(rank, row, rows, 0, spec.width) for rank, (row, rows) in enumerate(row_blocks(spec, world_size))
        )
    columns = spec.width // len(ranks)
    return tuple(Box(rank, 0, spec.rows, place * columns, columns) for place, rank in enumerate(ranks))


def collections(module: nn.Module) -> Iterator[tuple[str, EmbeddingCollection]]:
    """(path, collection) of the unsharded tables in a module."""
    for path, inner in module.named_modules():
        if isinstance(inner, EmbeddingCollection):
            yield path, inner


def to_torchrec(
    placement: Placement,
    specs: dict[str, TableSpec],
    module: nn.Module,
    device: str,
    local_world_size: int,
    first_rank: int = 0,
) -> ShardingPlan:
    """The plan that DistributedModelParallel takes for `module`. first_rank: of the group of ranks that shares the
    tables, in the world: shards name ranks of the world, TorchRec's lists of ranks those of the group."""
    by_name = {module_name(name): placed for name, placed in placement.items() if name in specs}

    def shard(box: Box) -> ShardMetadata:
        rank = box.rank + first_rank
        where = f"rank:{rank}/cpu" if device == "cpu" else f"rank:{rank}/{device}:{rank % local_world_size}"
        return ShardMetadata([box.row, box.column], [box.rows, box.columns], where)

    def parameter(placed: Placed) -> ParameterSharding:
        return ParameterSharding(
            sharding_type=placed.sharding,
            compute_kernel=placed.kernel,
            ranks=[box.rank for box in placed.boxes],
            sharding_spec=EnumerableShardingSpec([shard(box) for box in placed.boxes]),
        )

    return ShardingPlan(
        {
            path: EmbeddingModuleShardingPlan(
                {config.name: parameter(by_name[config.name]) for config in collection.embedding_configs()}
            )
            for path, collection in collections(module)
        }
    )


def from_torchrec(plan: ShardingPlan, specs: dict[str, TableSpec], first_rank: int = 0) -> Placement:
    """What `to_torchrec` was given, in the order of `specs`."""
    by_name = {module_name(name): name for name in specs}
    found: Placement = {}
    for module_plan in plan.plan.values():
        if not isinstance(module_plan, EmbeddingModuleShardingPlan):
            continue
        for name, parameter in module_plan.items():
            assert isinstance(parameter.sharding_spec, EnumerableShardingSpec)
            table = by_name[name]
            boxes = tuple(_box(shard, first_rank) for shard in parameter.sharding_spec.shards)
            found[table] = Placed(
                table, cast(ShardingType, parameter.sharding_type), cast(KernelType, parameter.compute_kernel), boxes
            )
    return {name: found[name] for name in specs if name in found}


def _box(shard: ShardMetadata, first_rank: int) -> Box:
    assert shard.placement is not None
    rank = shard.placement.rank()
    assert rank is not None
    (row, column), (rows, columns) = shard.shard_offsets, shard.shard_sizes
    return Box(rank - first_rank, row, rows, column, columns)
