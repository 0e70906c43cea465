"""What all of telemetry costs of a step: sums of metrics, health of tables, the clock of a step's parts, reports to the
console, metrics.jsonl, TensorBoard and Prometheus, and being scraped.

    python -m tests.benchmarks.telemetry [--quick]

The same trainer takes its steps with all of it on and all of it off, in turn; batches are ready in memory. A round is
as many steps as there are between two looks at the tables: everything happens in it as often as it does in a run.
`telemetry_share` is the CPU time of telemetry's own calls over that of the steps; the difference of on and off stands
beside it, and is less than their spread.
"""

from __future__ import annotations

import gc
import logging
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch.distributed as dist

from pipelines.segments import find_segments
from pipelines.windows import Pass
from tests.benchmarks import harness
from tests.benchmarks.train_rows import Shape, run_config, write_rows
from tests.benchmarks.train_step import TINY, memory_feed, ready_batches
from tests.distributed.ranks import run_ranks
from trainer import logs, machine
from trainer.assembly import assemble
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.config import Config
from trainer.config_sections import Checkpoint, Telemetry, Train
from trainer.pipeline import SplitPipeline
from trainer.reporter import Reporter
from trainer.run_dir import RunDir
from trainer.runtime import Runtime, start
from trainer.step_work import StepWork
from trainer.table_health import TableHealth
from trainer.telemetry.telemetry import Telemetry as Sinks
from trainer.train_state import TrainState

ON, OFF = "telemetry on", "telemetry off"
ENTRIES = 20_000  # of a part of the clock, that the cost of one is measured on
SCRAPES, SCRAPE_SECONDS = 20, 15.0  # so many are measured; so often a Prometheus asks
GOAL = 0.01


@dataclass(frozen=True)
class Plan:
    """A round is `steps` steps, with everything on or off; log_every: steps to a report."""

    shape: Shape
    rounds: int
    steps: int = 100
    log_every: int = 20


FULL = Plan(Shape(rows=4_096), rounds=3)
QUICK = Plan(Shape(rows=2_048, global_batch=32), rounds=2)
SMALL = Plan(TINY, 1, steps=4, log_every=2)


@dataclass
class Own:
    """CPU seconds of telemetry's own calls, by what they are for."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """What happens inside is for that."""
        began = time.process_time()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.process_time() - began


class Steps:
    """The trainer's own parts as trainer.loop joins them; `on` says whether anything is told of a step."""

    def __init__(self, config: Config, runtime: Runtime, pass_: Pass, run_dir: RunDir, closing: ExitStack) -> None:
        assembly = assemble(config, runtime)
        assembly.model.train()
        self.clock, self.own = assembly.clock, Own()
        self.health = _Timed(config.telemetry.tables_every, assembly, runtime, self.own)
        ready = ready_batches(pass_, runtime.world_size, runtime.rank)
        self.feed = memory_feed(ready, assembly.mapper, config, runtime, self.health, self.clock)
        self._pipeline = SplitPipeline(assembly, runtime.device)
        self._state = TrainState()
        self.sinks = Sinks(run_dir, config.telemetry, runtime.rank, tuple(config.schema.tasks))
        closing.callback(self.sinks.close)
        if runtime.is_first:
            closing.callback(logs.detach, logs.to_file(run_dir.train_log))
            self.sinks.open_ledger(runtime.world_size, "cpu", time.time())
        checkpointer = Checkpointer(run_dir, config.checkpoint, runtime.control)
        work = StepWork(assembly.layout.spec, config.model)
        self.reporter = Reporter(
            config,
            runtime,
            self.sinks,
            checkpointer,
            assembly.optimizer,
            assembly.gate,
            assembly.clock,
            self.health,
            work,
        )
        self._assembly = assembly
        self.reporter.start(self._state, pass_)

    def step(self, on: bool) -> None:
        """One."""
        self._assembly.optimizer.now(self._state.step, self._state.examples)
        outputs = self._pipeline.progress(self.feed)
        self._state = self._state.after(outputs)
        if on:
            with self.own.of("sums and reports"):
                self.reporter.after_step(outputs, self._state, self.feed)

    def entered(self) -> int:
        """Parts of the clock in one step."""
        return harness.parts_entered(self.clock, lambda: self.step(on=False))


class _Timed(TableHealth):
    """on: whether it looks at anything."""

    def __init__(self, every: int, assembly: Any, runtime: Runtime, own: Own) -> None:
        super().__init__(every, assembly, runtime)
        self._own, self.on = own, True

    def mapped(self, step: int, *of_batch: Any) -> None:
        if self.on:
            with self._own.of("health of tables"):
                super().mapped(step, *of_batch)

    def _looked_up(self, *of_module: Any) -> None:
        if self.on:
            with self._own.of("health of tables"):
                super()._looked_up(*of_module)


