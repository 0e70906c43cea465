"""The guards of a run, joined: told of every step and evaluation, on every rank alike, and asked whether to go on."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from pipelines.windows import Pass
from trainer.checkpoint.agreement import gather
from trainer.checkpoint.retention import best_metric
from trainer.config import Config
from trainer.errors import NonFiniteError
from trainer.gate import GradientGate
from trainer.guards.bad_steps import BadStep, join, look
from trainer.guards.ending import Ending
from trainer.guards.kept import KeptBatches, Lists
from trainer.guards.pace import Pace
from trainer.guards.patience import Patience
from trainer.guards.spikes import SpikeDetector
from trainer.recommender import Outputs
from trainer.run_dir import RunDir
from trainer.runtime import Runtime
from trainer.telemetry.telemetry import Telemetry
from trainer.train_state import TrainState

log = logging.getLogger(__name__)

TOLD = 20  # bad steps of a process that are looked at: each costs an exchange


class Guards:
    """spikes: loss spikes in the model's life. ending: why to end; None = go on. All the same on every rank."""

    def __init__(
        self, config: Config, runtime: Runtime, gate: GradientGate, telemetry: Telemetry, run_dir: RunDir, pass_: Pass
    ) -> None:
        train, schema = config.train, config.schema
        self._train, self._keep_best = train, config.checkpoint.keep_best
        self._runtime, self._gate, self._telemetry = runtime, gate, telemetry
        metric, sign = best_metric(config.checkpoint, next(iter(schema.tasks), ""))
        self._pace = Pace(train.eval_every, train.eval_share)
        self._patience = Patience(metric, sign, train.stop_after, train.stop_min_delta)
        self._detector = SpikeDetector(train.spike_sigmas, train.spike_window)
        self._lists = Lists(tuple(schema.tasks), schema.supervised_history if schema.supervision == "history" else "")
        self._segments = pass_.segments
        self._kept = KeptBatches(run_dir.spikes, runtime.rank, self._lists, self._files, train.spike_keep)
        self._bad_in_a_row = self._told = 0
        self._since: tuple[int, float] | None = None  # (step, time) that training goes on from
        self._has_put_off = False
        self.spikes = 0
        self.ending: Ending | None = None

    def after_step(self, outputs: Outputs, state: TrainState) -> None:
        """Collective where the step was bad."""
        if self._since is None:  # the first step of a process is like no other
            self._since = (state.step, time.perf_counter())
        if self._gate.is_bad:
            self._bad_in_a_row += 1
            self._after_bad_step(outputs, state)
        else:
            self._bad_in_a_row = 0
            self._look_for_spike(outputs, state)
        self._kept.after_step(outputs)

    def evaluation_is_due(self, step: int) -> bool:
        """After this step. The same on every rank, and after a resume."""
        return self._pace.is_due(step)

    @property
    def wants_scores(self) -> bool:
        """Whether somebody compares evaluations: then they are of a model that is saved as it is."""
        return self._keep_best > 0 or self._train.stop_after > 0

    def evaluated(self, state: TrainState, scores: Mapping[str, float], seconds: float) -> None:
        """After an evaluation under way. Collective. scores: of rank 0, who has the predictions."""
        now = time.perf_counter()
        step_seconds = None
        if self._since is not None and state.step > self._since[0]:
            step_seconds = (now - seconds - self._since[1]) / (state.step - self._since[0])
        self._since = (state.step, now)
        self._patience.count(state.step, self._shared(scores))
        self._appoint(state, seconds, step_seconds)
        self._stop_if_over(state)

    @property
    def stale_evaluations(self) -> int | None:
        """Since the last improvement; None where none are made under way."""
        return self._patience.stale if self._train.eval_every else None

    def start(self, state: TrainState) -> None:
        """Before the first step: a run that had stopped early is still over, unless it is given more patience."""
        self._stop_if_over(state, again=True)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, plain JSON."""
        return {
            "next_evaluation": self._pace.next_step,
            "patience": self._patience.state(),
            "bad_in_a_row": self._bad_in_a_row,
            "spikes": self.spikes,
            "detector": self._detector.state(),
            "kept": self._kept.state(),
        }

    def restore(self, saved: Any) -> None:
        """The inverse; None = a checkpoint from before there were guards."""
        if saved is None:
            return
        self._pace.next_step = saved["next_evaluation"]
        self._patience.restore(saved["patience"])
        self._bad_in_a_row, self.spikes = saved["bad_in_a_row"], saved["spikes"]
        self._detector.restore(saved["detector"])
        self._kept.restore(saved["kept"])

    def _files(self, segment: int) -> tuple[str, ...]:
        return self._segments[segment].files

    def _shared(self, scores: Mapping[str, float]) -> Mapping[str, float]:
        value = torch.tensor([scores.get(self._patience.metric, float("nan"))], dtype=torch.float64)
        if self._runtime.world_size > 1:
            dist.broadcast(value, src=0, group=self._runtime.control)
        return {} if value.isnan() else {self._patience.metric: float(value)}

    def _appoint(self, state: TrainState, seconds: float, step_seconds: float | None) -> None:
        """By rank 0's clock."""
        step = torch.tensor([self._pace.appoint(state.step, seconds, step_seconds)])
        if self._runtime.world_size > 1:
            dist.broadcast(step, src=0, group=self._runtime.control)
        self._pace.next_step = int(step)
        apart, every = self._pace.next_step - state.step, self._train.eval_every
        if apart > every and not self._has_put_off:
            self._has_put_off = True
            if self._runtime.is_first:
                log.info(
                    "an evaluation takes %.3g s, and %d steps %.3g s: train.eval_share = %g puts the next one off to "
                    "step %d, and later ones likewise",
                    seconds,
                    every,
                    every * (step_seconds or 0.0),
                    self._train.eval_share,
                    self._pace.next_step,
                )
            self._telemetry.event(
                "evaluation_put_off", state.step, state.examples, seconds=seconds, next_step=self._pace.next_step
            )

    def _stop_if_over(self, state: TrainState, again: bool = False) -> None:
        found = self._patience
        if self.ending is not None or not found.is_over:
            return
        best = "" if found.best_score is None else f"; the best was {found.best_score:.6g} at step {found.best_step}"
        words = (
            f"stopped early at step {state.step}: {found.metric} has not improved in {found.stale} evaluations "
            f"(train.stop_after = {self._train.stop_after}){best}"
        )
        self.ending = Ending("early_stop", words)
        if self._runtime.is_first:
            log.info("%s%s", words, "; with more of it the run would go on" if again else "")
        if again:  # its event is in metrics.jsonl already
            return
        self._telemetry.event(
            "early_stop",
            state.step,
            state.examples,
            metric=found.metric,
            evaluations=found.stale,
            best=found.best_score,
            best_step=found.best_step,
        )

    def _look_for_spike(self, outputs: Outputs, state: TrainState) -> None:
        spike = self._detector.look(self._gate.step_loss)
        if spike is None:
            return
        self.spikes += 1
        why = {"loss": spike.loss, "median": spike.median, "sigma": spike.sigma, "height": spike.height}
        folder = self._kept.keep(outputs, {"kind": "spike", "step": state.step, **why})
        if self._runtime.is_first:
            log.warning(
                "step %d: the loss jumped to %.4g, %.0f sigmas above its median %.4g%s",
                state.step,
                spike.loss,
                spike.height,
                spike.median,
                f" → see spikes/{folder.name} of the run directory (docs/guards.md)" if folder else "",
            )
        self._telemetry.event("loss_spike", state.step, state.examples, **why, folder=folder.name if folder else None)

    def _after_bad_step(self, outputs: Outputs, state: TrainState) -> None:
        most, in_a_row = self._train.max_bad_steps, self._bad_in_a_row
        too_many = 0 < most <= in_a_row
        ends = self._train.on_nonfinite == "stop" or too_many
        if self._told >= TOLD and not ends:
            return
        self._told += 1
        found = self._bad_step(outputs, state.step)
        why = found.to_json()
        folder = self._kept.keep(outputs, {"kind": "nonfinite", "step": state.step, **why})
        kept = folder.name if folder else None
        self._telemetry.event("nonfinite", state.step, state.examples, **why, in_a_row=in_a_row, folder=kept)
        if not ends:
            if self._runtime.is_first:
                log.warning(
                    "%s → the step is skipped (train.on_nonfinite)%s",
                    found.words(),
                    "" if self._told < TOLD else "; later ones are only counted",
                )
            return
        rule = f"train.max_bad_steps = {most} skipped steps in a row" if too_many else "train.on_nonfinite = 'stop'"
        look_at = f"look at spikes/{kept} in the run directory; " if kept else ""
        error = NonFiniteError(
            f"{found.words()} → {rule} end{'' if too_many else 's'} the run → {look_at}"
            "the checkpoint of this step is the model as it was before it, and --resume auto goes on behind this batch"
        )
        self.ending = Ending("nonfinite", str(error), error)

    def _bad_step(self, outputs: Outputs, step: int) -> BadStep:
        culprits = self._gate.culprits if self._gate.is_bad else ()
        files = self._files(outputs.info.position.segment)
        mine = look(outputs, culprits, files, self._lists, self._runtime.rank)
        return join(step, gather(mine, self._runtime.control))
