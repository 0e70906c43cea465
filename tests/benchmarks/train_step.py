"""Examples per second of our training step against a plain PyTorch user's version of it, on the same rows.

    python -m tests.benchmarks.train_step [--quick]

`step`: from batch arrays ready in memory to updated weights. `Parquet`: from the file to updated weights, one batch or
window read ahead. An example is one labelled candidate. Both optimizers are the same (Adagrad on the tables, AdamW with
clipping on the rest), and so are the global batch, the threads and the allocator.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, cast

import click
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from embeddings.idmap import IdMapper
from pipelines.batch import Batch
from pipelines.segments import find_segments
from pipelines.stream import BatchStream, ThreadExecutor, batches
from pipelines.windows import Pass
from tests.benchmarks import harness
from tests.benchmarks.plain_pytorch import VARIANTS, PlainTrainer, pad_rows, read_batches
from tests.benchmarks.train_rows import Shape, run_config, write_rows
from tests.benchmarks.where_time_goes import split
from tests.distributed.ranks import run_ranks
from trainer import machine
from trainer.assembly import assemble
from trainer.config import Config
from trainer.feed import Feed, open_feed
from trainer.pipeline import SplitPipeline
from trainer.runtime import Runtime, start
from trainer.step_split import StepClock
from trainer.table_health import TableHealth

OURS = "ours, fp32"
QUICK_VARIANTS = ("fp32", "bf16 module, products")
BATCHES_IN_MEMORY = 8
Steps = dict[str, Callable[[], object]]  # {contestant: one step of it}


@dataclass(frozen=True)
class Plan:
    """How long to measure. A round is `steps` steps of every contestant."""

    shape: Shape
    variants: tuple[str, ...]
    rounds: int
    steps: int
    warm_steps: int


FULL = Plan(Shape(rows=16_384), tuple(VARIANTS), rounds=5, steps=5, warm_steps=3)
QUICK = Plan(Shape(rows=2_048, global_batch=32), QUICK_VARIANTS, rounds=3, steps=2, warm_steps=1)
TINY = Shape(rows=256, row_group_rows=64, global_batch=16, mean_length=5, longest=8)


class Cycle:
    """Batches ready in memory, over and over, where the feed expects a stream."""

    def __init__(self, ready: list[Batch]) -> None:
        self._ready = itertools.cycle(ready)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._ready)

    @property
    def waiting(self) -> tuple[int, int]:
        """As a stream that has read nothing ahead."""
        return 0, 0

    def close(self) -> None:
        """Nothing is open."""


class Ours:
    """The trainer's own assembly, feed and pipeline, as trainer.loop joins them; without its metrics and reports."""

    def __init__(self, config: Config, runtime: Runtime) -> None:
        self._assembly = assemble(config, runtime)
        self._config, self._runtime = config, runtime
        self._assembly.model.train()
        self.pipeline = SplitPipeline(self._assembly, runtime.device)

    def feed(self, pass_: Pass, ready: list[Batch]) -> Feed:
        """From memory, or from Parquet where nothing is ready."""
        mapper, clock = self._assembly.mapper, self._assembly.clock
        if not ready:
            executor = ThreadExecutor(self._config.data.windows_ahead)
            return open_feed(pass_, None, executor, mapper, self._runtime, clock=clock)
        return memory_feed(ready, mapper, self._config, self._runtime, clock=clock)

    def sharding(self) -> str:
        """How many tables the plan has put where, in words."""
        kinds = Counter(
            f"{placed.sharding_type} over {len(set(placed.ranks or ()))}"
            for module in self._assembly.plan.plan.values()
            for placed in cast("dict[str, Any]", module).values()
        )
        return " · ".join(f"{count} {kind}" for kind, count in kinds.items())

    def step(self, feed: Feed) -> None:
        """One step; the feed's next batch is fetched in it."""
        self.pipeline.progress(feed)


def memory_feed(
    ready: list[Batch],
    mapper: IdMapper,
    config: Config,
    runtime: Runtime,
    health: TableHealth | None = None,
    clock: StepClock | None = None,
) -> Feed:
    """The trainer's own feed, of batches ready in memory."""
    stream = cast(BatchStream, Cycle(ready))
    return Feed(stream, mapper, tuple(config.schema.tasks), runtime, health=health, clock=clock)