def measure(rank: int, world_size: int, folder: Path, plan: Plan) -> dict[str, Any]:
    """In each rank: wall and CPU ms a step of each round, CPU ms a step of telemetry's calls by purpose."""
    every = plan.steps
    config = replace(
        run_config(plan.shape, folder / "rows.parquet"),
        train=Train(log_every=plan.log_every),
        telemetry=Telemetry(tables_every=every),
        checkpoint=Checkpoint(every_minutes=0),
    )
    run_dir = RunDir(folder / f"run_{world_size}")
    run_dir.path.mkdir(exist_ok=True)
    with start(300, max(1, machine.cores() // world_size)) as runtime, ExitStack() as closing:
        pass_ = Pass(config.schema, config.data, find_segments(config.data).train, config.train.seed)
        steps = Steps(config, runtime, pass_, run_dir, closing)
        for _ in range(plan.log_every):  # the first report makes files and imports TensorBoard
            steps.step(on=True)
        steps.own.seconds.clear()
        found: dict[str, Any] = {"wall": {ON: [], OFF: []}, "cpu": {ON: [], OFF: []}}
        for turn in range(2 * plan.rounds):
            on = turn % 4 in (0, 3)  # every other round backwards
            steps.clock.on = steps.health.on = on
            timed(steps, plan.steps, on, found, runtime)
        told = plan.rounds * plan.steps
        own = {what: 1000 * seconds / told for what, seconds in steps.own.seconds.items()}
        steps.clock.on = True
        own["clock of parts"] = steps.entered() * entry_ms(steps)
        own["scrapes"] = scrape_ms(steps) * median(found["wall"][ON]) / 1000 / SCRAPE_SECONDS
        steps.feed.close()
        return found | {"own": own}


def timed(steps: Steps, count: int, on: bool, found: dict[str, Any], runtime: Runtime) -> None:
    """Adds a round's figures."""
    gc.collect()
    dist.barrier(runtime.control)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        steps.step(on)
    name = ON if on else OFF
    found["wall"][name].append(1000 * (time.perf_counter() - wall) / count)
    found["cpu"][name].append(1000 * (time.process_time() - cpu) / count)


def entry_ms(steps: Steps) -> float:
    """CPU ms to enter a part within another and leave it."""
    with steps.clock.part("forward"):
        began = time.process_time()
        for _ in range(ENTRIES):
            with steps.clock.part("lookup"):
                pass
        return 1000 * (time.process_time() - began) / ENTRIES


def scrape_ms(steps: Steps) -> float:
    """CPU ms of one, that of asking for it included."""
    assert steps.sinks.endpoint is not None
    host, port = steps.sinks.endpoint
    began = time.process_time()
    for _ in range(SCRAPES):
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=20) as answer:
            answer.read()
    return 1000 * (time.process_time() - began) / SCRAPES


def report(ranks: int, found: dict[str, Any]) -> float:
    """Prints what telemetry costs on rank 0, which tells most; returns its share of a step."""
    cpu = median(found["cpu"][OFF])
    rows = [[what, f"{ms:.3f}", f"{ms / cpu:.3%}"] for what, ms in found["own"].items()]
    total = sum(found["own"].values())
    rows.append(["all of it", f"{total:.3f}", f"{total / cpu:.3%}"])
    harness.table([f"{ranks} rank{'s' if ranks > 1 else ''}, rank 0", "CPU ms a step", "of a step's CPU time"], rows)
    for kind in ("wall", "cpu"):
        show = {name: f"{median(v):.1f} ({min(v):.1f}–{max(v):.1f})" for name, v in found[kind].items()}
        difference = harness.ratio(found[kind][ON], found[kind][OFF]) - 1
        harness.show(f"{kind} ms a step", show | {"on ÷ off - 1": f"{difference:+.2%}"})
    print()
    return total / cpu


@click.command()
@click.option("--quick", is_flag=True, help="Ends within a minute on 2 cores.")
@click.option("--tiny", is_flag=True, hidden=True, help="For the tests.")
def main(quick: bool, tiny: bool) -> None:
    """What telemetry costs."""
    harness.prepare_process()
    logging.getLogger("trainer").setLevel(logging.INFO)
    plan = SMALL if tiny else QUICK if quick else FULL
    harness.show("shape", plan.shape.facts())
    every = {"rounds": plan.rounds, "steps a round": plan.steps, "log_every": plan.log_every}
    harness.show("measured", every | {"tables_every": plan.steps, "a scrape every": f"{SCRAPE_SECONDS:g} s"})
    with TemporaryDirectory() as name:
        write_rows(plan.shape, Path(name) / "rows.parquet")
        shares = [
            report(ranks, run_ranks(measure, ranks, Path(name), plan, timeout=900)[0])
            for ranks in ((1,) if quick else (1, 2))
        ]
    harness.show("goal", {"telemetry_share": f"< {GOAL}", "found": f"{max(shares):.4f}"})
    harness.finish("telemetry", {"telemetry_share": max(shares)}, machine.cores())


if __name__ == "__main__":
    main()
