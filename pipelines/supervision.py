"""What each supervised position teaches: its label, its weight in loss and metrics; and which rows count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.arrow_arrays import Bool
from pipelines.batch import QUARANTINED, SAMPLED_OUT, TRAINED, Float32, Int8, Int64
from pipelines.config import Data
from pipelines.decode import Rows
from pipelines.downsampling import find_rates
from pipelines.hashing import mix
from pipelines.schema import Schema

SAMPLE_SEED = 0x5A3B


@dataclass(frozen=True)
class Supervision:
    """Of a window. labels, weights, metric_weights: {task: float32 [supervised positions]}; offsets: the same, of
    tasks that have one. status: int8 [R]. See `pipelines.batch.Batch`."""

    labels: dict[str, Float32]
    weights: dict[str, Float32]
    metric_weights: dict[str, Float32]
    offsets: dict[str, Float32]
    status: Int8


def supervise(rows: Rows, schema: Schema, data: Data, request_R: Int64, evaluation: bool = False) -> Supervision:
    """Labels and weights of each task. A row that does not count keeps its place with weight 0."""
    status_R = np.where(_sampled(request_R, data.sample), TRAINED, SAMPLED_OUT).astype(np.int8)
    status_R[rows.quarantined] = QUARANTINED
    offsets = rows.offsets.get(schema.supervised_group, np.zeros(rows.count + 1, np.int64))
    counts_P = np.repeat(status_R == TRAINED, np.diff(offsets))
    correction = find_rates(rows, schema, data.downsampling, request_R, offsets, evaluation)
    if correction is not None:
        counts_P &= correction.kept_P
        status_R[_emptied(offsets, correction.kept_P)] = SAMPLED_OUT
    labels, weights = {}, {}
    for name, task in schema.tasks.items():
        if not task.label:
            labels[name] = weights[name] = np.zeros(len(counts_P), np.float32)
            continue
        label = rows.columns[task.label]
        counts = counts_P & ~label.null
        if task.space:
            counts &= rows.columns[task.space].values == 1
        weight = rows.columns[task.weight].values if task.weight else np.float32(1)
        weights[name] = np.where(counts, weight, np.float32(0))
        labels[name] = np.where(weights[name] > 0, label.values, np.float32(0))
    if correction is None:
        return Supervision(labels, weights, weights, {}, status_R)
    true_weights = {name: weight_P / correction.rate_P for name, weight_P in weights.items()}
    if correction.by_offset is None:
        return Supervision(labels, true_weights, true_weights, {}, status_R)
    offset = {name: np.full(len(counts_P), value, np.float32) for name, value in correction.by_offset.items()}
    return Supervision(labels, weights, true_weights, offset, status_R)


def _emptied(offsets: Int64, kept_P: Bool) -> Bool:
    """Rows that had positions and keep none of them. [R]"""
    kept_before = np.concatenate([[0], np.cumsum(kept_P)])
    lengths_R = np.diff(offsets)
    emptied: Bool = (lengths_R > 0) & (np.diff(kept_before[offsets]) == 0)
    return emptied


def _sampled(request_R: Int64, share: float) -> Bool:
    if share >= 1.0:
        return np.ones(len(request_R), bool)
    kept: Bool = mix(request_R, SAMPLE_SEED) < np.uint64(share * 2.0**64)
    return kept
