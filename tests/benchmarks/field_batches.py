"""The same ids, tables' rows and widths, dealt to few fields or to many: the batches that many_fields.py looks up.

One field of few fields is a run of neighbouring fields of many: its ids are theirs, one list after the other, and its
table is their tables, one below the other. So both look up the same unique ids and hand out the same vectors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from embeddings.config import Embeddings, Table
from pipelines.batch import Batch, FieldIds, Int64, Position, TableIds
from pipelines.schema import Column, Schema, Task
from tests.benchmarks.train_rows import zipf
from trainer.device_batch import StepInfo

TASK = "click"


@dataclass(frozen=True)
class Shape:
    """fields_most: the finest cut, which all others are merged from. ids_per_row, table_rows: over all fields."""

    batch_rows: int = 16
    ids_per_row: int = 2000
    table_rows: int = 2_000_000
    width: int = 16
    fields_most: int = 2000

    def facts(self) -> dict[str, Any]:
        """For printing."""
        return asdict(self)


def field_schema(fields: int) -> Schema:
    """That many static fields, each a list of ids with a table of its own; one candidate's label."""
    columns = {"user": Column(role="key", kind="id")}
    columns |= {f"f{k}": Column(role="context", kind="ids") for k in range(fields)}
    columns |= {"click": Column(role="label", kind="dense", group="candidates")}
    return Schema(user="user", columns=columns, tasks={TASK: Task(label="click")})


def field_embeddings(shape: Shape, fields: int, **settings: Any) -> Embeddings:
    """Tables of one size and width."""
    rows = shape.table_rows // fields + 2
    tables = {f"f{k}": Table(rows=rows) for k in range(fields)}
    return Embeddings(width=shape.width, optimizer="rowwise_adagrad", tables=tables, **settings)


def field_batches(shape: Shape, fields: int, count: int) -> list[Batch]:
    """`count` batches of this many fields; the same ids for every number of fields."""
    rng = np.random.default_rng(11)
    per_field = shape.ids_per_row // shape.fields_most
    own_rows = shape.table_rows // shape.fields_most
    batches = []
    for _ in range(count):
        drawn = zipf(rng, own_rows, shape.fields_most * shape.batch_rows * per_field)
        ids_FRN = drawn.reshape(fields, -1, shape.batch_rows, per_field)
        ids_FRN = ids_FRN + own_rows * np.arange(ids_FRN.shape[1])[None, :, None, None]
        batches.append(_batch([ids.transpose(1, 0, 2).reshape(shape.batch_rows, -1) for ids in ids_FRN]))
    return batches


def _batch(ids_F: list[Int64]) -> Batch:
    """From each field's ids [R, N]."""
    rows = len(ids_F[0])
    tables, found = {}, {}
    for k, ids_RN in enumerate(ids_F):
        unique, inverse, counts = np.unique(ids_RN, return_inverse=True, return_counts=True)
        tables[f"f{k}"] = TableIds(unique, counts)
        lengths = np.full(rows, ids_RN.shape[1], np.int32)
        found[f"f{k}"] = FieldIds(f"f{k}", inverse.ravel().astype(np.int32), lengths)
    zeros, ones = np.zeros(rows, np.float32), np.ones(rows, np.float32)
    times = np.arange(rows, dtype=np.int64)
    return Batch(
        position=Position(0, 0, 0, "", ""),
        rows=rows,
        tables=tables,
        fields=found,
        dense={},
        history_lengths={},
        candidate_lengths=np.ones(rows, np.int32),
        times={},
        clocks={},
        action_clocks={},
        request_time=times,
        request_clock=times,
        labels={TASK: zeros},
        weights={TASK: ones},
        metric_weights={TASK: ones},
        offsets={},
        status=np.zeros(rows, np.int8),
        user=times,
        request=times,
        file=np.zeros(rows, np.int32),
        row=times,
    )


def step_info(batch: Batch, step: int) -> StepInfo:
    """What the feed would say of it."""
    return StepInfo(step, batch.position, batch.rows, (batch.rows,), (float(batch.rows),), 0)
