"""`over_handwritten_torchrec` of train_step.py: the whole trainer, with all that `train` does in a step, against the
loop that a good user of TorchRec writes, with none of it, on the same rows at several settings. Both begin with batches
ready in memory: ours with the readers' arrays, theirs with the tensors that it trains on."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch.distributed as dist

from pipelines.segments import find_segments
from pipelines.windows import Pass
from tests.benchmarks import harness
from tests.benchmarks.handwritten_torchrec import VARIANTS, HandLoop, hand_batch
from tests.benchmarks.train_rows import Shape, run_config, write_rows
from tests.benchmarks.train_step import ready_batches, same_rows
from tests.benchmarks.whole_trainer import train_in_turns
from tests.distributed.ranks import run_ranks
from trainer import machine
from trainer.runtime import Runtime, start

WHOLE = "whole trainer, fp32"
BY_HAND = "TorchRec by hand, "
Figures = dict[str, list[float]]  # {contestant: examples/s of each round}


@dataclass(frozen=True)
class Plan:
    """A round is `steps` steps of every contestant, at every setting."""

    settings: dict[str, Shape]
    rounds: int
    steps: int
    warm_steps: int


LONG = Shape(rows=2_048)
SHORT = replace(LONG, mean_length=8.0, longest=16)
SETTINGS = {
    "K = 4, long histories": LONG,
    "K = 1, long histories": replace(LONG, candidates=1),
    "K = 4, short histories": replace(SHORT, global_batch=256, rows=4_096),
    "K = 1, short histories": replace(SHORT, global_batch=256, rows=4_096, candidates=1),
}
FULL = Plan(SETTINGS, rounds=5, steps=3, warm_steps=2)
QUICK = Plan({name: SETTINGS[name] for name in list(SETTINGS)[1:2]}, rounds=2, steps=1, warm_steps=1)
TINY = Plan({"tiny": Shape(rows=256, row_group_rows=64, global_batch=16, mean_length=5, longest=8)}, 1, 1, 1)


def measure(rank: int, world_size: int, folder: Path, plan: Plan) -> dict[str, Figures]:
    """In each rank: {setting: figures}."""
    with start(300, max(1, machine.cores() // world_size)) as runtime:
        return {
            name: compete(shape, folder / f"{number}.parquet", plan, runtime, folder / f"run-{number}-{world_size}")
            for number, (name, shape) in enumerate(plan.settings.items())
        }


def compete(shape: Shape, path: Path, plan: Plan, runtime: Runtime, run_path: Path) -> Figures:
    """One setting."""
    config = run_config(shape, path)
    pass_ = Pass(config.schema, config.data, find_segments(config.data).train, config.train.seed)
    ready = ready_batches(pass_, runtime.world_size, runtime.rank)
    theirs = [hand_batch(rows) for rows in same_rows(path, ready)]
    loops = {
        BY_HAND + name: HandLoop(shape, variant, config.optim, config.embeddings.lr, itertools.cycle(theirs))
        for name, variant in VARIANTS.items()
    }
    figures: dict[str, list[float]] = defaultdict(list)

    def steps(name: str, count: int) -> float:
        dist.barrier(runtime.control)
        began = time.perf_counter()
        for _ in range(count):
            loops[name].step()
        dist.barrier(runtime.control)
        return count * shape.examples / (time.perf_counter() - began)

    def others() -> None:
        for name, speeds in harness.in_turn({name: partial(steps, name, plan.steps) for name in loops}, 1).items():
            figures[name] += speeds

    for name in loops:
        steps(name, plan.warm_steps)
    turns = (plan.warm_steps, plan.steps, plan.rounds)
    ours = train_in_turns(shape, path, ready, runtime, turns, others, run_path)
    return {WHOLE: ours, **figures}


def run(folder: Path, plan: Plan) -> dict[str, float]:
    """{"over_handwritten_torchrec": the smallest ratio of all settings, variants and rank counts, …_long: of long
    histories, …_fp32: of all settings where both compute in fp32}; prints them all."""
    harness.show("whole trainer", {"rounds": plan.rounds, "steps a round": plan.steps, "warm-up": plan.warm_steps})
    for number, (name, shape) in enumerate(plan.settings.items()):
        harness.show(name, shape.facts())
        write_rows(shape, folder / f"{number}.parquet")
    ratios: dict[tuple[str, str, int], float] = {}
    rows = []
    for ranks in (1, 2):
        for setting, figures in run_ranks(measure, ranks, folder, plan, timeout=1800)[0].items():
            ours = figures[WHOLE]
            rows.append([setting, str(ranks), WHOLE, harness.spread(ours), ""])
            for name in VARIANTS:
                speeds = figures[BY_HAND + name]
                ratios[setting, name, ranks] = harness.ratio(ours, speeds)
                found = f"{ratios[setting, name, ranks]:.2f}"
                rows.append([setting, str(ranks), BY_HAND + name, harness.spread(speeds), found])
    harness.table(["setting", "ranks", "", "examples/s", "ours ÷ this"], rows)
    return {
        "over_handwritten_torchrec": min(ratios.values()),
        "over_handwritten_torchrec_long": min(
            ratio for (setting, _, _), ratio in ratios.items() if not setting.endswith("short histories")
        ),
        "over_handwritten_torchrec_fp32": min(ratio for (_, name, _), ratio in ratios.items() if name == "fp32"),
    }
