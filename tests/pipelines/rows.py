"""Seeded request rows of every shape, small, for tests of the reading side: as Python rows, and written as Parquet."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import Data
from pipelines.schema import Schema

SECOND = 1_000_000
COLUMNS: dict[str, dict[str, Any]] = {
    "user_id": {"role": "user", "kind": "id"},
    "age": {"role": "user", "kind": "bucket", "boundaries": (18.0, 30.0, 50.0)},
    "tags": {"role": "user", "kind": "ids"},
    "profile": {"role": "user", "kind": "vector", "size": 3},
    "score": {"role": "context", "kind": "dense"},
    "slot": {"role": "context", "kind": "id", "train_only": True, "serve_as": 0},
    "late": {"role": "context", "kind": "id", "default": 9},
    "time": {"role": "time", "kind": "time"},
    "v_item": {"role": "item", "kind": "id", "group": "history.views", "shares": "item"},
    "v_words": {"role": "item", "kind": "ids", "group": "history.views", "shares": "words"},
    "v_price": {"role": "item", "kind": "dense", "group": "history.views"},
    "v_click": {"role": "action", "kind": "id", "group": "history.views"},
    "v_dwell": {"role": "action", "kind": "dense", "group": "history.views"},
    "v_time": {"role": "time", "kind": "time", "group": "history.views"},
    "v_known": {"role": "time", "kind": "time", "group": "history.views"},
    "b_item": {"role": "item", "kind": "id", "group": "history.buys", "shares": "item"},
    "b_time": {"role": "time", "kind": "time", "group": "history.buys"},
    "item": {"role": "item", "kind": "id", "group": "candidates"},
    "words": {"role": "item", "kind": "ids", "group": "candidates"},
    "image": {"role": "item", "kind": "vector", "size": 2, "group": "candidates"},
    "click": {"role": "label", "kind": "dense", "group": "candidates"},
    "order": {"role": "label", "kind": "dense", "group": "candidates"},
    "ips": {"role": "weight", "kind": "dense", "group": "candidates"},
}
TASKS: dict[str, dict[str, Any]] = {
    "click": {"label": "click", "weight": "ips"},
    "order": {"label": "order", "space": "click"},
}


def make_schema(**changes: Any) -> Schema:
    """`candidates` supervision, two histories, every kind of column. changes: of the Schema's fields."""
    fields: dict[str, Any] = {
        "user": "user_id",
        "columns": COLUMNS,
        "histories": {
            "views": {"max_length": 4, "time": "v_time", "action_time": "v_known"},
            "buys": {"max_length": 3, "time": "b_time"},
        },
        "tasks": TASKS,
    }
    return Schema(**(fields | changes))


def make_history_schema(**changes: Any) -> Schema:
    """`history` supervision over `views`, with labels of its own."""
    own = {
        n: c for n, c in COLUMNS.items() if c.get("group") != "candidates" and not n.startswith("b_") and n != "time"
    }
    own["v_item"] = {"role": "item", "kind": "id", "group": "history.views"}
    own["v_words"] = {"role": "item", "kind": "ids", "group": "history.views"}
    own["v_label"] = {"role": "label", "kind": "dense", "group": "history.views"}
    fields: dict[str, Any] = {
        "user": "user_id",
        "supervision": "history",
        "supervised_history": "views",
        "columns": own,
        "histories": {"views": {"max_length": 4, "time": "v_time", "action_time": "v_known"}},
        "tasks": {"like": {"label": "v_label"}},
    }
    return Schema(**(fields | changes))


