"""What the loop hands to telemetry. A value that is not known or not defined is None; NaN and infinity are treated as
such."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embeddings.health import TableFigures
from trainer.metrics.exact import Gauc
from trainer.metrics.values import TaskValues
from trainer.telemetry.goodput import Goodput
from trainer.telemetry.system import SystemFigures

if TYPE_CHECKING:  # it imports the tower
    from trainer.collapse import Collapse


@dataclass(frozen=True)
class Slowest:
    """The rank that takes longest for its own part of a step. seconds: of a step, without waiting for other ranks."""

    rank: int
    host: str
    seconds: float


@dataclass(frozen=True)
class TrainRecord:
    """Over all ranks, since the last log where nothing else is said.

    step, examples, rows, bad_steps, quarantined_rows: since the model's birth. loss: mean of the good steps.
    step_seconds: mean wall time of a step; data_wait_seconds: mean of it spent waiting for a batch. grad_norm: dense,
    before clipping. tasks: before each update; lifetime: the same since the model's birth. data_through: newest event
    time trained on, microseconds since 1970. read_retries: reads tried again after a transient error of the store,
    since this process began. seconds_left: to the end of the data or max_steps. checkpoint_age_seconds: since the
    newest checkpoint. flops_per_second, mfu: operations of the ranker (trainer/flops.py), and their share of `[train]
    peak_flops` of all workers. step_split: {part: seconds} that make up step_seconds, of this rank. tables: their
    health on the steps sampled since the last log; empty where none was.

    weight_norm: L2 norm of all dense parameters. dense_staleness: steps between a dense gradient and its update.
    unlabelled_steps: without any label, so that nothing was updated; since this process began. tokens_per_second: of
    fields, events and candidates. epoch_progress: share of the epoch that is done. ready_batches, ready_windows: that
    are read and wait, on this rank. own_seconds: of a step, what this rank spends without waiting for others; slowest,
    median_rank_seconds: of these of all ranks. goodput: where the run's time went, over all its starts; rank 0's.
    price_per_billion_examples: None without a price. system: memory and disk; of this rank.

    slices: {value of slice_by, a field: as tasks}. loss_spikes: since the model's birth. stale_evaluations: since
    the last improvement of `checkpoint.best`.
    """

    step: int
    examples: int
    loss: float | None
    examples_per_second: float
    rows_per_second: float
    step_seconds: float
    data_wait_seconds: float
    grad_norm: float | None = None
    learning_rate: float | None = None
    tasks: Mapping[str, TaskValues] = field(default_factory=dict)
    lifetime: Mapping[str, TaskValues] = field(default_factory=dict)
    rows: int = 0
    data_through: int | None = None
    bad_steps: int = 0
    quarantined_rows: int = 0
    seconds_left: float | None = None
    checkpoint_age_seconds: float | None = None
    epoch: int = 0
    segment: str = ""
    read_retries: int = 0
    tables: Mapping[str, TableFigures] = field(default_factory=dict)
    step_split: Mapping[str, float] = field(default_factory=dict)
    flops_per_second: float | None = None
    mfu: float | None = None
    weight_norm: float | None = None
    dense_staleness: int = 0
    unlabelled_steps: int = 0
    tokens_per_second: float | None = None
    epoch_progress: float | None = None
    ready_batches: int = 0
    ready_windows: int = 0
    own_seconds: float | None = None
    slowest: Slowest | None = None
    median_rank_seconds: float | None = None
    goodput: Goodput | None = None
    price_per_billion_examples: float | None = None
    system: SystemFigures | None = None
    slice_by: str = ""
    slices: Mapping[str, Mapping[str, TaskValues]] = field(default_factory=dict)
    loss_spikes: int = 0
    stale_evaluations: int | None = None

    @property
    def data_through_seconds(self) -> float | None:
        """Since 1970; None where the data have no times."""
        return self.data_through / 1e6 if self.data_through else None

    @property
    def data_lag_seconds(self) -> float | None:
        """Now less the newest event time trained on."""
        through = self.data_through_seconds
        return None if through is None else time.time() - through


@dataclass(frozen=True)
class Slices:
    """Scores by value of a field: {value: (values, GAUC) per task}, the most frequent first. others: values that are
    in the last one together, where there are more."""

    by: str
    scores: Mapping[str, tuple[Mapping[str, TaskValues], Mapping[str, Gauc]]]
    others: int = 0


@dataclass(frozen=True)
class EvalRecord:
    """An evaluation of the model as it stood at `step`. split: the segment's name, or what else was scored. rows:
    scored. collapse: of a sample of them, slices: by a field, where that is wanted."""

    step: int
    examples: int
    split: str
    tasks: Mapping[str, TaskValues]
    gauc: Mapping[str, Gauc] = field(default_factory=dict)
    rows: int = 0
    seconds: float | None = None
    collapse: Collapse | None = None
    slices: Slices | None = None

    @property
    def scores(self) -> dict[str, float]:
        """{TASK.METRIC: value} of those that are defined: what checkpoints are compared by."""
        scores = {
            f"{task}.{name}": getattr(values, name)
            for task, values in self.tasks.items()
            for name in ("ne", "auc", "loss")
        }
        scores |= {f"{task}.gauc": found.value for task, found in self.gauc.items()}
        return {name: float(value) for name, value in scores.items() if finite(value) is not None}


def finite(value: float | None) -> float | None:
    """None for NaN and infinity: JSON has no word for them."""
    return value if value is not None and math.isfinite(value) else None
