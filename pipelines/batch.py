"""The batch between the rooms: plain arrays, no torch. One rank's share of one global batch.

Sizes: R request rows · U unique ids of a table · V values of a field · P positions of a group: R for static fields, ΣT
for a history (events of all rows, oldest first, row after row), ΣK for candidates · S supervised positions: ΣK in
`candidates` supervision, ΣT of the supervised history in `history` supervision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Int8 = npt.NDArray[np.int8]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

TRAINED, SAMPLED_OUT, QUARANTINED = 0, 1, 2  # `Batch.status`


@dataclass(frozen=True)
class TableIds:
    """Ids of one table in this batch, each once. ids: int64 [U], ascending. counts: int64 [U], occurrences in the rows
    (0 on a filler)."""

    ids: Int64
    counts: Int64


@dataclass(frozen=True)
class FieldIds:
    """One column's values as positions in its table's unique ids.

    inverse: int32 [V]. lengths: int32 [P] values per position, or None where every position has exactly one (V = P).
    """

    table: str
    inverse: Int32
    lengths: Int32 | None = None


@dataclass(frozen=True)
class Position:
    """Where a global batch stands in the data: what a checkpoint saves and resume starts from.

    epoch: from 0. segment: index in the run's list of segments. batch: global batch inside the segment's plan, from 0.
    name: the segment's value. fingerprint: of the segment's plan.
    """

    epoch: int
    segment: int
    batch: int
    name: str
    fingerprint: str


@dataclass(frozen=True)
class Batch:
    """See the module's legend for sizes. Everything is contiguous; nothing refers to rows of other ranks.

    tables:            {table: TableIds}: every table of the schema, also when empty.
    fields:            {column: FieldIds}: input columns of kinds id, ids, bucket.
    dense:             {column: float32 [P] or [P, size]}: input columns of kinds dense and vector.
    history_lengths:   {history: int32 [R]}.
    candidate_lengths: int32 [R]; all zero in `history` supervision.
    times:             {history: int64 [ΣT]} event times in microseconds.
    clocks, action_clocks: {history: int64 [ΣT]}: an action is known at position p iff action_clock < clock(p). The
                       event times, or running indices where the schema orders ties. The very arrays of `times` where
                       they are the same.
    request_time, request_clock: int64 [R]: of the request (candidates' clock).
    labels, weights:   {task: float32 [S]}: weight 0 (and label 0) where null, outside the task's space, sampled out,
                       quarantined, context or filler. Weights are the loss's.
    metric_weights:    {task: float32 [S]}: the metrics' weights: those of the log before it was down-sampled. The very
                       arrays of `weights` where the two are the same.
    offsets:           {task: float32 [S]}: added to the task's logit in the loss only (a down-sampled log, corrected by
                       offset); tasks without one are absent.
    status:            int8 [R]: TRAINED, SAMPLED_OUT or QUARANTINED. Rows that do not count keep their place.
    user:              int64 [R]: id of the user (strings hashed). request: int64 [R] id of the request.
    file, row:         int32 [R] index into the plan's files, int64 [R] row in that file: as read.
    filler:            True for the weightless row that keeps a rank in step when it was dealt none.
    retries:           reads of the batch's window that were tried again; told by one batch of the window.
    """

    position: Position
    rows: int
    tables: dict[str, TableIds]
    fields: dict[str, FieldIds]
    dense: dict[str, Float32]
    history_lengths: dict[str, Int32]
    candidate_lengths: Int32
    times: dict[str, Int64]
    clocks: dict[str, Int64]
    action_clocks: dict[str, Int64]
    request_time: Int64
    request_clock: Int64
    labels: dict[str, Float32]
    weights: dict[str, Float32]
    metric_weights: dict[str, Float32]
    offsets: dict[str, Float32]
    status: Int8
    user: Int64
    request: Int64
    file: Int32
    row: Int64
    filler: bool = False
    retries: int = 0
