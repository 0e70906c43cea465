"""Where our step's time goes on 1 and 2 ranks, and what it costs to know.

    python -m tests.benchmarks.step_split [--quick]

The same trainer takes its steps with the clock on and off, in turn; batches are ready in memory, sums of metrics are
taken as in the loop, nothing is logged. What the clock costs is the parts that a step enters, times what entering and
leaving one takes in this process; the difference of on and off stands beside it, and is less than their spread.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, cast

import click
import torch.distributed as dist

from pipelines.segments import find_segments
from pipelines.stream import BatchStream
from pipelines.windows import Pass
from tests.benchmarks import harness
from tests.benchmarks.train_rows import Shape, run_config, write_rows
from tests.benchmarks.train_step import TINY, Cycle, ready_batches
from tests.distributed.ranks import run_ranks
from trainer import machine
from trainer.assembly import assemble
from trainer.config import Config
from trainer.feed import Feed
from trainer.metrics.streaming import TaskMetrics
from trainer.pipeline import SplitPipeline
from trainer.runtime import Runtime, start
from trainer.step_split import OTHER, PARTS, split

ON, OFF = "clock on", "clock off"
ENTRIES = 20_000  # that the cost of one is measured on


@dataclass(frozen=True)
class Plan:
    """A round is `steps` steps with the clock on and as many with it off."""

    shape: Shape
    rounds: int
    steps: int


FULL = Plan(Shape(rows=4_096), rounds=9, steps=8)
QUICK = Plan(Shape(rows=2_048, global_batch=32), rounds=3, steps=4)


class Steps:
    """The trainer's own assembly, feed, pipeline and sums of metrics, as trainer.loop joins them."""

    def __init__(self, config: Config, runtime: Runtime, pass_: Pass) -> None:
        assembly = assemble(config, runtime)
        assembly.model.train()
        self.clock = assembly.clock
        ready = cast(BatchStream, Cycle(ready_batches(pass_, runtime.world_size, runtime.rank)))
        tasks = tuple(config.schema.tasks)
        self.feed = Feed(ready, assembly.mapper, tasks, runtime, clock=self.clock)
        self._pipeline = SplitPipeline(assembly, runtime.device)
        self._metrics = TaskMetrics(tasks)

    def step(self) -> None:
        """One."""
        outputs = self._pipeline.progress(self.feed)
        with self.clock.part("telemetry"):
            self._metrics.update(outputs.probabilities_SK, outputs.labels_SK, outputs.weights_SK)

    def entered(self) -> int:
        """Parts in one step."""
        return harness.parts_entered(self.clock, self.step)


def measure(rank: int, world_size: int, path: Path, plan: Plan) -> dict[str, Any]:
    """In each rank: wall and CPU ms a step of each round, {part: wall ms a step} of each round, what an entry takes."""
    config = run_config(plan.shape, path)
    with start(300, max(1, machine.cores() // world_size)) as runtime:
        pass_ = Pass(config.schema, config.data, find_segments(config.data).train, config.train.seed)
        steps = Steps(config, runtime, pass_)
        for _ in range(3):
            steps.step()
        found: dict[str, Any] = {"wall": {ON: [], OFF: []}, "cpu": {ON: [], OFF: []}, "split": []}
        for turn in range(2 * plan.rounds):
            on = turn % 4 in (0, 3)  # every other round backwards
            steps.clock.on = on
            timed(steps, plan.steps, ON if on else OFF, found, runtime)
        steps.clock.on = True
        found |= {"entered": steps.entered(), "entry_us": entry_us(steps)}
        steps.feed.close()
        return found


def timed(steps: Steps, count: int, name: str, found: dict[str, Any], runtime: Runtime) -> None:
    """Adds a round's figures."""
    dist.barrier(runtime.control)
    steps.clock.take()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        steps.step()
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    found["wall"][name].append(1000 * seconds / count)
    found["cpu"][name].append(1000 * cpu_seconds / count)
    if name == ON:
        found["split"].append(split(steps.clock.take(), count, seconds / count))


def entry_us(steps: Steps) -> float:
    """CPU µs to enter a part within another and leave it, the `with` statement and the choice of the part included."""
    clock = steps.clock
    with clock.part("forward"):
        began = time.process_time()
        for _ in range(ENTRIES):
            with clock.part("lookup"):
                pass
        return 1e6 * (time.process_time() - began) / ENTRIES


def report(ranks: int, found: dict[str, Any]) -> float:
    """Prints the split of rank 0's step; returns what the clock costs of its CPU time."""
    wall, cpu = (median(found[kind][ON]) for kind in ("wall", "cpu"))
    means = {part: [1000 * each[part] for each in found["split"]] for part in (*PARTS, OTHER)}
    rows = [
        [part, f"{median(v):.2f}", f"{min(v):.2f}–{max(v):.2f}", f"{median(v) / wall:.1%}"] for part, v in means.items()
    ]
    harness.table([f"{ranks} rank{'s' if ranks > 1 else ''}, rank 0", "ms a step", "rounds", "of a step"], rows)
    for kind in ("wall", "cpu"):
        show = {name: f"{median(v):.1f} ({min(v):.1f}–{max(v):.1f})" for name, v in found[kind].items()}
        difference = harness.ratio(found[kind][ON], found[kind][OFF]) - 1
        harness.show(f"{kind} ms a step", show | {"on ÷ off - 1": f"{difference:+.2%}"})
    cost = found["entered"] * found["entry_us"] / 1000
    entries = {"parts entered": found["entered"], "µs each": f"{found['entry_us']:.2f}", "CPU ms": f"{cost:.3f}"}
    harness.show("the clock, a step", entries | {"share": f"{cost / cpu:.4%}"})
    print()
    return cost / cpu


@click.command()
@click.option("--quick", is_flag=True, help="Ends within a minute on 2 cores.")
@click.option("--tiny", is_flag=True, hidden=True, help="For the tests.")
def main(quick: bool, tiny: bool) -> None:
    """Where our step's time goes."""
    harness.prepare_process()
    plan = Plan(TINY, 1, 1) if tiny else QUICK if quick else FULL
    harness.show("shape", plan.shape.facts())
    harness.show("measured", {"rounds": plan.rounds, "steps a round": plan.steps})
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write_rows(plan.shape, path)
        shares = [report(ranks, run_ranks(measure, ranks, path, plan, timeout=900)[0]) for ranks in (1, 2)]
    harness.finish("step_split", {"split_cost_share": max(shares)}, machine.cores())


if __name__ == "__main__":
    main()
