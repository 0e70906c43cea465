"""One rank → two on this machine, against what two processes reach that do not talk to each other.

    python -m tests.benchmarks.scaling [--quick]

The machine sets a limit of its own: two busy cores share caches, memory and a clock. So beside one rank and two ranks
run two independent one-rank trainers, side by side, each on its half of the same rows: the limit. Strong: the global
batch stays, each of two ranks has half of it. Weak: each rank has as much as one had. Every process has one thread;
tables are sharded by the plan that the trainer makes; contestants take turns. Two ranks run once more with
`launch.pin_cores`, the limit never does.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import click
import torch.distributed as dist

from pipelines.batch import Batch
from pipelines.segments import find_segments
from pipelines.windows import Pass
from tests.benchmarks import harness
from tests.benchmarks.train_rows import Shape, run_config, write_rows
from tests.benchmarks.train_step import Ours, ready_batches
from tests.distributed.ranks import run_ranks
from trainer import machine
from trainer.feed import Feed
from trainer.runtime import Runtime, start

ONE, TWO, LIMIT = "1 rank", "2 ranks", "2 independent trainers"
WEAK = ", weak"
PINNED = ", pinned cores"
Figures = dict[
    str, list[tuple[float, float]]
]  # {contestant: (examples/s, CPU seconds a step) of this process, by round}
Result = tuple[Figures, str]  # and how the tables lie


@dataclass(frozen=True)
class Plan:
    """A round is `steps` steps of every contestant."""

    shapes: dict[str, Shape]
    rounds: int
    steps: int
    warm_steps: int = 3


SMALL = Shape(rows=8_192)
FULL = Plan({"": replace(SMALL, global_batch=256), "_small": SMALL}, rounds=7, steps=3)
QUICK = Plan({"": replace(SMALL, rows=2_048)}, rounds=5, steps=4, warm_steps=2)
TINY = Plan(
    {"": Shape(rows=256, row_group_rows=64, global_batch=8, mean_length=5, longest=8)}, rounds=1, steps=1, warm_steps=1
)


class Contestant:
    """A trainer and its feed, from memory. examples: of one global batch of this trainer's. idle: this process has no
    part in it."""

    def __init__(self, shape: Shape, path: Path, ready: list[Batch], runtime: Runtime, examples: int) -> None:
        config = run_config(shape, path)
        self._ours = Ours(config, runtime)
        self._feed: Feed = self._ours.feed(pass_of(shape, path), ready)
        self.examples = examples

    def steps(self, count: int) -> None:
        """So many."""
        for _ in range(count):
            self._ours.step(self._feed)

    def sharding(self) -> str:
        """How its tables lie, in words."""
        return self._ours.sharding()


def pass_of(shape: Shape, path: Path) -> Pass:
    """Over the whole file."""
    config = run_config(shape, path)
    return Pass(config.schema, config.data, find_segments(config.data).train, config.train.seed)


@dataclass(frozen=True)
class Meeting:
    """Where all processes of the benchmark meet before each turn, whatever groups they are in: a store of torch's."""

    port: int
    processes: int = 4

    def join(self) -> Callable[[], None]:
        """Call it in each process; what it returns is called at every turn, and returns when all have."""
        store = dist.TCPStore("127.0.0.1", self.port, is_master=False, wait_for_workers=False)
        turns = itertools.count()

        def meet() -> None:
            key = f"turn-{next(turns)}"
            if store.add(key, 1) == self.processes:
                store.set(f"{key}-all", "here")
            store.wait([f"{key}-all"])

        return meet