def make_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows as Python values: nulls, empty lists, ties, and events beyond max_length among them."""
    random_ = random.Random(seed)

    def maybe(value: Any, share: float = 0.2) -> Any:
        return None if random_.random() < share else value

    def words() -> list[str | None]:
        return [maybe(random_.choice("abcdef") * random_.randint(1, 12), 0.1) for _ in range(random_.randint(0, 3))]

    rows = []
    for _ in range(count):
        request = random_.randint(50, 80)
        views = sorted(random_.randint(1, request) for _ in range(random_.randint(0, 7)))
        buys = sorted(random_.randint(1, request) for _ in range(random_.randint(0, 5)))
        shown = random_.randint(1, 4)
        rows.append(
            {
                "user_id": f"u{random_.randint(0, 12)}",
                "age": maybe(random_.choice([17.0, 18.0, 29.5, 50.0, 70.0, float("nan")])),
                "tags": maybe([random_.randint(-3, 3) for _ in range(random_.randint(0, 3))]),
                "profile": maybe([random_.random() for _ in range(3)]),
                "score": maybe(random_.choice([0.5, 7.0, -2.0])),
                "slot": random_.randint(1, 4),
                "time": request,
                "v_item": [maybe(random_.randint(0, 30), 0.1) for _ in views],
                "v_words": [maybe(words(), 0.1) for _ in views],
                "v_price": [maybe(random_.random()) for _ in views],
                "v_click": [maybe(random_.randint(0, 1)) for _ in views],
                "v_dwell": [random_.random() for _ in views],
                "v_time": views,
                "v_known": [time + random_.choice([0, 0, 1, 20]) for time in views],
                "v_label": [maybe(random_.randint(0, 1)) for _ in views],
                "b_item": [2**40 + random_.randint(0, 9) for _ in buys] if buys or random_.random() < 0.5 else None,
                "b_time": buys,
                "item": [random_.randint(0, 30) for _ in range(shown)],
                "words": [words() for _ in range(shown)],
                "image": [maybe([random_.random(), 1.0]) for _ in range(shown)],
                "click": [maybe(random_.randint(0, 1)) for _ in range(shown)],
                "order": [maybe(random_.randint(0, 1)) for _ in range(shown)],
                "ips": [maybe(random_.random() + 0.5, 0.1) for _ in range(shown)],
            }
        )
    return rows


ARROW_TYPES = {
    "user_id": pa.string(), "age": pa.float64(), "tags": pa.list_(pa.int32()), "profile": pa.list_(pa.float32(), 3),
    "score": pa.float32(), "slot": pa.int64(), "time": pa.int64(), "v_item": pa.list_(pa.int64()),
    "v_words": pa.list_(pa.list_(pa.string())), "v_price": pa.list_(pa.float64()), "v_click": pa.list_(pa.int8()),
    "v_dwell": pa.list_(pa.float32()), "v_time": pa.list_(pa.int64()), "v_known": pa.list_(pa.int64()),
    "v_label": pa.large_list(pa.bool_()), "b_item": pa.list_(pa.int64()), "b_time": pa.list_(pa.int64()),
    "item": pa.list_(pa.int32()), "words": pa.list_(pa.large_list(pa.large_string())),
    "image": pa.list_(pa.list_(pa.float32())), "click": pa.list_(pa.int8()), "order": pa.list_(pa.float64()),
    "ips": pa.list_(pa.float64()),
}  # fmt: skip


def to_table(rows: list[dict[str, Any]]) -> pa.Table:
    """The rows as Arrow. A boolean label list: 0/1 integers become booleans."""
    columns = {}
    for name, kind in ARROW_TYPES.items():
        values = [row[name] for row in rows]
        if name == "v_label":
            values = [[None if v is None else bool(v) for v in value] for value in values]
        columns[name] = pa.array(values, kind)
    return pa.table(columns)


def write_rows(path: Path, rows: list[dict[str, Any]], row_group_rows: int = 7) -> Path:
    """One Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(to_table(rows), path, row_group_size=row_group_rows)
    return path


def write_segments(folder: Path, rows_of: dict[str, list[int]], seed: int = 0) -> Path:
    """Hive folders dt=NAME with one file for each number of rows given."""
    for index, (name, counts) in enumerate(rows_of.items()):
        for part, count in enumerate(counts):
            write_rows(folder / f"dt={name}" / f"part-{part}.parquet", make_rows(count, seed + 100 * index + part))
    return folder


def make_data(rows: Path | str, **changes: Any) -> Data:
    """Small global batches of 5 rows, windows of 3 batches."""
    return Data(**({"rows": str(rows), "global_batch": 5, "window_batches": 3, "eval_segments": ""} | changes))
