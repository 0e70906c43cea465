"""Which table is sharded how, and where: what the run file leaves open is chosen here, the same on every machine.

TorchRec's planner is not used: it may lay two column shards of a table on one rank, knows no list of ranks, searches
for minutes over a thousand tables, and refuses without saying what would help. Here, "auto" tables are table-wise, or
the heaviest k of them row-wise; every k of a short list is tried, and the cheapest plan is taken. Shards that may lie
anywhere go, heaviest first, to the rank that has least.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from embeddings.errors import PlanError
from embeddings.plan_boxes import Box, KernelType, Placed, Placement, ShardingType, table_boxes
from embeddings.plan_load import Codecs, Floats, StepIds, held_bytes, table_load
from embeddings.specs import TableSpec
from embeddings.tables import table_groups

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
    do not fit, then bytes a step. held_2W: bytes of each rank, on the device and on the host."""

    kinds: dict[str, ShardingType]
    ranks: dict[str, list[int]]
    cost: tuple[float, float]
    held_2W: Floats


def evenest(specs: dict[str, TableSpec], cluster: Cluster) -> tuple[float, float]:
    """Bytes that the fullest rank holds, on the device and on the host, when every table that may be is row-wise: what
    memory needs at the least, found without a look at traffic."""
    weighed = _Weighed(specs, cluster)
    device, host = weighed.placed(weighed.kinds(weighed.opened, [])).held_2W.max(axis=1).tolist()
    return device, host


class _Weighed:
    """Tables with their weights, ready to be placed under different choices of sharding. Without ids only memory
    counts."""

    def __init__(
        self, specs: dict[str, TableSpec], cluster: Cluster, ids: StepIds | None = None, codecs: Codecs | None = None
    ) -> None:
        self._specs, self._cluster = specs, cluster
        self._bytes = {name: float(sum(_shard_bytes(spec, 1))) for name, spec in specs.items()}
        self._moved = dict.fromkeys(specs, 0.0)
        if ids is not None and codecs is not None:
            for name, spec in specs.items():
                # Alone on rank 0: what it moves for all ranks.
                whole = Placed(name, "table_wise", kernel_of(spec), table_boxes(spec, "table_wise", [0], 1))
                load = table_load(spec, whole, ids, cluster.world_size, codecs)
                self._moved[name] = float(load.busiest[0] + (load.lookup[0] + load.update[0]) * MEMORY_SHARE)
        self._fixed: dict[str, ShardingType] = {}
        for name, spec in specs.items():
            if spec.sharding != "auto":
                self._fixed[name] = spec.sharding
            elif spec.ranks:
                self._fixed[name] = "table_wise"
        self.opened = [name for name in specs if name not in self._fixed]

    def alternatives(self) -> Iterator[dict[str, ShardingType]]:
        """{table: how}: the heaviest k of the open ones row-wise, by bytes and by traffic."""
        for weight in (self._bytes, self._moved):
            ordered = sorted(self.opened, key=lambda n: (-weight[n], n))
            for count in shares_to_try(len(ordered)) if self._cluster.world_size > 1 else [0]:
                yield self.kinds(ordered[:count], ordered[count:])

    def kinds(self, row_wise: list[str], table_wise: list[str]) -> dict[str, ShardingType]:
        """What is fixed, and these."""
        chosen: dict[str, ShardingType] = dict(self._fixed)
        chosen.update(dict.fromkeys(row_wise, "row_wise"))
        chosen.update(dict.fromkeys(table_wise, "table_wise"))
        return chosen

    def placed(self, kinds: dict[str, ShardingType]) -> _Found:
        """The heaviest first, each shard to the emptiest rank that it may lie on."""
        world_size = self._cluster.world_size
        held_2W, moved_W = np.zeros((2, world_size)), np.zeros(world_size)
        scale = (sum(self._bytes.values()) or 1.0, sum(self._moved.values()) or 1.0)
        for name, kind in kinds.items():
            if kind == "row_wise":
                held_2W += np.outer(_shard_bytes(self._specs[name], 1), _row_shares(self._specs[name], world_size))
                moved_W += self._moved[name] / world_size
        movable = [name for name, kind in kinds.items() if kind != "row_wise"]
        weight = {name: self._bytes[name] / scale[0] + self._moved[name] / scale[1] for name in movable}
        ranks: dict[str, list[int]] = {}
        for name in sorted(movable, key=lambda n: (-weight[n], n)):
            allowed = np.array(sorted(set(self._specs[name].ranks)) or range(world_size))
            shards = column_shards(self._specs[name], len(allowed)) if kinds[name] == "column_wise" else 1
            device, host = _shard_bytes(self._specs[name], shards)
            ranks[name] = []
            for _ in range(shards):
                at = _fresh(allowed, ranks[name])
                if self._cluster.memory:
                    at = _with_room(held_2W[0], device, self._cluster.memory, at)
                rank = int(at[np.argmin(held_2W[:, at].sum(axis=0) / scale[0] + moved_W[at] / scale[1])])
                ranks[name].append(rank)
                held_2W[:, rank] += device, host
                moved_W[rank] += self._moved[name] / shards
        return _Found(kinds, ranks, self._cost(kinds, held_2W, moved_W), held_2W)

    def _cost(self, kinds: dict[str, ShardingType], held_2W: Floats, moved_W: Floats) -> tuple[float, float]:
        memory = self._cluster.memory
        over = float(np.maximum(held_2W[0] - memory, 0).sum()) if memory else 0.0
        held_W = held_2W.sum(axis=0)
        uneven = float(held_W.max() - held_W.mean()) / UNEVEN_BYTES
        return over, float(moved_W.max()) + uneven + KIND_BYTES * exchanges(self._specs, kinds)


def exchanges(specs: dict[str, TableSpec], kinds: Mapping[str, str]) -> int:
    """How many exchanges of rows a forward has: one for each kind of sharding in each group of tables."""
    return len({(group, kinds[name]) for group, names in table_groups(specs).items() for name in names})


def column_shards(spec: TableSpec, ranks: int) -> int:
    """How many column shards a table has that may lie on so many ranks."""
    return spec.width // spec.split_width(ranks)


def _shard_bytes(spec: TableSpec, shards: int) -> tuple[int, int]:
    """(on the device, on the host) of one of so many column shards; of the whole table with 1."""
    columns = spec.width // shards
    box = Box(0, 0, spec.rows, 0, columns)
    return held_bytes(spec, kernel_of(spec), box)


def _row_shares(spec: TableSpec, world_size: int) -> Floats:
    """Each rank's share of a table's rows, row-wise."""
    return _shares(spec.buckets if spec.is_bucketed else spec.rows, world_size)


@lru_cache(maxsize=4096)
def _shares(units: int, world_size: int) -> Floats:
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


def _with_room(held_W: Floats, size: float, memory: int, at: Ints) -> Ints:
    """The ranks among these that have room; the one with most where none has enough."""
    room = held_W[at] + size <= memory
    roomy: Ints = at[room] if room.any() else at[[np.argmin(held_W[at])]]
    return roomy
