"""Which table is sharded how, and where: what the run file leaves open is chosen here, the same on every machine.

TorchRec's planner is not used: it may lay two column shards of a table on one rank, knows no list of ranks, searches
for minutes over a thousand tables, and refuses without saying what would help. Here, "auto" tables are table-wise, or
the heaviest k of them row-wise; every k of a short list is tried, and the cheapest plan is taken. Shards that may lie
anywhere go, heaviest first, to the rank that has least.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embeddings.errors import PlanError
from embeddings.plan_boxes import KernelType, Placed, Placement, ShardingType, table_boxes
from embeddings.plan_load import Codecs, Floats, StepIds, table_load
from embeddings.specs import TableSpec

# What one more kind of sharding costs a step, in bytes on the wire: two more exchanges each way.
KIND_BYTES = 1 << 20
# Memory beyond a rank's fair share, in bytes that are worth as much as one on the wire in every step.
UNEVEN_BYTES = 1024
# A byte read from or written to the device's memory, in bytes on the wire.
MEMORY_SHARE = 1 / 16

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cluster:
    """Ranks that share the tables. memory: bytes of a rank's device for tables, 0 = not known. local_world_size: ranks
    a host."""

    world_size: int
    local_world_size: int
    device: str = "cpu"
    memory: int = 0


def choose(specs: dict[str, TableSpec], cluster: Cluster, ids: StepIds, codecs: Codecs) -> Placement:
    """A placement that keeps what the specs ask for. When nothing fits into the memory, the one that comes nearest.

    Raises PlanError with everything that the specs ask for and this cluster does not have.
    """
    check_constraints(specs, cluster)
    weighed = _Weighed(specs, cluster, ids, codecs)
    best = min((weighed.placed(kinds) for kinds in weighed.alternatives()), key=lambda found: found.cost)
    return {
        name: Placed(
            name,
            best.kinds[name],
            kernel_of(spec),
            table_boxes(spec, best.kinds[name], best.ranks.get(name, ()), cluster.world_size),
        )
        for name, spec in specs.items()
    }


def check_constraints(specs: dict[str, TableSpec], cluster: Cluster) -> None:
    """Raises PlanError: ranks and kernels that are not there."""
    problems = []
    for spec in specs.values():
        beyond = [rank for rank in spec.ranks if not 0 <= rank < cluster.world_size]
        if beyond:
            problems.append(
                f"table {spec.name!r}: ranks = {list(spec.ranks)} → there are ranks 0 to {cluster.world_size - 1} "
                f"→ drop {', '.join(map(str, beyond))}, or plan for more ranks"
            )
        if spec.kernel not in ("auto", "fused") and cluster.device != "cuda":
            problems.append(
                f"table {spec.name!r}: kernel = {spec.kernel!r} on {cluster.device} → only CUDA devices read rows from "
                "the host's memory → kernel = 'fused', or --device cuda"
            )
    if problems:
        raise PlanError(problems)


@dataclass(frozen=True)
class _Found:
    """kinds: of every table. ranks: of the shards of those that are not row-wise. cost: compared in order: bytes that
    do not fit, then bytes a step."""

    kinds: dict[str, ShardingType]
    ranks: dict[str, list[int]]
    cost: tuple[float, float]


class _Weighed:
    """Tables with their weights, ready to be placed under different choices of sharding."""

    def __init__(self, specs: dict[str, TableSpec], cluster: Cluster, ids: StepIds, codecs: Codecs) -> None:
        self._specs, self._cluster = specs, cluster
        self._bytes, self._moved = {}, {}
        for spec in specs.values():
            # Alone on rank 0: what it holds of a whole table, and moves for all ranks.
            load = table_load(spec, _whole(spec), ids, cluster.world_size, codecs)
            self._bytes[spec.name] = float(load.device[0])
            self._moved[spec.name] = float(load.busiest[0] + (load.lookup[0] + load.update[0]) * MEMORY_SHARE)

    def alternatives(self) -> Iterator[dict[str, ShardingType]]:
        """{table: how}: the heaviest k of the open ones row-wise, by bytes and by traffic."""
        fixed: dict[str, ShardingType] = {}
        for name, spec in self._specs.items():
            if spec.sharding != "auto":
                fixed[name] = spec.sharding
            elif spec.ranks:
                fixed[name] = "table_wise"
        opened = [name for name in self._specs if name not in fixed]
        for weight in (self._bytes, self._moved):
            ordered = sorted(opened, key=lambda n: (-weight[n], n))
            for count in shares_to_try(len(opened)) if self._cluster.world_size > 1 else [0]:
                heavy: dict[str, ShardingType] = dict.fromkeys(ordered[:count], "row_wise")
                light: dict[str, ShardingType] = dict.fromkeys(ordered[count:], "table_wise")
                yield fixed | heavy | light

    def placed(self, kinds: dict[str, ShardingType]) -> _Found:
        """The heaviest first, each shard to the emptiest rank that it may lie on."""
        world_size = self._cluster.world_size
        held, moved = np.zeros(world_size), np.zeros(world_size)
        scale = (sum(self._bytes.values()) or 1.0, sum(self._moved.values()) or 1.0)
        for name, kind in kinds.items():
            if kind == "row_wise":
                held += self._bytes[name] * _row_shares(self._specs[name], world_size)
                moved += self._moved[name] / world_size
        movable = [name for name, kind in kinds.items() if kind != "row_wise"]
        weight = {name: self._bytes[name] / scale[0] + self._moved[name] / scale[1] for name in movable}
        ranks: dict[str, list[int]] = {}
        for name in sorted(movable, key=lambda n: (-weight[n], n)):
            allowed = np.array(sorted(set(self._specs[name].ranks)) or range(world_size))
            shards = column_shards(self._specs[name], len(allowed)) if kinds[name] == "column_wise" else 1
            size, traffic = self._bytes[name] / shards, self._moved[name] / shards
            ranks[name] = []
            for _ in range(shards):
                rank = _emptiest(held, moved, scale, size, self._cluster.memory, _fresh(allowed, ranks[name]))
                ranks[name].append(rank)
                held[rank] += size
                moved[rank] += traffic
        return _Found(kinds, ranks, self._cost(kinds, held, moved))

    def _cost(self, kinds: dict[str, ShardingType], held: Floats, moved: Floats) -> tuple[float, float]:
        memory = self._cluster.memory
        over = float(np.maximum(held - memory, 0).sum()) if memory else 0.0
        used = {(self._specs[name].width, self._specs[name].mapping, kind) for name, kind in kinds.items()}
        uneven = float(held.max() - held.mean()) / UNEVEN_BYTES
        return over, float(moved.max()) + uneven + KIND_BYTES * len(used)


def column_shards(spec: TableSpec, ranks: int) -> int:
    """How many column shards a table has that may lie on so many ranks."""
    return spec.width // spec.split_width(ranks)


def _whole(spec: TableSpec) -> Placed:
    return Placed(spec.name, "table_wise", kernel_of(spec), table_boxes(spec, "table_wise", [0], 1))


def _row_shares(spec: TableSpec, world_size: int) -> Floats:
    """Each rank's share of a table's rows, row-wise."""
    units = spec.buckets if spec.is_bucketed else spec.rows
    block = -(-units // world_size)
    shares: Floats = np.clip(units - block * np.arange(world_size), 0, block) / units
    return shares


def kernel_of(spec: TableSpec) -> KernelType:
    """ "auto" keeps rows in the device's memory: nothing slower is chosen without being asked for."""
    return "fused" if spec.kernel == "auto" else spec.kernel


def shares_to_try(tables: int) -> list[int]:
    """How many of the first tables: 0, 1, 2, 3, 4, 6, 8, 12, …, all."""
    counts = {0, 1, tables}
    power = 2
    while power <= tables:
        counts |= {power, power + power // 2}
        power *= 2
    return sorted(count for count in counts if count <= tables)


def _fresh(allowed: Ints, taken: list[int]) -> Ints:
    """Ranks that have fewest shards of the table: none while there are such."""
    if not taken:
        return allowed
    counts = np.array([taken.count(rank) for rank in allowed.tolist()])
    fewest: Ints = allowed[counts == counts.min()]
    return fewest


def _emptiest(held: Floats, moved: Floats, scale: tuple[float, float], size: float, memory: int, at: Ints) -> int:
    """The rank with least to hold and to do, among those with room; the one with most room where none has enough."""
    if memory:
        room = held[at] + size <= memory
        if not room.any():
            return int(at[np.argmin(held[at])])
        at = at[room]
    return int(at[np.argmin(held[at] / scale[0] + moved[at] / scale[1])])
