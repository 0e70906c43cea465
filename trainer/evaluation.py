"""Evaluation on held-out rows: exact metrics per task from the predictions of all ranks, which each keeps its own of.

A rank holds 20 bytes an example and task while it predicts, and up to about five times its share while it scores
(trainer/metrics/exact.py): 10^9 examples of one task on 64 ranks come to 2 GB each. Gathered they would be 100 GB on
one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from embeddings.idmap import IdMapper
from pipelines.footer_cache import FooterCache
from pipelines.reading import BY_LENGTH, RowCost
from pipelines.sampled_pass import SampledPass
from pipelines.segments import Segment
from pipelines.stream import Executor
from pipelines.windows import Pass
from trainer.collapse import CollapseSample
from trainer.config import Config
from trainer.device_batch import RequestBatch
from trainer.eval_detail import Detail, Scored, score
from trainer.feed import open_feed
from trainer.field_blocks import FieldBlocks
from trainer.metrics.exchange import Exchange
from trainer.runtime import Runtime
from trainer.telemetry.records import EvalRecord
from trainer.telemetry.telemetry import Telemetry
from trainer.train_state import TrainState

Array = npt.NDArray[Any]
TYPES = {"probability": np.float32, "label": np.float32, "weight": np.float32, "user": np.int64, "slice": np.int32}


@dataclass(frozen=True)
class Predictions:
    """Supervised positions with a weight, of this rank: per task arrays of one length each. rows: of all ranks.

    {task: {"probability", "label", "weight": float32, "user": int64, "slice": int32, where slices are wanted}}
    """

    tasks: dict[str, dict[str, Array]]
    rows: int


class Evaluator:
    """Predicts the held-out segments with a model as it is and reports them. Called by the loop at its cadence and at
    the end; collective.

    keep: is given this rank's predictions as well. detail: slices and files of predictions. Set them for who wants more
    than scores.
    """

    keep: Callable[[Predictions], None] | None = None
    detail: Detail | None = None

    def __init__(
        self,
        config: Config,
        segments: tuple[Segment, ...],
        mapper: IdMapper,
        runtime: Runtime,
        executor: Executor,
        telemetry: Telemetry,
        cache: FooterCache | None = None,
        quarantine: str = "",
        cost: RowCost = BY_LENGTH,
        blocks: FieldBlocks | None = None,
    ) -> None:
        self._config, self._segments, self._mapper, self._cache = config, segments, mapper, cache
        self._runtime, self._executor, self._telemetry = runtime, executor, telemetry
        self._quarantine, self._cost, self._blocks = quarantine, cost, blocks

    def __call__(self, model: nn.Module, state: TrainState, rows: int = 0) -> EvalRecord:
        """rows: about so many, the same ones each time (pipelines.sampled_pass); 0 = all. The model must be detached
        from its training pipeline. Ids are mapped as of state.step, although those of later batches are mapped
        already."""
        config, started = self._config, time.perf_counter()
        self._runtime.beats.beat(state.step, "evaluation begins")
        pass_ = self._pass(rows)
        feed = open_feed(
            pass_, None, self._executor, self._mapper, self._runtime, state.step, train=False, blocks=self._blocks
        )
        try:
            sample = CollapseSample(config.train.collapse_rows, self._runtime)
            with sample.watching(model) if config.train.collapse_rows else nullcontext():
                found = predict(
                    model,
                    _beating(feed, state.step, self._runtime, self._expected(pass_, rows)),
                    tuple(config.schema.tasks),
                    config.schema.supervised_history if config.schema.supervision == "history" else "",
                    self._runtime,
                    self.detail,
                )
            collapse = sample.figures()
        finally:
            feed.close()
        if self.keep is not None:
            self.keep(found)
        exchange = Exchange(self._runtime.control)
        values, by_user = score(found.tasks, exchange)
        record = EvalRecord(
            step=state.step,
            examples=state.examples,
            split=",".join(s.name for s in self._segments),
            tasks=values,
            gauc=by_user,
            rows=found.rows,
            seconds=time.perf_counter() - started,
            collapse=collapse,
            slices=None if self.detail is None else self.detail.finish(found.tasks, exchange),
        )
        if self._runtime.is_first:
            self._telemetry.eval(record)
        return record

    def _expected(self, pass_: Pass, rows: int) -> int:
        """Global batches, about; 0 on ranks that show nothing."""
        if not self._runtime.is_first:
            return 0
        all_batches = pass_.batches_after(None)
        return min(all_batches, -(-rows // self._config.data.global_batch)) if rows else all_batches

    def _pass(self, rows: int) -> Pass:
        shared: dict[str, Any] = {
            "schema": self._config.schema,
            "data": self._config.data,
            "segments": self._segments,
            "cache": self._cache,
            "quarantine": self._quarantine,
            "cost": self._cost,
        }
        return SampledPass(rows, **shared) if rows else Pass(**shared, shuffle=False)


def _beating(batches: Iterator[RequestBatch], step: int, runtime: Runtime, expected: int) -> Iterator[RequestBatch]:
    """Every batch is a sign of life; what comes after the last may take long. expected: batches, about."""
    for number, batch in enumerate(batches, 1):
        runtime.beats.done = number, expected
        runtime.beats.beat(step, "evaluation")
        yield batch
    runtime.beats.beat(step, "scores")


def predict(
    model: nn.Module,
    batches: Iterator[RequestBatch],
    tasks: tuple[str, ...],
    supervised_history: str,
    runtime: Runtime,
    detail: Detail | None = None,
) -> Predictions:
    """Forward only, model as it is; collective. The model must be detached from its training pipeline.

    supervised_history: its name in `history` supervision, "" in `candidates` supervision. detail: is shown every batch.
    """
    parts: dict[str, dict[str, list[Array]]] = {task: {name: [] for name in TYPES} for task in tasks}
    rows = 0
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                _, outputs = model(batch.to(runtime.device))
                rows += batch.info.rows
                host = batch.host
                lengths = host.history_lengths[supervised_history] if supervised_history else host.candidate_lengths
                users = np.repeat(host.user, lengths)
                scored = Scored(
                    *(_on_host(t) for t in (outputs.probabilities_SK, outputs.labels_SK, outputs.weights_SK))
                )
                slices = None if detail is None else detail.saw(host, scored)
                for k, task in enumerate(tasks):
                    kept = np.flatnonzero(scored.weights_SK[:, k])
                    columns = {
                        "probability": scored.probabilities_SK[:, k],
                        "label": scored.labels_SK[:, k],
                        "weight": scored.weights_SK[:, k],
                        "user": users,
                    } | ({} if slices is None else {"slice": slices})
                    for name, column in columns.items():
                        parts[task][name].append(column[kept])
    finally:
        model.train(was_training)
    return Predictions({task: _concatenate(of_task) for task, of_task in parts.items()}, rows)


def _on_host(values_SK: torch.Tensor) -> Array:
    return values_SK.float().cpu().numpy()


def _concatenate(parts: dict[str, list[Array]]) -> dict[str, Array]:
    """Column by column, so that no more than one is held twice."""
    found = {}
    for name, dtype in TYPES.items():
        pieces = parts.pop(name)
        if name == "slice" and not pieces:
            continue
        found[name] = np.concatenate(pieces) if pieces else np.empty(0, dtype)
    return found
