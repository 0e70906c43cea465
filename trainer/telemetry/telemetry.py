"""The facade that the loop talks to. Rank 0 writes the files and the console line; every rank serves its own
endpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from embeddings.health import TableFigures
from trainer.checkpoint.folder import Location, name_of, spoken
from trainer.config_sections import Telemetry as TelemetryConfig
from trainer.run_dir import RunDir
from trainer.telemetry import console, jsonl, updates
from trainer.telemetry.goodput import Ended, Ledger
from trainer.telemetry.jsonl import JsonLines
from trainer.telemetry.prometheus import Prometheus
from trainer.telemetry.records import EvalRecord, TrainRecord
from trainer.telemetry.system import Probe
from trainer.telemetry.tables import TableWatch, worth_saying
from trainer.telemetry.tensorboard import TensorBoard
from trainer.telemetry.updates import Begun, Happened, Saved, Screen, Update

log = logging.getLogger(__name__)
# Events that a display shows, in words; what is wrong is a warning of the log, and shown as such.
NEWS = {
    "segment": "segment {segment} is done",
    "early_stop": "stopped early: {metric} no longer improves",
    "evaluation_put_off": "evaluations take long: the next one is at step {next_step}",
}


class Telemetry:
    """Not collective: call it on every rank with the same records, or only where there is something to tell.

    quiet: files only, no console line and no endpoint. Console lines are log records of this module, so that they are
    in train.log as well. probe: of the machine's figures. ledger: of the run's time, where one is kept: rank 0 of a run
    that trains. endpoint: (host, port) of this rank's, None where there is none. ended: set it at the end of a run; one
    that fails leaves it. screen: is told what its display shows. Raises ConfigError: the port is taken.
    """

    def __init__(
        self,
        run_dir: RunDir,
        config: TelemetryConfig,
        rank: int,
        tasks: Sequence[str],
        quiet: bool = False,
        world_size: int = 1,
        screen: Screen | None = None,
    ) -> None:
        self.probe = Probe(run_dir.path, of_job=rank == 0)
        self.ledger: Ledger | None = None
        self.endpoint: tuple[str, int] | None = None
        self.ended: Ended = ""
        self._run_dir = run_dir
        self._quiet = quiet
        self._screen = None if quiet else screen
        self._closing = ExitStack()
        self._prometheus: Prometheus | None = None
        self._lines: JsonLines | None = None
        self._board: TensorBoard | None = None
        self._last_train: TrainRecord | None = None
        self._shown_train: TrainRecord | None = None  # of the newest window that is not much shorter than those before
        self._shown_steps = (0, 0)  # it began after, it ended with
        self._tables: Mapping[str, TableFigures] = {}  # newest
        self._watch = TableWatch()
        self._evals: dict[str, EvalRecord] = {}
        self._trained_examples, self._trained_seconds, self._logged_step = 0.0, 0.0, 0
        if config.prometheus and not quiet:
            self._prometheus = Prometheus(config, rank, tasks, self.probe, world_size)
            self._closing.callback(self._prometheus.close)
            self.endpoint = (config.host, self._prometheus.port)
            log.info("metrics of rank %d for Prometheus at %s", rank, self._prometheus.url)
        if rank == 0:
            run_dir.path.mkdir(parents=True, exist_ok=True)
            self._lines = JsonLines(run_dir.metrics)
            self._closing.callback(self._lines.close)
            if config.tensorboard:
                self._board = TensorBoard(run_dir.tensorboard)
                self._closing.callback(self._board.close)

    def resumed(self, step: int, examples: int, checkpoint: Location, event: str = "resumed") -> None:
        """Before the first record of a run that goes on from a checkpoint: what was told of later steps is taken
        back."""
        self._logged_step = step
        dropped = self._take_back(step)
        self.event(event, step, examples, checkpoint=name_of(checkpoint), dropped_lines=dropped)

    def begins_anew(self) -> None:
        """Before the first record of a run whose earlier starts came to no checkpoint: what they told is taken back."""
        self._take_back(0)

    def _take_back(self, step: int) -> int:
        """What was told of later steps; returns how many lines went."""
        if self._board is not None:
            self._board.rewind(step)
        return self._lines.rewind(step) if self._lines is not None else 0

    def open_ledger(self, workers: int, device: str, began: float) -> None:
        """Keeps account of the run's time from here on. workers, device: that it holds. began: when this start's
        command was given, seconds since 1970."""
        lines = self._run_dir.metrics  # a line at every log: what says last that an earlier start was alive
        alive = lines.stat().st_mtime if lines.exists() else 0.0
        ledger = self.ledger = Ledger(self._run_dir.goodput, workers, device, began, alive)
        self._closing.callback(lambda: ledger.write(self.ended))

    def stepped(self, step: int) -> None:
        """After every step: costs a microsecond."""
        if self._prometheus is not None:
            self._prometheus.stepped(step)

    def begins(self, begun: Begun) -> None:
        """Before the first step, on rank 0."""
        self._show(begun)
        if not self._quiet:
            log.info("%s", console.begin_line(begun))

    def train(self, record: TrainRecord) -> None:
        """At every log."""
        self._show(updates.trained(record))
        steps, self._logged_step = record.step - self._logged_step, record.step
        seconds = max(0, steps) * record.step_seconds
        self._trained_seconds += seconds
        self._trained_examples += seconds * record.examples_per_second
        if 2 * steps >= self._shown_steps[1] - self._shown_steps[0]:  # the end cuts the last window short
            self._shown_train, self._shown_steps = record, (record.step - steps, record.step)
        self._last_train = record
        if record.tables:
            self._tables = record.tables
            if self._lines is not None:  # figures are of all ranks: one speaks
                self._watch.look(record.tables, record.step)
        if self._prometheus is not None:
            self._prometheus.train(record)
        if self._board is not None:
            self._board.train(record)
        self._write("train", record.step, record.examples, jsonl.train_line(record), console.train_line(record))

    def eval(self, record: EvalRecord) -> None:
        """After every evaluation."""
        if self.ledger is not None:
            self.ledger.spent("evaluation", record.seconds or 0.0)
        self._evals[record.split] = record
        self._show(updates.evaluated(record))
        if self._prometheus is not None:
            self._prometheus.eval(record)
        if self._board is not None:
            self._board.eval(record)
        self._write("eval", record.step, record.examples, jsonl.eval_line(record), console.eval_line(record))
        if record.collapse is not None and self._lines is not None and not self._quiet:
            log.info("%s", console.collapse_line(record.collapse.to_json()))

    def checkpoint(
        self,
        step: int,
        examples: int,
        path: Location,
        size: int,
        seconds: float,
        stall_seconds: float = 0.0,
        checkpoint_kind: str = "full",
    ) -> None:
        """After every commit; the line may stand after those of later steps. size: bytes. seconds: from the step to the
        commit; stall_seconds: of these, training waited. checkpoint_kind: "full" or "delta"."""
        if self._prometheus is not None:
            self._prometheus.checkpoint(step, size, seconds, stall_seconds)
        self._show(Saved(step, size, seconds))
        values = {"path": name_of(path), "bytes": size, "seconds": seconds}
        values |= {"stall_seconds": stall_seconds, "checkpoint_kind": checkpoint_kind}
        self._write("checkpoint", step, examples, values, "")

    def event(self, name: str, step: int, examples: int, **values: Any) -> None:
        """Anything else worth finding again: `{"kind": "event", "event": name, …}`. Values are JSON; names are few."""
        if self._prometheus is not None:
            self._prometheus.event(name)
        if name in NEWS:
            self._show(Happened(NEWS[name].format(step=step, **values)))
        self._write("event", step, examples, {"event": name, **values}, "")

    def finish(self) -> dict[str, Any]:
        """What the closing table shows, in plain values. examples_per_second: of this process's whole training time."""
        train, shown, run = self._last_train, self._shown_train, self._run_dir
        speed = self._trained_examples / self._trained_seconds if self._trained_seconds > 0 else None
        places = {
            "run directory": run.path,
            "curves": run.tensorboard,
            "numbers": run.metrics,
            "checkpoint": None if (newest := run.latest()) is None else spoken(newest),
        }
        return {
            "step": train.step if train else None,
            "examples": train.examples if train else None,
            "examples_per_second": speed,
            "train": jsonl.train_line(replace(shown, tables={})) if shown else None,
            "train_steps": (self._shown_steps[0] + 1, self._shown_steps[1]) if shown else None,
            "tables": worth_saying(self._tables),
            "evals": [{"step": record.step, **jsonl.eval_line(record)} for record in self._evals.values()],
            "places": {what: str(where) for what, where in places.items() if where is not None},
        }

    def linger(self, stop: Callable[[], bool]) -> None:
        """At a run's own end, on every rank: until the final values were scraped, as configured."""
        if self._prometheus is not None:
            if self.ledger is not None:
                self._prometheus.account(self.ledger.figures())  # an evaluation came after the last report
            self._prometheus.linger(stop)

    def close(self) -> None:
        """Files are flushed, the endpoint's port is free. May be called twice."""
        self._closing.close()

    def _show(self, update: Update) -> None:
        if self._screen is not None:
            self._screen.show(update)

    def _write(self, kind: str, step: int, examples: int, values: dict[str, Any], line: str) -> None:
        if self._lines is None:
            return
        self._lines.write(kind, step, examples, values)
        if line and not self._quiet:
            log.info("%s", line)