def measure(rank: int, world_size: int, path: Path, plan: Plan, shape: Shape, meeting: Meeting, half: int) -> Result:
    """In each of two ranks, and in each of two independent trainers (world_size 1, on half number `half`)."""
    both = replace(shape, global_batch=2 * shape.global_batch)  # weak: each rank has as much as one had
    meet = meeting.join()
    with start(300, 1) as runtime:
        contestants: dict[str, Contestant] = {}
        for name, of in (("", shape), (WEAK, both)):
            ready = ready_batches(pass_of(of, path), 2, rank if world_size == 2 else half)
            if world_size == 2:
                contestants[TWO + name] = Contestant(of, path, ready, runtime, of.examples)
            else:
                contestants[LIMIT + name] = Contestant(of, path, ready, runtime, of.examples // 2)
        if world_size == 1 and half == 0:
            whole = ready_batches(pass_of(shape, path), 1, 0)
            contestants[ONE] = Contestant(shape, path, whole, runtime, shape.examples)

        def timed(name: str, count: int) -> tuple[float, float]:
            meet()
            contestant = contestants.get(name)
            if contestant is None:
                return 0.0, 0.0
            with machine.pinned(rank, 2) if name.endswith(PINNED) else nullcontext():
                began, began_cpu = time.perf_counter(), time.process_time()
                contestant.steps(count)
                seconds = time.perf_counter() - began
            return count * contestant.examples / seconds, (time.process_time() - began_cpu) / count

        if world_size == 2:
            contestants[TWO + PINNED] = contestants[TWO]
        names = [TWO, LIMIT, TWO + PINNED, ONE, TWO + WEAK, LIMIT + WEAK]
        for name in names:
            timed(name, plan.warm_steps)
        turns: dict[str, Callable[[], tuple[float, float]]] = {name: partial(timed, name, plan.steps) for name in names}
        figures = harness.in_turn(turns, plan.rounds)
        meet()
        return figures, contestants[TWO].sharding() if TWO in contestants else ""


def run(path: Path, plan: Plan, shape: Shape) -> list[Result]:
    """Of four processes: two ranks of one run, and two runs of one."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = Meeting(server.port)

    def launch(ranks: int, half: int) -> list[Result]:
        return run_ranks(measure, ranks, path, plan, shape, meeting, half, timeout=1800)

    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(launch, 2, -1), pool.submit(launch, 1, 0), pool.submit(launch, 1, 1)]
        return [result for each in runs for result in each.result()]


def report(title: str, ranks: list[Figures]) -> dict[str, float]:
    """Prints a table; returns {key: ratio}. The limit is the sum of both processes' own speeds."""
    speed, cpu = {}, {}
    for name in ranks[0]:
        rounds = list(zip(*(figures[name] for figures in ranks), strict=True))
        together = [(sum if name.startswith(LIMIT) else max)(s for s, _ in each) for each in rounds]
        speed[name] = together
        cpu[name] = [1000 * sum(c for _, c in each) for each in rounds]
    rows = []
    for name, values in speed.items():
        limit = LIMIT + WEAK if name.endswith(WEAK) else LIMIT
        over = [f"{harness.ratio(values, speed[ONE]):.2f}", f"{harness.ratio(values, speed[limit]):.3f}"]
        rows.append([name, harness.spread(values), *over, f"{median(cpu[name]):,.1f}"])
    harness.table([title, "examples/s", "÷ 1 rank", "÷ limit", "CPU ms a step, all processes"], rows)
    return {
        "efficiency_of_limit": harness.ratio(speed[TWO], speed[LIMIT]),
        "efficiency_of_limit_pinned": harness.ratio(speed[TWO + PINNED], speed[LIMIT]),
        "efficiency_of_limit_weak": harness.ratio(speed[TWO + WEAK], speed[LIMIT + WEAK]),
        "speed_up_2_ranks": harness.ratio(speed[TWO], speed[ONE]),
        "speed_up_2_ranks_weak": harness.ratio(speed[TWO + WEAK], speed[ONE]),
    }


@click.command()
@click.option("--quick", is_flag=True, help="Ends within a minute on 2 cores.")
@click.option("--tiny", is_flag=True, hidden=True, help="For the tests.")
def main(quick: bool, tiny: bool) -> None:
    """One rank → two, against two trainers that do not talk."""
    harness.prepare_process()
    plan = TINY if tiny else QUICK if quick else FULL
    harness.show("measured", {"rounds": plan.rounds, "steps a round": plan.steps, "warm-up steps": plan.warm_steps})
    ratios = {}
    for suffix, shape in plan.shapes.items():
        harness.show("shape", shape.facts())
        with TemporaryDirectory() as folder:
            path = Path(folder) / "rows.parquet"
            write_rows(shape, path)
            results = run(path, plan, shape)
        print(f"tables on 2 ranks: {results[0][1]}", flush=True)
        found = report(f"global batch {shape.global_batch}", [figures for figures, _ in results])
        ratios |= {key + suffix: value for key, value in found.items()}
    harness.finish("scaling", ratios, 1)


if __name__ == "__main__":
    main()
