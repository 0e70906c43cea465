"""Request rows of many static fields of every kind, with vectors everywhere and three histories of different fields."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embeddings.config import Embeddings, Table
from tests.pipelines.rows import COLUMNS, make_rows, make_schema, to_table
from tests.trainer.runs import tiny_config
from trainer.config import Config

# Of three fields each, in turn: tables of two widths and two mappings, lists, dense floats, vectors.
KINDS = ("id", "id", "ids", "dense", "id", "vector", "bucket", "dense")
LISTED: dict[str, dict[str, Any]] = {
    "v_image": {"role": "item", "kind": "vector", "size": 2, "group": "history.views", "shares": "image"},
    "s_image": {"role": "item", "kind": "vector", "size": 2, "group": "history.saves", "shares": "image"},
    "s_list": {"role": "item", "kind": "id", "group": "history.saves"},
    "s_mood": {"role": "action", "kind": "vector", "size": 3, "group": "history.saves"},
    "s_time": {"role": "time", "kind": "time", "group": "history.saves"},
}
LISTED_TYPES = {
    "v_image": pa.list_(pa.list_(pa.float32(), 2)), "s_image": pa.list_(pa.list_(pa.float32())),
    "s_list": pa.list_(pa.int64()), "s_mood": pa.list_(pa.list_(pa.float64())), "s_time": pa.list_(pa.int64()),
}  # fmt: skip
TYPES = {"id": pa.int64(), "ids": pa.list_(pa.int64()), "dense": pa.float32(), "vector": pa.list_(pa.float32(), 4),
         "bucket": pa.float32()}  # fmt: skip


def field_columns(fields: int) -> dict[str, dict[str, Any]]:
    """x0, x1, …"""
    own: dict[str, dict[str, Any]] = {"vector": {"size": 4}, "bucket": {"boundaries": (0.3, 0.6)}}
    kinds = [KINDS[k // 3 % len(KINDS)] for k in range(fields)]
    return {f"x{k}": {"role": "context", "kind": kind} | own.get(kind, {}) for k, kind in enumerate(kinds)}


def wide_config(rows: Path, fields: int, **sections: Any) -> Config:
    """`tiny_config` with so many more static fields."""
    config = tiny_config(rows, **sections)
    schema = make_schema(
        columns=COLUMNS | LISTED | field_columns(fields),
        histories={
            "views": {"max_length": 4, "time": "v_time", "action_time": "v_known"},
            "buys": {"max_length": 3, "time": "b_time"},
            "saves": {"max_length": 3, "time": "s_time"},
        },
    )
    place = {f"x{k}": k // 3 % len(KINDS) for k in range(fields)}
    narrow = {name: Table(rows=40, width=4) for name, at in place.items() if at == 0}
    kept = {name: Table(rows=64, mapping="vocabulary", buckets=8) for name, at in place.items() if at == 4}
    tables = config.embeddings.tables | narrow | kept
    return replace(config, schema=schema, embeddings=Embeddings(width=8, default_rows=64, tables=tables))


def _value(kind: str, random_: random.Random) -> Any:
    if random_.random() < 0.1:
        return None
    if kind == "ids":
        return [random_.randint(0, 20) for _ in range(random_.randint(0, 3))]
    if kind == "vector":
        return [random_.random() for _ in range(4)]
    return random_.randint(0, 50) if kind == "id" else random_.random()


def wide_rows(count: int, fields: int, seed: int = 1) -> list[dict[str, Any]]:
    """Rows as Python values."""
    random_ = random.Random(seed)
    rows = make_rows(count, seed)
    columns = field_columns(fields)
    for row in rows:
        saves = sorted(random_.randint(1, row["time"]) for _ in range(random_.randint(0, 4)))
        row |= {name: _value(column["kind"], random_) for name, column in columns.items()}
        row["v_image"] = [[random_.random(), 0.5] for _ in row["v_time"]]
        row["s_image"] = [[random_.random(), 0.5] for _ in saves]
        row["s_list"] = [random_.randint(0, 9) for _ in saves]
        row["s_mood"] = [[random_.random() for _ in range(3)] for _ in saves]
        row["s_time"] = saves
    return rows


def write_wide_rows(path: Path, rows: list[dict[str, Any]], fields: int) -> None:
    """One Parquet file."""
    types = LISTED_TYPES | {name: TYPES[column["kind"]] for name, column in field_columns(fields).items()}
    table = to_table(rows)
    for name, kind in types.items():
        table = table.append_column(name, pa.array([row[name] for row in rows], kind))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
