"""The whole trainer, as `train` joins it, in turns with others: metrics, reports, telemetry and the record of what was
trained, on batches ready in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from pipelines.batch import Batch
from pipelines.segments import find_segments
from pipelines.windows import Pass
from tests.benchmarks.train_rows import Shape, run_config
from tests.benchmarks.train_step import memory_feed
from trainer.assembly import assemble
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.config_sections import Checkpoint, Telemetry, Train
from trainer.consumed import Recorder, open_recorder
from trainer.guards import Guards
from trainer.loop import Trainer
from trainer.reporter import Reporter
from trainer.run_dir import RunDir
from trainer.runtime import Runtime
from trainer.step_work import StepWork
from trainer.table_health import TableHealth
from trainer.telemetry.telemetry import Telemetry as Sinks


class Turns(Recorder):
    """In the recorder's place: takes the time of every `steps` steps after the first `warm`, and lets `others` have
    their turn in between.

    seconds: of each round. Deterministic algorithms, the trainer's own promise, are off while others run.
    """

    def __init__(self, inner: Recorder, runtime: Runtime, warm: int, steps: int, others: Callable[[], None]) -> None:
        self._inner, self._runtime, self._warm, self._every, self._others = inner, runtime, warm, steps, others
        self._began = 0.0
        self.seconds: list[float] = []

    def trained(self, step: int, batch: Batch) -> None:
        self._inner.trained(step, batch)
        done = step - self._warm
        if done < 0 or done % self._every:
            return
        dist.barrier(self._runtime.control)
        if done:
            self.seconds.append(time.perf_counter() - self._began)
            torch.use_deterministic_algorithms(False)
            self._others()
            torch.use_deterministic_algorithms(True)
            dist.barrier(self._runtime.control)
        self._began = time.perf_counter()

    def ended(self, step: int) -> None:
        self._inner.ended(step)

    def flush(self) -> None:
        self._inner.flush()

    def close(self) -> None:
        self._inner.close()


def train_in_turns(
    shape: Shape,
    path: Path,
    ready: list[Batch],
    runtime: Runtime,
    plan: tuple[int, int, int],
    others: Callable[[], None],
    run_path: Path,
) -> list[float]:
    """Examples per second of each round. plan: (warm-up steps, steps a round, rounds). Collective."""
    warm, steps, rounds = plan
    config = replace(
        run_config(shape, path),
        train=Train(max_steps=warm + steps * rounds),
        telemetry=Telemetry(),
        checkpoint=Checkpoint(every_minutes=0),
    )
    run_dir = RunDir(str(run_path))
    segments = find_segments(config.data).train
    assembly = assemble(config, runtime)
    sinks = Sinks(run_dir, config.telemetry, runtime.rank, tuple(config.schema.tasks), quiet=True)
    checkpointer = Checkpointer(
        run_dir, config.checkpoint, runtime.control, touched=assembly.touched, background=runtime.checkpoint
    )
    health = TableHealth(config.telemetry.tables_every, assembly, runtime)
    work = StepWork(assembly.layout.spec, config.model)
    reporter = Reporter(
        config, runtime, sinks, checkpointer, assembly.optimizer, assembly.gate, assembly.clock, health, work
    )
    pass_ = Pass(config.schema, config.data, segments, config.train.seed)
    trainer = Trainer(
        config,
        assembly,
        pass_,
        lambda state: memory_feed(ready, assembly.mapper, config, runtime, health, assembly.clock),
        reporter,
        checkpointer,
        lambda _model, _state, _rows: {},
        runtime,
        Guards(config, runtime, assembly.gate, sinks, run_dir, pass_),
    )
    try:
        with closing(open_recorder(run_dir, config, segments, 0, runtime)) as recorder:
            turns = Turns(recorder, runtime, warm, steps, others)
            trainer.train(turns)
    finally:
        sinks.close()
    return [steps * shape.examples / seconds for seconds in turns.seconds]
