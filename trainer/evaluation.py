"""Evaluation on held-out rows: exact metrics per task from the predictions of all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
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
from trainer.feed import open_feed
from trainer.field_blocks import FieldBlocks
from trainer.metrics.exact import evaluate_task, gauc
from trainer.runtime import Runtime
from trainer.telemetry.records import EvalRecord
from trainer.telemetry.telemetry import Telemetry
from trainer.train_state import TrainState


@dataclass(frozen=True)
class Predictions:
    """Supervised positions with a weight, of all ranks on rank 0 (else empty): per task arrays of one length each.

    {task: {"probability", "label", "weight": float32, "user", "request": int64}}
    """

    tasks: dict[str, dict[str, np.ndarray[Any, Any]]]
    rows: int


class Evaluator:
    """Predicts the held-out segments with a model as it is and reports them. Called by the loop at its cadence and at
    the end; collective.

    keep: is given the predictions as well; set it for who wants more than scores.
    """

    keep: Callable[[Predictions], None] | None = None

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
                    _beating(feed, state.step, self._runtime),
                    tuple(config.schema.tasks),
                    config.schema.supervised_history if config.schema.supervision == "history" else "",
                    self._runtime,
                )
            collapse = sample.figures()
        finally:
            feed.close()
        if self.keep is not None:
            self.keep(found)
        tasks = found.tasks.items()
        record = EvalRecord(
            step=state.step,
            examples=state.examples,
            split=",".join(s.name for s in self._segments),
            tasks={task: evaluate_task(a["probability"], a["label"], a["weight"]) for task, a in tasks},
            gauc={task: gauc(a["probability"], a["label"], a["user"], a["weight"]) for task, a in tasks},
            rows=found.rows,
            seconds=time.perf_counter() - started,
            collapse=collapse,
        )
        if self._runtime.is_first:  # where the predictions are
            self._telemetry.eval(record)
        return record

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


def _beating(batches: Iterator[RequestBatch], step: int, runtime: Runtime) -> Iterator[RequestBatch]:
    """Every batch is a sign of life; what comes after the last may take long."""
    for batch in batches:
        runtime.beats.beat(step, "evaluation")
        yield batch
    runtime.beats.beat(step, "scores")


def predict(
    model: nn.Module,
    batches: Iterator[RequestBatch],
    tasks: tuple[str, ...],
    supervised_history: str,
    runtime: Runtime,
) -> Predictions:
    """Forward only, model as it is; collective. The model must be detached from its training pipeline.

    supervised_history: its name in `history` supervision, "" in `candidates` supervision.
    """
    parts: dict[str, list[dict[str, np.ndarray[Any, Any]]]] = {task: [] for task in tasks}
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
                users, requests = np.repeat(host.user, lengths), np.repeat(host.request, lengths)
                for k, task in enumerate(tasks):
                    weight = outputs.weights_SK[:, k].cpu().numpy()
                    kept = np.flatnonzero(weight)
                    parts[task].append(
                        {
                            "probability": outputs.probabilities_SK[:, k].float().cpu().numpy()[kept],
                            "label": outputs.labels_SK[:, k].cpu().numpy()[kept],
                            "weight": weight[kept],
                            "user": users[kept],
                            "request": requests[kept],
                        }
                    )
    finally:
        model.train(was_training)
    own = {task: _concatenate(found) for task, found in parts.items()}
    if runtime.world_size == 1:
        return Predictions(own, rows)
    return Predictions({task: _gather(arrays, runtime) for task, arrays in own.items()}, rows)


def _concatenate(parts: list[dict[str, np.ndarray[Any, Any]]]) -> dict[str, np.ndarray[Any, Any]]:
    types = {
        "probability": np.float32,
        "label": np.float32,
        "weight": np.float32,
        "user": np.int64,
        "request": np.int64,
    }
    return {k: np.concatenate([p[k] for p in parts]) if parts else np.empty(0, t) for k, t in types.items()}


def _gather(arrays: dict[str, np.ndarray[Any, Any]], runtime: Runtime) -> dict[str, np.ndarray[Any, Any]]:
    """All ranks' arrays on rank 0, in rank order; padded to one length for the exchange."""
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(runtime.world_size)]
    dist.all_gather(counts, torch.tensor([len(arrays["label"])]), group=runtime.control)
    lengths = [int(count) for count in counts]
    longest = max(lengths)
    gathered = {}
    for name, array in arrays.items():
        padded = torch.from_numpy(np.pad(array, (0, longest - len(array))))
        parts = [torch.empty_like(padded) for _ in lengths] if runtime.is_first else None
        dist.gather(padded, parts, group_dst=0, group=runtime.control)
        kept = [p[:n].numpy() for p, n in zip(parts, lengths, strict=True)] if parts else [array[:0]]
        gathered[name] = np.concatenate(kept)
    return gathered
