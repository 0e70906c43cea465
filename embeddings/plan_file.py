"""A saved plan given back: plan.json, as a run or the `plan` verb wrote it, held against the tables of now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from embeddings.config import SHARDING_TYPES, nearest_sharding
from embeddings.errors import PlanError
from embeddings.plan_boxes import Box, Placed, Placement, ShardingType, table_boxes
from embeddings.plan_choice import Cluster, check_constraints, column_shards, kernel_of
from embeddings.specs import TableSpec

FORMAT = 1


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Shard(_Strict):
    rank: int
    row: int
    rows: int
    column: int
    columns: int


class _Table(_Strict):
    name: str
    rows: int
    width: int
    sharding: str
    kernel: str
    shards: list[_Shard]


class _File(_Strict):
    format: int
    world_size: int
    replicas: int
    tables: list[_Table]


def to_json(placement: Placement, specs: dict[str, TableSpec], replicas: int, world_size: int) -> dict[str, Any]:
    """The part of plan.json that can be given back. world_size: of all groups; shards name ranks of the first."""
    return {
        "format": FORMAT,
        "world_size": world_size,
        "replicas": replicas,
        "tables": [
            {
                "name": name,
                "rows": specs[name].rows,
                "width": specs[name].width,
                "sharding": placed.sharding,
                "kernel": placed.kernel,
                "shards": [vars(box) for box in placed.boxes],
            }
            for name, placed in placement.items()
        ],
    }


def read_placement(path: str, specs: dict[str, TableSpec], cluster: Cluster, replicas: int) -> Placement:
    """cluster: the ranks of one of `replicas` groups. Raises PlanError: not a plan, of another world size, of other
    tables, or against what the run file asks for; every problem, a line each."""
    plan = _read(path)
    world_size = cluster.world_size * replicas
    if plan.format != FORMAT:
        raise PlanError(
            [f"plan '{path}' has format {plan.format} → this version reads {FORMAT} → make it anew with `plan --json`"]
        )
    if (plan.world_size, plan.replicas) != (world_size, replicas):
        raise PlanError(
            [
                f"plan '{path}' is for {plan.world_size} ranks in {plan.replicas} group(s), this run has {world_size} "
                f"in {replicas} → a plan names every rank → plan anew for this world size, or drop embeddings.plan"
            ]
        )
    check_constraints(specs, cluster)
    held = {table.name: table for table in plan.tables}
    problems = _other_tables(path, held, specs)
    placement = {}
    for name, spec in specs.items():
        if name in held and not problems:
            placed, found = _placed(held[name], spec, cluster, path)
            problems += found
            if placed is not None:
                placement[name] = placed
    if problems:
        raise PlanError(problems)
    return placement


def _read(path: str) -> _File:
    try:
        return _File.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise PlanError([f"plan '{path}' cannot be read: {why} → a plan.json is needed → check the path"]) from None
    except (json.JSONDecodeError, ValidationError) as error:
        why = str(error).splitlines()[0]
        raise PlanError(
            [f"plan '{path}' is no plan: {why} → `plan --json` and every run directory have one → give that"]
        ) from None


def _other_tables(path: str, held: dict[str, _Table], specs: dict[str, TableSpec]) -> list[str]:
    """One line for all tables that differ."""
    shapes = {name: (table.rows, table.width) for name, table in held.items()}
    wrong = [f"{name} is not in it" for name in specs if name not in held]
    wrong += [f"{name} is not in the run file" for name in held if name not in specs]
    wrong += [
        f"{name} has {shapes[name][0]:,} × {shapes[name][1]} in it and {spec.rows:,} × {spec.width} in the run file"
        for name, spec in specs.items()
        if name in shapes and shapes[name] != (spec.rows, spec.width)
    ]
    if not wrong:
        return []
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return [
        f"plan '{path}' is of other tables: {'; '.join(wrong[:3])}{more} → a plan holds for the tables it was made for "
        "→ plan anew, or drop embeddings.plan"
    ]


def _placed(table: _Table, spec: TableSpec, cluster: Cluster, path: str) -> tuple[Placed | None, list[str]]:
    """A table's place, or why it cannot be had."""
    where = f"plan '{path}', table {spec.name!r}"
    if table.sharding not in SHARDING_TYPES:
        return None, [f"{where}: sharding = {table.sharding!r} → {nearest_sharding(table.sharding)}"]
    sharding = cast(ShardingType, table.sharding)
    if spec.sharding not in ("auto", sharding):
        return None, [
            f"{where} is {sharding}, the run file asks for {spec.sharding} → they must agree → change one of them"
        ]
    kernel = kernel_of(spec)
    if table.kernel != kernel:
        return None, [
            f"{where}: kernel = {table.kernel!r}, the run file asks for {kernel!r} → they must agree → change one"
        ]
    boxes = tuple(Box(s.rank, s.row, s.rows, s.column, s.columns) for s in table.shards)
    ranks = [box.rank for box in boxes]
    outside = [rank for rank in ranks if not 0 <= rank < cluster.world_size or (spec.ranks and rank not in spec.ranks)]
    if outside:
        return None, [f"{where} lies on rank {outside[0]} → it may not → plan anew, or change ranks of the table"]
    shards = {"table_wise": 1, "row_wise": cluster.world_size, "column_wise": len(ranks)}[sharding]
    even = sharding != "column_wise" or (ranks and spec.width % (4 * len(ranks)) == 0)
    if len(ranks) != shards or not even or boxes != table_boxes(spec, sharding, ranks, cluster.world_size):
        count = column_shards(spec, cluster.world_size)
        example = f"; column-wise here: {count} shards of {spec.width // count}" if sharding == "column_wise" else ""
        return None, [
            f"{where}: its shards are not those of a {sharding} table → they are even, and row-wise end at blocks of "
            f"rows or buckets{example} → plan anew"
        ]
    return Placed(spec.name, sharding, kernel, boxes), []