def measure(rank: int, world_size: int, path: Path, plan: Plan) -> dict[str, Any]:
    """In each rank: {"step": {contestant: examples/s of each round}, "parquet": …, "split": …, "threads": …}."""
    shape = plan.shape
    config = run_config(shape, path)
    with start(300, max(1, machine.cores() // world_size)) as runtime:
        pass_ = Pass(config.schema, config.data, find_segments(config.data).train, config.train.seed)
        ready = ready_batches(pass_, world_size, rank)
        padded = [pad_rows(rows) for rows in same_rows(path, ready)]
        plain = {
            f"plain, {name}": PlainTrainer(shape, VARIANTS[name], config.optim, config.embeddings.lr, world_size)
            for name in plan.variants
        }
        in_memory, reading = Ours(config, runtime), Ours(config, runtime)
        feed, parquet_feed = in_memory.feed(pass_, ready), reading.feed(pass_, [])
        step: Steps = {OURS: lambda: in_memory.step(feed)}
        step |= {name: stepper(trainer.step, padded) for name, trainer in plain.items()}
        result: dict[str, Any] = {"threads": runtime.threads}
        result["step"] = compete(step, plan, runtime)
        result["split"] = split(step[OURS], plan.steps)
        best = fastest(list(plain), result["step"], runtime)
        rows = read_batches(path, shape.global_batch // world_size, rank, world_size)
        parquet: Steps = {OURS: lambda: reading.step(parquet_feed), best: lambda: plain[best].step(next(rows))}
        result["parquet"] = compete(parquet, plan, runtime)
        for each in (feed, parquet_feed):
            each.close()
        return result


def fastest(names: list[str], figures: dict[str, list[float]], runtime: Runtime) -> str:
    """By rank 0's clock, so that all ranks go on with the same one."""
    index = torch.tensor([max(range(len(names)), key=lambda i: median(figures[names[i]]))])
    dist.broadcast(index, src=0, group=runtime.control)
    return names[int(index)]


def ready_batches(pass_: Pass, world_size: int, rank: int) -> list[Batch]:
    """This rank's part of the first global batches."""
    with batches(pass_, world_size, rank, None, ThreadExecutor(1)) as stream:
        return list(itertools.islice(stream, BATCHES_IN_MEMORY))


def same_rows(path: Path, ready: list[Batch]) -> Iterator[Any]:
    """The Arrow rows that our batches hold."""
    everything = pq.read_table(path).combine_chunks()
    for batch in ready:
        yield everything.take(batch.row)


def stepper(step: Callable[[Any], object], ready: list[Any]) -> Callable[[], object]:
    """One step over each batch in turn."""
    turn = itertools.cycle(ready)
    return lambda: step(next(turn))


def compete(steps: Steps, plan: Plan, runtime: Runtime) -> dict[str, list[float]]:
    """Examples per second of each contestant, round by round."""

    def timed(name: str, count: int) -> float:
        # The trainer's own promise; a plain user would not pay for it.
        torch.use_deterministic_algorithms(name == OURS)
        dist.barrier(runtime.control)
        began = time.perf_counter()
        for _ in range(count):
            steps[name]()
        dist.barrier(runtime.control)
        return count * plan.shape.examples / (time.perf_counter() - began)

    for name in steps:
        timed(name, plan.warm_steps)
    return harness.in_turn({name: partial(timed, name, plan.steps) for name in steps}, plan.rounds)


def report(title: str, figures: dict[str, list[float]]) -> float:
    """Prints a table; returns ours ÷ the fastest plain, which is the one that this ratio is smallest for."""
    ratios = {name: harness.ratio(figures[OURS], values) for name, values in figures.items() if name != OURS}
    rows = [
        [name, harness.spread(values), f"{ratios[name]:.2f}" if name in ratios else ""]
        for name, values in figures.items()
    ]
    harness.table([title, "examples/s", "ours ÷ this"], rows)
    return min(ratios.values())


@click.command()
@click.option("--quick", is_flag=True, help="Ends within a minute on 2 cores.")
@click.option("--tiny", is_flag=True, hidden=True, help="For the tests.")
def main(quick: bool, tiny: bool) -> None:
    """Our training step against a plain PyTorch user's."""
    harness.prepare_process()
    plan = QUICK if quick or tiny else FULL
    if tiny:
        plan = replace(
            plan, shape=Shape(rows=256, row_group_rows=64, global_batch=16, mean_length=5, longest=8), rounds=1
        )
    harness.show("shape", plan.shape.facts())
    harness.show("measured", {"rounds": plan.rounds, "steps a round": plan.steps, "warm-up steps": plan.warm_steps})
    ratios = {}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write_rows(plan.shape, path)
        for ranks in (1, 2):
            result = run_ranks(measure, ranks, path, plan, timeout=1800)[0]
            named = f"{ranks} rank{'s' if ranks > 1 else ''}, {result['threads']} threads each"
            key = "over_plain_pytorch" if ranks == 1 else "over_plain_pytorch_2_ranks"
            ratios[key] = report(f"step, {named}", result["step"])
            ratios[f"{key}_from_parquet"] = report(f"Parquet, {named}", result["parquet"])
            harness.table([f"where our step goes, {named}", "ms", "share"], result["split"])
        from tests.benchmarks import over_handwritten

        named_plan = over_handwritten.TINY if tiny else over_handwritten.QUICK if quick else over_handwritten.FULL
        ratios |= over_handwritten.run(Path(folder), named_plan)
    harness.finish("train_step", ratios, machine.cores())


if __name__ == "__main__":
    main()
