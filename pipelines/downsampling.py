"""Logs that hold only a share of what happened, corrected so that scores and metrics are those of all that happened.

An example's keep rate r is the probability with which the log (or, with `sample`, this reader) kept it. "weight" trains
with w ÷ r. "offset" trains with w and adds −ln r₀ to the logit in the loss, r₀ the rate of the negatives: the odds
in the kept examples are the true odds ÷ r₀, so the logit itself stays that of the true odds (prior correction, King and
Zeng 2001). Metrics weigh by w ÷ r either way.

P: positions of the supervised group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.arrow_arrays import Bool
from pipelines.bad_rows import Bad
from pipelines.batch import Float32, Int64
from pipelines.config import Downsampling
from pipelines.decode import Rows
from pipelines.hashing import derive_seed, mix
from pipelines.schema import Schema


@dataclass(frozen=True)
class Correction:
    """kept_P: False where the reader leaves an example out. rate_P: float32, of those that are kept. by_offset: {task:
    added to its logits in the loss}; None = the loss is corrected by weight."""

    kept_P: Bool
    rate_P: Float32
    by_offset: dict[str, float] | None


def find_rates(
    rows: Rows, schema: Schema, settings: Downsampling | None, request_R: Int64, offsets: Int64, evaluation: bool
) -> Correction | None:
    """The correction of these rows' supervised positions; None where there is nothing to correct: no settings, or the
    evaluation of a log that only training samples."""
    if settings is None or (settings.sample and evaluation):
        return None
    count = int(offsets[-1])
    row_P = np.repeat(np.arange(rows.count), np.diff(offsets))
    if settings.rate_column:
        listed = bool(schema.columns[settings.rate_column].group)
        labelled_P = _labelled(rows, {task.label for task in schema.tasks.values() if task.label}, count)
        rates = _column_rates(rows, settings.rate_column, listed, row_P, labelled_P)
        return Correction(np.ones(count, bool), rates, None)
    negative = {label: _is_zero(rows, label) for label in settings.negative_rates}
    rate_P = np.ones(count, np.float32)
    kept_P = np.ones(count, bool)
    if settings.sample:
        place_P = np.arange(count) - offsets[:-1][row_P]
        example_P = mix(request_R[row_P] ^ mix(place_P, 0).view(np.int64), 1).view(np.int64)
    for label, rate in settings.negative_rates.items():
        rate_P[negative[label]] *= np.float32(rate)
        if settings.sample and rate < 1:
            drawn_P = mix(example_P, derive_seed("negatives", label)) < np.uint64(rate * 2.0**64)
            kept_P &= drawn_P | ~negative[label]
    by_offset = None if settings.correct == "weight" else _offsets(schema, settings.negative_rates)
    return Correction(kept_P, rate_P, by_offset)


def _offsets(schema: Schema, rates: Mapping[str, float]) -> dict[str, float]:
    return {name: -float(np.log(rates[t.label])) for name, t in schema.tasks.items() if t.label in rates}


def _is_zero(rows: Rows, label: str) -> Bool:
    column = rows.columns[label]
    zero: Bool = ~column.null & (column.values == 0)
    return zero


def _column_rates(rows: Rows, name: str, listed: bool, row_P: Int64, labelled_P: Bool) -> Float32:
    """The example's own rate; 1 where nothing is observed."""
    values = rows.columns[name].values
    rates: Float32 = np.where(labelled_P, values if listed else values[row_P], np.float32(1))
    return rates


def bad_rates(rows: Rows, schema: Schema, settings: Downsampling | None, path: str) -> list[Bad]:
    """The rows in which the rate of a labelled example is not in (0, 1]. rows: of one file."""
    name = settings.rate_column if settings else ""
    group = schema.supervised_group
    labels = {task.label for task in schema.tasks.values() if task.label}
    if not name or group not in rows.offsets or not {name, *labels} <= rows.columns.keys():
        return []
    row_P = np.repeat(np.arange(rows.count), np.diff(rows.offsets[group]))
    listed, column = bool(schema.columns[name].group), rows.columns[name]
    rate_P = column.values if listed else column.values[row_P]
    null_P = column.null if listed else column.null[row_P]
    at_P = np.flatnonzero(_labelled(rows, labels, len(row_P)) & (null_P | ~((rate_P > 0) & (rate_P <= 1))))
    if not len(at_P):
        return []
    bad_R, first = np.unique(row_P[at_P], return_index=True)
    words = ["null" if null_P[at] else f"{rate_P[at]:g}" for at in at_P[first]]
    return [Bad.of(name, bad_R, words, "keep rates are in (0, 1]", "fix the log", path, rows.row)]


def _labelled(rows: Rows, labels: set[str], count: int) -> Bool:
    labelled_P = np.zeros(count, bool)
    for label in labels:
        labelled_P |= ~rows.columns[label].null
    return labelled_P
