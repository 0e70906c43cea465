"""What the loop tells telemetry, and when: metrics taken before each update, per task, window, segment and lifetime."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pipelines.retries import OUTSIDE_WINDOWS
from pipelines.windows import Pass
from trainer.checkpoint.checkpointer import Checkpointer, Saved
from trainer.config import Config
from trainer.dense_optim import DenseOptimizer
from trainer.feed import Feed
from trainer.gate import GradientGate
from trainer.guards import Guards
from trainer.metrics.slices import SliceScope
from trainer.metrics.streaming import GlobalMetrics, TaskMetrics
from trainer.progress import Progress
from trainer.rank_sums import RankSums, own_seconds
from trainer.recommender import Outputs
from trainer.runtime import Runtime
from trainer.step_split import StepClock, split
from trainer.step_work import StepWork
from trainer.table_health import TableHealth
from trainer.telemetry.jsonl import slice_values, task_values
from trainer.telemetry.records import TrainRecord
from trainer.telemetry.telemetry import Telemetry
from trainer.telemetry.updates import Begun
from trainer.train_slices import SliceReport
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
        slices: SliceReport | None = None,
        guards: Guards | None = None,
    ) -> None:
        self._config, self._runtime, self._telemetry = config, runtime, telemetry
        self._checkpointer, self._optimizer, self._gate = checkpointer, optimizer, gate
        self._clock, self._health, self._work = clock, health, work
        self._slices, self._guards = slices, guards
        self._metrics = TaskMetrics(tuple(config.schema.tasks), runtime.device)
        self._ranks = RankSums(runtime)
        self._progress: Progress | None = None  # rank 0's
        self._unlabelled_steps = 0
        self._segment = ""
        self._segment_told = False
        self._own_retries = self._read_retries = 0
        self._feed: Feed | None = None

    def start(self, state: TrainState, pass_: Pass) -> None:
        """Before the first step. Collective."""
        self._segment = state.position.name if state.position else ""
        self._ranks.meet()
        if self._slices is not None:
            self._slices.start(pass_.segments)
        if self._runtime.is_first:
            self._progress = Progress(pass_, self._config.train.max_steps)
            self._progress.look(state)
            left, batch = self._progress.batches_left(state), self._config.data.global_batch
            names = tuple(segment.name for segment in pass_.segments)
            self._telemetry.begins(Begun(state.step, state.rows, left, batch, names, pass_.epochs))
        if self._telemetry.ledger is not None:
            self._telemetry.ledger.begin(state.step, state.examples)
        self._clock.take()
        self._begin_window(state, time.perf_counter())

    def after_step(self, outputs: Outputs, state: TrainState, feed: Feed) -> None:
        """Adds the step to the sums, and reports where it is time to."""
        segment = outputs.info.position.name
        self._feed = feed
        if self._progress is not None:
            self._progress.stepped()
        if self._segment and segment != self._segment:
            self._end_segment(state)
            if self._progress is not None and self._config.data.order == "time":  # more of the footers are known now
                self._progress.look(state)
        self._segment, self._segment_told = segment, False
        # Sums stay on the device until they are reported: nothing here waits for it.
        added = self._metrics.update(outputs.probabilities_SK, outputs.labels_SK, outputs.weights_SK)
        if self._slices is not None:
            self._slices.after_step(outputs, added)
        if self._gate.applies:  # a bad step's loss is counted as a bad step, not averaged; one without labels has none
            self._loss += outputs.loss.detach().double()
            self._good_steps += 1
        elif self._gate.ok:
            self._unlabelled_steps += 1
        if self._work is not None:
            self._work.add(outputs.host)
        if self._health is not None:
            self._health.trained(state.step)
        self._telemetry.stepped(state.step)
        if state.step % self._config.train.log_every == 0:
            self._report(state, feed)

    def end(self, state: TrainState, feed: Feed, data_ended: bool) -> None:
        """After the last step: what has not been reported yet. data_ended: the last segment is done as well."""
        if state.step > self._first.step:
            with self._clock.part("telemetry"):
                self._report(state, feed)
        if data_ended and self._segment:
            self._end_segment(state)

    def not_training(self, seconds: float, cause: str = "") -> None:
        """Takes time out of the speeds. cause: of goodput.CAUSES; "" where telemetry hears of it otherwise."""
        self._paused += seconds
        if cause and self._telemetry.ledger is not None:
            self._telemetry.ledger.spent(cause, seconds)

    def saving(self, state: TrainState) -> None:
        """A checkpoint of `state` is about to be written: what the steps up to it took survives with it."""
        if self._telemetry.ledger is not None:
            waited = self._feed.wait_seconds if self._feed is not None else 0.0
            since = time.perf_counter() - self._started - self._paused - waited
            self._telemetry.ledger.mark(state.step, since if state.step > self._first.step else 0.0)

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
        slices = {} if self._slices is None else {"slices": self._slices.state()}
        return self._metrics.reduced(self._runtime.control).state() | {"segment_told": self._segment_told} | slices

    def restore(self, metrics: Any, new_data: bool = False) -> None:
        """The inverse, under any world size. new_data: what comes next begins a segment."""
        self._metrics.load(metrics, self._runtime.rank)
        self._segment_told = metrics.get("segment_told", False)
        if self._slices is not None:
            self._slices.restore(metrics.get("slices"))
        if new_data:
            self._metrics.reset("segment")
            self._reset_slices("segment")

    def _begin_window(self, state: TrainState, now: float) -> None:
        self._first, self._started = state, now
        self._paused = 0.0
        self._loss = torch.zeros((), dtype=torch.float64, device=self._runtime.device)  # Σ over good steps
        self._good_steps = 0
        self._bad_before = self._gate.bad_steps
        self._metrics.reset("window")
        self._reset_slices("window")

    def _report(self, state: TrainState, feed: Feed) -> None:
        now = time.perf_counter()  # what reporting takes is of the next window
        steps = state.step - self._first.step
        seconds = max(1e-9, now - self._started - self._paused)
        parts = split(self._clock.take(), steps, seconds / steps)
        reduced = self._metrics.reduced(self._runtime.control)
        retries = feed.read_retries + OUTSIDE_WINDOWS.count  # of batches, and of this process's own plans
        flops = self._work.take() if self._work is not None else 0.0
        tokens = self._work.tokens if self._work is not None else 0.0
        told = (float(self._loss), self._good_steps, retries - self._own_retries, flops, tokens)
        self._own_retries = retries
        ranks = self._ranks.exchange(told, own_seconds(parts))
        loss, good, retried, flops, tokens = ranks.sums
        self._read_retries += int(retried)
        record = self._record(state, seconds, feed, parts, reduced)
        peak = self._config.train.peak_flops * self._runtime.world_size
        self._telemetry.train(
            replace(
                record,
                loss=loss / good if good else None,
                flops_per_second=flops / seconds if flops else None,
                mfu=flops / seconds / peak if flops and peak else None,
                tokens_per_second=tokens / seconds if tokens else None,
                own_seconds=own_seconds(parts),
                slowest=ranks.slowest,
                median_rank_seconds=ranks.median_seconds,
                **self._goodput(state, seconds, feed.wait_seconds),
                **self._watched(),
            )
        )
        feed.wait_seconds = 0.0
        self._begin_window(state, now)

    def _watched(self) -> dict[str, Any]:
        """Fields of the record: figures per slice, and what the guards saw. Collective."""
        found: dict[str, Any] = {}
        if self._slices is not None:
            found |= {"slice_by": self._slices.field, "slices": self._slices.reduced().values("window")}
        if self._guards is not None:
            found |= {"loss_spikes": self._guards.spikes, "stale_evaluations": self._guards.stale_evaluations}
        return found

    def _reset_slices(self, scope: SliceScope) -> None:
        if self._slices is not None:
            self._slices.reset(scope)

    def _record(
        self, state: TrainState, seconds: float, feed: Feed, parts: dict[str, float], reduced: GlobalMetrics
    ) -> TrainRecord:
        """What this rank knows."""
        steps = state.step - self._first.step
        position, progress = state.position, self._progress
        assert position is not None
        batches, windows = feed.waiting
        return TrainRecord(
            step=state.step,
            examples=state.examples,
            rows=state.rows,
            loss=None,
            examples_per_second=(state.examples - self._first.examples) / seconds,
            rows_per_second=(state.rows - self._first.rows) / seconds,
            step_seconds=seconds / steps,
            data_wait_seconds=feed.wait_seconds / steps,
            grad_norm=float(self._optimizer.grad_norm),
            learning_rate=self._optimizer.lr,
            tasks=reduced.values("window"),
            lifetime=reduced.values("lifetime"),
            data_through=state.data_through,
            bad_steps=self._gate.bad_steps,
            quarantined_rows=state.quarantined_rows,
            epoch=position.epoch,
            segment=position.name,
            seconds_left=progress.batches_left(state) * seconds / steps if progress is not None else None,
            read_retries=self._read_retries,
            checkpoint_age_seconds=self._checkpointer.seconds_since_save(),
            tables=self._health.take() if self._health is not None else {},
            step_split=parts,
            weight_norm=float(self._optimizer.weight_norm()),
            dense_staleness=int(self._optimizer.is_delayed),
            unlabelled_steps=self._unlabelled_steps,
            epoch_progress=progress.of_epoch(state) if progress is not None else None,
            ready_batches=batches,
            ready_windows=windows,
            system=self._telemetry.probe.now(),
        )

    def _goodput(self, state: TrainState, seconds: float, waited: float) -> dict[str, Any]:
        """Fields of the record, where this rank keeps account: the window that ends is added to it."""
        ledger = self._telemetry.ledger
        if ledger is None:
            return {}
        steps = state.step - self._first.step
        waited = min(waited, seconds)
        bad = min(steps, self._gate.bad_steps - self._bad_before) * (seconds - waited) / steps
        ledger.trained(seconds, waited, bad)
        figures = ledger.figures()
        price = figures.price_per_billion(self._config.telemetry.price_per_worker_hour, state.examples)
        return {"goodput": figures, "price_per_billion_examples": price}

    def _end_segment(self, state: TrainState) -> None:
        """Progressive validation: the finished segment's metrics, each prediction made before its update. Once: the
        data may have ended there before, and have been added to."""
        if self._segment_told:
            return
        self._segment_told = True
        values = self._metrics.reduced(self._runtime.control).values("segment")
        self._metrics.reset("segment")
        told: dict[str, Any] = {"tasks": {task: task_values(of_task) for task, of_task in values.items()}}
        if self._slices is not None:
            of_slices = slice_values(self._slices.reduced().values("segment"))
            self._slices.reset("segment")
            told["slices"] = {"by": self._slices.field, "values": of_slices}
        self._telemetry.event("segment", state.step, state.examples, segment=self._segment, **told)
