"""The rows that train_step.py trains on, and the run file that reads them. One row is a request with K candidates."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from embeddings.config import Embeddings, Table
from model.config import Model
from pipelines.config import Data
from pipelines.schema import Column, History, Schema, Task
from trainer.config import Config
from trainer.config_sections import Telemetry

STATIC = {"user": 20_000, "country": 100, "device": 20, "age": 10, "hour": 24, "city": 2_000}  # cardinalities
ITEM = {"item": 50_000, "category": 200, "author": 5_000}
ACTIONS = 2


@dataclass(frozen=True)
class Shape:
    """Rows: request rows in the file. Histories: 1 to `longest` events, mean about `mean_length`."""

    rows: int
    row_group_rows: int = 1024
    global_batch: int = 64
    candidates: int = 4
    mean_length: float = 50.0
    longest: int = 128
    width: int = 16
    dim: int = 64
    layers: int = 4
    heads: int = 4
    ffn: int = 256

    @property
    def examples(self) -> int:
        """Of a global batch."""
        return self.global_batch * self.candidates

    def facts(self) -> dict[str, Any]:
        """For printing."""
        return {**asdict(self), "static": STATIC, "item fields": ITEM}


def write_rows(shape: Shape, path: Path) -> None:
    """Zipf–Mandelbrot ids, geometric history lengths cut at `longest`, a click for every fifth candidate."""
    rng = np.random.default_rng(7)
    length_R = np.minimum(rng.geometric(1 / shape.mean_length, shape.rows), shape.longest)
    events, candidates = int(length_R.sum()), shape.rows * shape.candidates
    history_offsets = np.concatenate([[0], np.cumsum(length_R)])
    candidate_offsets = np.arange(shape.rows + 1) * shape.candidates
    request_time_R = 1_700_000_000 + np.arange(shape.rows)
    columns: dict[str, Any] = {name: zipf(rng, ids, shape.rows) for name, ids in STATIC.items()}
    columns["time"] = request_time_R
    for name, ids in ITEM.items():
        columns[name] = lists(candidate_offsets, zipf(rng, ids, candidates))
        columns[f"past_{name}"] = lists(history_offsets, zipf(rng, ids, events))
    columns["click"] = lists(candidate_offsets, (rng.random(candidates) < 0.2).astype(np.int8))
    columns["past_click"] = lists(history_offsets, rng.integers(0, ACTIONS, events))
    age_E = np.concatenate([np.arange(length, 0, -1) for length in length_R])  # seconds before the request
    columns["past_time"] = lists(history_offsets, np.repeat(request_time_R, length_R) - age_E)
    pq.write_table(pa.table(columns), path, compression="zstd", row_group_size=shape.row_group_rows)


def zipf(rng: np.random.Generator, ids: int, count: int) -> npt.NDArray[np.int64]:
    """Ids 0 … ids − 1, popular ones first."""
    cumulative = np.cumsum(1.0 / (np.arange(ids) + 10.0))
    drawn: npt.NDArray[np.int64] = np.searchsorted(cumulative, rng.random(count) * cumulative[-1])
    return drawn


def lists(offsets: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> pa.ListArray:
    """A list column: row i holds values[offsets[i] : offsets[i + 1]]."""
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))


def run_config(shape: Shape, path: Path) -> Config:
    """Ours: sizes and the tables' optimizer apart, every default."""
    columns = {"user": Column(role="user", kind="id")}
    columns |= {name: Column(role="context", kind="id") for name in STATIC if name != "user"}
    columns["time"] = Column(role="time", kind="time")
    for name in ITEM:
        columns[name] = Column(role="item", kind="id", group="candidates")
        columns[f"past_{name}"] = Column(role="item", kind="id", group="history.past", shares=name)
    columns["click"] = Column(role="label", kind="dense", group="candidates")
    columns["past_click"] = Column(role="action", kind="id", group="history.past")
    columns["past_time"] = Column(role="time", kind="time", group="history.past")
    cardinalities = {**STATIC, **ITEM, "past_click": ACTIONS}
    return Config(
        schema=Schema(
            user="user",
            columns=columns,
            histories={"past": History(max_length=shape.longest, time="past_time")},
            tasks={"click": Task(label="click")},
        ),
        data=Data(rows=str(path), global_batch=shape.global_batch, epochs=1000, executor="threads"),
        embeddings=Embeddings(
            width=shape.width,
            optimizer="adagrad",  # what torch.optim has; the shipped default is row-wise
            tables={name: Table(rows=ids + 2, mapping="identity") for name, ids in cardinalities.items()},
        ),
        model=Model(dim=shape.dim, num_layers=shape.layers, num_heads=shape.heads, ffn_dim=shape.ffn),
        telemetry=Telemetry(prometheus=False, tensorboard=False),
    )
