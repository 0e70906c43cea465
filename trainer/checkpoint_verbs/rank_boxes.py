"""Which box of which tensor of a checkpoint lies on which of N ranks: as a saved plan says, or row by row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.checkpoint.manifest import TensorRecord
from trainer.errors import ConfigError


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)  # a plan.json says more than is needed here


class Shard(_Strict):
    """Rows row … row + rows − 1 and columns column … column + columns − 1 of a table, on a rank."""

    rank: int = Field(ge=0)
    row: int = Field(ge=0)
    rows: int = Field(ge=0)
    column: int = Field(ge=0)
    columns: int = Field(ge=0)


class PlannedTable(_Strict):
    """One table of a plan.json."""

    name: str
    rows: int
    width: int
    shards: list[Shard]


class Plan(_Strict):
    """plan.json, as far as it says where tables lie."""

    world_size: int = Field(gt=0)
    replicas: int = Field(default=1, gt=0)
    tables: list[PlannedTable]


@dataclass(frozen=True)
class Box:
    """A part of a tensor, on a rank."""

    rank: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def read_plan(path: str, world_size: int) -> dict[str, list[Shard]]:
    """{table: its shards}. Raises ConfigError: no plan, one that says no shards, or of another world size."""
    try:
        plan = Plan.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
        why = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
        raise ConfigError(
            f"plan '{path}' cannot be used: {why} → a plan.json says on which rank each shard lies → give the one that "
            "`tokenformer plan --json` or a run wrote"
        ) from error
    ranks = plan.world_size // plan.replicas
    if ranks != world_size:
        raise ConfigError(
            f"plan '{path}' lays tables over {ranks} ranks, --world-size is {world_size} → they must agree → "
            f"--world-size {ranks}, or another plan"
        )
    return {table.name: table.shards for table in plan.tables}


def boxes_of(
    tensors: Mapping[str, TensorRecord], world_size: int, plan: Mapping[str, list[Shard]]
) -> dict[str, list[Box]]:
    """{tensor: its boxes, which tile it}. Tables that the plan does not name lie row by row, ⌈rows ÷ N⌉ a rank or whole
    buckets; their states and id maps beside them. All other tensors are dealt over the ranks.

    Raises ConfigError where a plan's shards do not tile a table.
    """
    boxes: dict[str, list[Box]] = {}
    dealt = 0
    for name, record in tensors.items():
        kind, _, rest = name.partition("/")
        table = rest.rpartition("/")[0]
        weight = tensors.get(f"tables/{table}/weight")
        if kind == "tables" and weight is not None:
            shards = plan.get(table) or _by_rows(tensors, table, world_size)
            _check_tiled(table, weight.size, shards)
            boxes[name] = _of_table(record.size, weight.size[1], shards)
        elif kind == "id_maps" and record.size and record.size[0] == _buckets(tensors, table):
            boxes[name] = [
                Box(rank, (first, *(0,) * (len(record.size) - 1)), (count, *record.size[1:]))
                for rank, (first, count) in enumerate(_blocks(record.size[0], world_size))
            ]
        else:
            boxes[name] = [Box(dealt % world_size, (0,) * len(record.size), tuple(record.size))]
            dealt += 1
    return boxes


def _buckets(tensors: Mapping[str, TensorRecord], table: str) -> int:
    """Of a table with an id map, else 0."""
    ids = tensors.get(f"id_maps/{table}/ids")
    return 0 if ids is None else ids.size[0]


def _blocks(count: int, world_size: int) -> list[tuple[int, int]]:
    """(first, how many) of each rank: blocks of ⌈count ÷ N⌉, as TorchRec's row-wise shards."""
    block = -(-count // world_size)
    starts = [min(rank * block, count) for rank in range(world_size)]
    return [(start, min(block, count - start)) for start in starts]


def _by_rows(tensors: Mapping[str, TensorRecord], table: str, world_size: int) -> list[Shard]:
    rows, width = tensors[f"tables/{table}/weight"].size
    buckets = _buckets(tensors, table)
    unit = rows // buckets if buckets else 1
    return [
        Shard(rank=rank, row=first * unit, rows=count * unit, column=0, columns=width)
        for rank, (first, count) in enumerate(_blocks(rows // unit, world_size))
    ]


def _of_table(size: list[int], width: int, shards: list[Shard]) -> list[Box]:
    """Of its weight or a state. A state of another width than the weight has a value a row, or one a column shard."""
    if size[1] == width:
        return [Box(s.rank, (s.row, s.column), (s.rows, s.columns)) for s in shards]
    if len(shards) == size[1] and all(shard.rows == size[0] for shard in shards):
        ordered = sorted(shards, key=lambda shard: shard.column)
        return [Box(shard.rank, (0, place), (size[0], 1)) for place, shard in enumerate(ordered)]
    rowwise = [s for s in shards if s.column == 0]
    return [Box(s.rank, (s.row, 0), (s.rows, size[1])) for s in rowwise]


def _check_tiled(table: str, size: list[int], shards: list[Shard]) -> None:
    """Shards of a table are all its rows, cut by columns, or all its columns, cut by rows."""
    rows, columns = size
    by_rows = all(s.column == 0 and s.columns == columns for s in shards)
    by_columns = all(s.row == 0 and s.rows == rows for s in shards)
    spans = sorted((s.row, s.rows) if by_rows else (s.column, s.columns) for s in shards)
    ends = [start + length for start, length in spans]
    follows = [start for start, _ in spans] == [0, *ends[:-1]]
    if not (by_rows or by_columns) or not follows or ends[-1] != (rows if by_rows else columns):
        raise ConfigError(
            f"the plan's shards of table {table!r} do not make {rows:,} × {columns} → every value lies on one rank → "
            "give a plan of this model's tables"
        )
