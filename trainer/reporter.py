"""What the loop tells telemetry, and when: metrics taken before each update, per task, window, segment and lifetime."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from pipelines.retries import OUTSIDE_WINDOWS
from pipelines.windows import Pass
from trainer.checkpoint.checkpointer import Checkpointer, Saved
from trainer.config import Config
from trainer.dense_optim import DenseOptimizer
from trainer.feed import Feed
from trainer.gate import GradientGate
from trainer.metrics.streaming import GlobalMetrics, TaskMetrics
from trainer.recommender import Outputs
from trainer.runtime import Runtime
from trainer.step_split import StepClock, split
from trainer.step_work import StepWork
from trainer.table_health import TableHealth
from trainer.telemetry.jsonl import task_values
from trainer.telemetry.records import TrainRecord
from trainer.telemetry.telemetry import Telemetry
from trainer.train_state import TrainState


class Reporter:
    """Called after every step, on every rank; collective every `train.log_every` steps and where a segment ends.

    Speeds are of the time spent training: evaluation and what training waits for checkpoints are taken out.
    """

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        telemetry: Telemetry,
        checkpointer: Checkpointer,
        optimizer: DenseOptimizer,
        gate: GradientGate,
        clock: StepClock,
        health: TableHealth | None = None,
        work: StepWork | None = None,
    ) -> None:
        self._config, self._runtime, self._telemetry = config, runtime, telemetry
        self._checkpointer, self._optimizer, self._gate = checkpointer, optimizer, gate
        self._clock, self._health, self._work = clock, health, work
        self._metrics = TaskMetrics(tuple(config.schema.tasks), runtime.device)
        self._batches_left = 0
        self._segment = ""
        self._segment_told = False
        self._own_retries = self._read_retries = 0

    def start(self, state: TrainState, pass_: Pass) -> None:
        """Before the first step."""
        self._segment = state.position.name if state.position else ""
        self._pass = pass_
        if self._runtime.is_first:
            self._batches_left = batches_left(pass_, state, self._config.train.max_steps)
        self._clock.take()
        self._begin_window(state, time.perf_counter())

    def after_step(self, outputs: Outputs, state: TrainState, feed: Feed) -> None:
        """Adds the step to the sums, and reports where it is time to."""
        segment = outputs.info.position.name
        if self._segment and segment != self._segment:
            self._end_segment(state)
            if self._runtime.is_first and self._config.data.order == "time":  # more of the footers are known now
                self._batches_left = 1 + batches_left(self._pass, state, self._config.train.max_steps)
        self._segment, self._segment_told = segment, False
        self._batches_left -= 1
        # Sums stay on the device until they are reported: nothing here waits for it.
        self._metrics.update(outputs.probabilities_SK, outputs.labels_SK, outputs.weights_SK)
        if self._gate.applies:  # a bad step's loss is counted as a bad step, not averaged; one without labels has none
            self._loss += outputs.loss.detach().double()
            self._good_steps += 1
        if self._work is not None:
            self._work.add(outputs.host)
        if self._health is not None:
            self._health.trained(state.step)
        if state.step % self._config.train.log_every == 0:
            self._report(state, feed)

    def end(self, state: TrainState, feed: Feed, data_ended: bool) -> None:
        """After the last step: what has not been reported yet. data_ended: the last segment is done as well."""
        if state.step > self._first.step:
            with self._clock.part("telemetry"):
                self._report(state, feed)
        if data_ended and self._segment:
            self._end_segment(state)

    def not_training(self, seconds: float) -> None:
        """Takes time out of the speeds."""
        self._paused += seconds

    def saved(self, committed: Sequence[Saved]) -> None:
        """Checkpoints were committed, perhaps some steps after their own."""
        for saved in committed:
            self._telemetry.checkpoint(
                saved.step,
                saved.examples,
                saved.path,
                saved.bytes,
                saved.seconds,
                stall_seconds=saved.stall_seconds,
                checkpoint_kind=saved.kind,
            )

    def metrics_state(self) -> dict[str, Any]:
        """Collective: what a checkpoint keeps."""
        return self._metrics.reduced(self._runtime.control).state() | {"segment_told": self._segment_told}

    def restore(self, metrics: Any, new_data: bool = False) -> None:
        """The inverse, under any world size. new_data: what comes next begins a segment."""
        self._metrics.load(metrics, self._runtime.rank)
        self._segment_told = metrics.get("segment_told", False)
        if new_data:
            self._metrics.reset("segment")

    def _begin_window(self, state: TrainState, now: float) -> None:
        self._first, self._started = state, now
        self._paused = 0.0
        self._loss = torch.zeros((), dtype=torch.float64, device=self._runtime.device)  # Σ over good steps
        self._good_steps = 0
        self._metrics.reset("window")

    def _report(self, state: TrainState, feed: Feed) -> None:
        now = time.perf_counter()  # what reporting takes is of the next window
        seconds, parts = max(1e-9, now - self._started - self._paused), self._clock.take()
        reduced = self._metrics.reduced(self._runtime.control)
        retries = feed.read_retries + OUTSIDE_WINDOWS.count  # of batches, and of this process's own plans
        flops = self._work.take() if self._work is not None else 0.0
        sums = torch.tensor(
            [float(self._loss), self._good_steps, retries - self._own_retries, flops], dtype=torch.float64
        )
        self._own_retries = retries
        if self._runtime.world_size > 1:
            dist.all_reduce(sums, group=self._runtime.control)
        loss, good, retried, flops = sums.tolist()
        self._read_retries += int(retried)
        mean_loss = loss / good if good else None
        record = self._record(state, seconds, feed.wait_seconds, mean_loss, parts, reduced)
        if flops:
            peak = self._config.train.peak_flops * self._runtime.world_size
            speed = flops / seconds
            record = replace(record, flops_per_second=speed, mfu=speed / peak if peak else None)
        self._telemetry.train(record)
        feed.wait_seconds = 0.0
        self._begin_window(state, now)

    def _record(
        self,
        state: TrainState,
        seconds: float,
        waited: float,
        loss: float | None,
        parts: dict[str, float],
        reduced: GlobalMetrics,
    ) -> TrainRecord:
        steps = state.step - self._first.step
        position = state.position
        assert position is not None
        return TrainRecord(
            step=state.step,
            examples=state.examples,
            rows=state.rows,
            loss=loss,
            examples_per_second=(state.examples - self._first.examples) / seconds,
            rows_per_second=(state.rows - self._first.rows) / seconds,
            step_seconds=seconds / steps,
            data_wait_seconds=waited / steps,
            grad_norm=float(self._optimizer.grad_norm),
            learning_rate=self._optimizer.lr,
            tasks=reduced.values("window"),
            lifetime=reduced.values("lifetime"),
            data_through=state.data_through,
            bad_steps=self._gate.bad_steps,
            quarantined_rows=state.quarantined_rows,
            epoch=position.epoch,
            segment=position.name,
            seconds_left=max(0, self._batches_left) * seconds / steps,
            read_retries=self._read_retries,
            checkpoint_age_seconds=self._checkpointer.seconds_since_save(),
            tables=self._health.take() if self._health is not None else {},
            step_split=split(parts, steps, seconds / steps),
        )

    def _end_segment(self, state: TrainState) -> None:
        """Progressive validation: the finished segment's metrics, each prediction made before its update. Once: the
        data may have ended there before, and have been added to."""
        if self._segment_told:
            return
        self._segment_told = True
        values = self._metrics.reduced(self._runtime.control).values("segment")
        self._metrics.reset("segment")
        tasks = {task: task_values(of_task) for task, of_task in values.items()}
        self._telemetry.event("segment", state.step, state.examples, segment=self._segment, tasks=tasks)


def batches_left(pass_: Pass, state: TrainState, max_steps: int) -> int:
    """Global batches still to train, as far as is known: reads no footer that the plan has not read (see
    `Pass.batches_after`)."""
    left = pass_.batches_after(state.position)
    return min(left, max_steps - state.step) if max_steps else left
