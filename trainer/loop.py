"""The training loop: step, account, report, evaluate, save. It reads like its own description."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping

from torch import nn

from embeddings.tables import Tables
from pipelines.windows import Pass
from trainer.assembly import Assembly
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.folder import Location
from trainer.checkpoint.manifest import read_commit
from trainer.checkpoint.state import read_state
from trainer.config import Config
from trainer.consumed import Recorder
from trainer.feed import Feed
from trainer.guards import Ending, Guards
from trainer.init_from import begin
from trainer.model_description import describe, to_json
from trainer.model_state import load_rest, model_tensors
from trainer.pipeline import SplitPipeline
from trainer.recommender import Outputs
from trainer.reporter import Reporter
from trainer.run_dir import RunDir
from trainer.runtime import Runtime
from trainer.step_profile import StepProfile
from trainer.train_state import TrainState, in_flight_examples
from trainer.watchdog import is_broken_exchange


class Trainer:
    """train() runs to the end of the data, to max_steps, or until asked to stop, and leaves a checkpoint. Every method
    is collective.

    feed_from: makes the feed that starts after a state. evaluate: called with the detached model at its own cadence;
    returns its scores, as checkpoints are compared by them; its last argument bounds the rows. profile: of some steps,
    if wanted. scores_at_end: whether there is something held out to score the last checkpoint by.

    ending: why the run ended before its data did; None where it did not.
    """

    def __init__(
        self,
        config: Config,
        assembly: Assembly,
        pass_: Pass,
        feed_from: Callable[[TrainState], Feed],
        reporter: Reporter,
        checkpointer: Checkpointer,
        evaluate: Callable[[nn.Module, TrainState, int], Mapping[str, float]],
        runtime: Runtime,
        guards: Guards,
        profile: StepProfile | None = None,
        scores_at_end: bool = False,
    ) -> None:
        self._config, self._assembly, self._pass = config, assembly, pass_
        self._feed_from, self._reporter, self._checkpointer = feed_from, reporter, checkpointer
        self._evaluate_model, self._profile, self._clock = evaluate, profile, assembly.clock
        self._device, self._world_size, self._beats = runtime.device, runtime.world_size, runtime.beats
        self._guards, self._scores_at_end = guards, scores_at_end
        self._evaluated_step: int | None = None
        self._evaluation_waits = False
        self._description = to_json(describe(config, assembly.specs))
        self._is_pipelined = False
        self._recorder: Recorder | None = None
        self.state = TrainState()

    def train(self, recorder: Recorder | None = None) -> TrainState:
        """The run. recorder: keeps account of what was trained, for `audit`. Raises NonFiniteError, once the model as
        it was before the bad step is saved."""
        self._recorder = recorder
        self._feed = self._feed_from(self.state)
        self._pipeline = self._make_pipeline()
        self._assembly.optimizer.begin(self.state.step)
        self._reporter.start(self.state, self._pass)
        self._guards.start(self.state)
        try:
            data_ended = False
            while not self._finished():
                outputs = self._step()
                if outputs is None:
                    data_ended = True
                    if recorder is not None:
                        recorder.ended(self.state.step)
                    break
                self.state = self.state.after(outputs)
                self._account(outputs)
                scores = self._evaluate_under_way() if self._evaluation_is_due() else None
                if self._saving_is_due(scores is not None):
                    self.save(scores)
                self._reporter.saved(self._checkpointer.poll())
            self._assembly.optimizer.end()
            self._assembly.copies.end(self.state.step)
            self._reporter.end(self.state, self._feed, data_ended)
            self.save(self._evaluate_at_end())
            self._reporter.saved(self._checkpointer.wait())
        finally:
            if self._profile is not None:
                self._profile.close(self.state.step)
            self._feed.close()
            self._checkpointer.close(wait=not is_broken_exchange(sys.exception()))
        self._pipeline.detach()
        if self.ending is not None and self.ending.error is not None:
            raise self.ending.error
        return self.state

    @property
    def ending(self) -> Ending | None:
        """Of the guards."""
        return self._guards.ending

    @property
    def has_just_evaluated_all(self) -> bool:
        """Whether the model as it is was scored on all that is held out."""
        return self._evaluated_step == self.state.step and not self._config.train.eval_rows

    @property
    def stopped_early(self) -> bool:
        """Whether the ranks agreed to a request to stop."""
        return self._feed.stopping

    def _make_pipeline(self) -> SplitPipeline:
        self._assembly.model.train()
        return SplitPipeline(self._assembly, self._device)

    def _finished(self) -> bool:
        limit, step = self._config.train.max_steps, self.state.step
        if self.ending is not None:
            return True
        return (self._feed.stopping and self._is_whole()) or bool(limit and step >= limit)

    def _is_whole(self) -> bool:
        """Whether the model as it stands is all there is: copies of tables are equal, no dense gradient waits for
        others to be added."""
        return self._assembly.copies.are_equal(self.state.step) and self._assembly.sync.between_windows

    def _step(self) -> Outputs | None:
        """Forward, backward, both optimizers; the ids of later batches travel meanwhile. None at the end of the
        data."""
        if self._profile is not None:
            self._profile.before_step(self.state.step + 1)
        self._beats.beat(self.state.step + 1, "step" if self._is_pipelined else "first step")
        self._assembly.optimizer.now(self.state.step, self.state.examples)
        with self._clock.part("id_exchange"):
            self._reset_evicted()
        try:
            outputs: Outputs = self._pipeline.progress(self._feed)
        except StopIteration:
            return None
        if not self._is_pipelined:
            require_pipelined(self._pipeline, self._assembly.module.tables)
            self._is_pipelined = True
        return outputs

    def _account(self, outputs: Outputs) -> None:
        """A step is done: copies of tables are kept alike, what was trained is put on record, and reported."""
        with self._clock.part("exposed_communication"):
            self._assembly.copies.after_step(self.state.step)
        with self._clock.part("telemetry"):
            if self._recorder is not None:
                self._recorder.trained(self.state.step, outputs.host)
            self._guards.after_step(outputs, self.state)
            self._reporter.after_step(outputs, self.state, self._feed)

    def _reset_evicted(self) -> None:
        """Rows that the next batch takes from one id for another begin anew: the last step of the old id is done."""
        if not self._is_pipelined:  # else it is mapped already
            self._feed.look_ahead()
        self._assembly.resetter.reset(self._assembly.mapper.take_resets(self.state.step + 1))

    def _evaluation_is_due(self) -> bool:
        """One that a checkpoint is scored by waits for a model that can be saved as it is."""
        self._evaluation_waits |= self._guards.evaluation_is_due(self.state.step)
        return self._evaluation_waits and (self._is_whole() or not self._guards.wants_scores)

    def _evaluate_under_way(self) -> Mapping[str, float]:
        started = time.perf_counter()
        scores = self.evaluate()
        self._evaluation_waits = False
        self._guards.evaluated(self.state, scores, time.perf_counter() - started)
        return scores

    def _evaluate_at_end(self) -> Mapping[str, float]:
        """What the last checkpoint is compared by: the rows that the others were scored on. It is none of those that
        early stopping counts: a run that is cut in two would stop elsewhere."""
        is_good_end = not self._feed.stopping and (self.ending is None or self.ending.error is None)
        known = self.state.step in (0, self._evaluated_step, self._checkpointer.last_step)
        if known or not (self._scores_at_end and self._config.checkpoint.keep_best and is_good_end):
            return {}
        return self.evaluate()

    def _saving_is_due(self, scored: bool) -> bool:
        """The same on every rank."""
        wanted = scored and self._config.checkpoint.keep_best > 0
        self._feed.saving |= wanted or self._checkpointer.due_by_steps(self.state.step)
        return self._feed.saving and self._is_whole()  # else at the next such step

    def evaluate(self) -> Mapping[str, float]:
        """Detach the pipeline, predict, attach it again: the trajectory stays as it was. Returns the scores."""
        started = time.perf_counter()
        with self._clock.paused():
            scores = self._evaluate_detached()
        self._reporter.not_training(time.perf_counter() - started)
        self._evaluated_step = self.state.step
        return scores

    def _evaluate_detached(self) -> Mapping[str, float]:
        scores = self._evaluate_model(self._pipeline.detach(), self.state, self._config.train.eval_rows)
        self._pipeline.attach()
        if self._pipeline.contexts:
            # Attaching sends the ids of the batch in flight once more, into new contexts: that exchange has to be ended
            # too, or the lookup would read it half done.
            self._pipeline.wait_sparse_data_dist(self._pipeline.contexts[0])
        return scores

    def save(self, scores: Mapping[str, float] | None = None) -> None:
        """Weights, optimizers, id maps, metrics and position, in one commit, which may come while training goes on;
        nothing where this step is saved already."""
        self._feed.saved()
        self._beats.beat(self.state.step, "saving")
        self._reporter.saving(self.state)
        if self._recorder is not None:
            self._recorder.flush()  # what a checkpoint holds is on record before it is complete
        state = self.state.to_checkpoint(
            self._config,
            self._world_size,
            self._assembly.gate.bad_steps,
            self._reporter.metrics_state(),
            self._description,
            self._assembly.optimizer.in_flight_examples,
            self._guards.state(),
        )
        stalled = self._checkpointer.begin(
            state, lambda: model_tensors(self._assembly, self.state.step, to_save=True), scores
        )
        self._reporter.not_training(stalled, "checkpoint")

    def newest_good(self, run_dir: RunDir) -> Location | None:
        """The checkpoint of a run to go on from, if it has one. Damaged ones are passed over and named."""
        return self._checkpointer.newest_good(run_dir)

    def begin_with(self, path: Location) -> list[str]:
        """The model of another run's checkpoint, as far as `[init]` says and this model has it; this run's data from
        the start. Returns what was carried, for the user."""
        begun = begin(self._config, self._assembly, self._checkpointer, path)
        self.state, self._assembly.gate.bad_steps = begun.state, begun.bad_steps
        if begun.metrics is not None:
            self._reporter.restore(begun.metrics, new_data=True)
        return begun.account.lines()

    def resume(self, path: Location) -> None:
        """As if the run that saved `path` had never stopped: with the same world size, to the bit."""
        in_flight = in_flight_examples(read_state(path, read_commit(path)))
        if in_flight is not None:
            self._assembly.sync.hold(in_flight)
        tensors = model_tensors(self._assembly)
        found = self._checkpointer.load(path, tensors, self._config.schema)
        load_rest(self._assembly, tensors)
        self._assembly.mapper.mark(found.step)
        self._assembly.gate.bad_steps = found.bad_steps
        self.state = TrainState.from_checkpoint(found, path)
        self._reporter.restore(found.extra["metrics"])
        self._guards.restore(found.extra.get("guards"))


def require_pipelined(pipeline: SplitPipeline, tables: Tables) -> None:
    """Raises RuntimeError if torch.fx could not pipeline every sharded module: the numbers would be right, the overlap
    gone, silently."""
    expected = len(list(tables.collections.children()))
    found = len(pipeline._pipelined_modules)
    if found != expected:
        raise RuntimeError(
            f"{found} of {expected} sharded modules are pipelined: a change to the forward broke its tracing"
        )
