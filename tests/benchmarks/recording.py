"""What it costs to record what was trained: our step with the record that `audit` reads, and without it.

    python -m tests.benchmarks.recording [--quick]

Both contestants train the same batches, ready in memory. Also: the recorder alone, in CPU time, and how fast audit
reads and hashes the file.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch

from pipelines.segments import find_segments
from pipelines.windows import Pass
from tests.benchmarks import harness
from tests.benchmarks.train_rows import Shape, run_config, write_rows
from tests.benchmarks.train_step import Ours, ready_batches
from trainer import machine
from trainer.audit_files import hashes_of_file, read_file_footers
from trainer.consumed import Recorder
from trainer.consumed_format import hashed_columns
from trainer.runtime import start

RECORDED, UNRECORDED = "recorded", "not recorded"


@dataclass(frozen=True)
class Plan:
    """A round is `steps` steps of both."""

    shape: Shape
    rounds: int
    steps: int


FULL = Plan(Shape(rows=8_192, global_batch=256, mean_length=150.0, longest=400), rounds=7, steps=2)
QUICK = Plan(Shape(rows=2_048, global_batch=64), rounds=5, steps=4)
TINY = Plan(Shape(rows=256, row_group_rows=64, global_batch=16, mean_length=5, longest=8), rounds=1, steps=1)


def measure(path: Path, plan: Plan) -> dict[str, Any]:
    """{"steps": {contestant: steps a CPU second of each round}, "recorder": CPU ms a step, "bytes": of record a row,
    "audit": rows a CPU second}."""
    config = run_config(plan.shape, path)
    segments = find_segments(config.data).train
    with start(300, machine.cores()) as runtime:
        pass_ = Pass(config.schema, config.data, segments, config.train.seed)
        ready = ready_batches(pass_, 1, 0)
        ours = Ours(config, runtime)
        feed = ours.feed(pass_, ready)
        with path.with_name("record").open("wb") as file:
            recorder = Recorder(file, config.schema, config.data.window_batches, segments)
            numbers = itertools.count(1)

            def recorded() -> None:
                outputs = ours.pipeline.progress(feed)
                recorder.trained(next(numbers), outputs.host)

            contestants = {RECORDED: recorded, UNRECORDED: lambda: ours.step(feed)}
            for step in contestants.values():
                step()
            timed = {name: partial(steps_per_second, step, plan.steps) for name, step in contestants.items()}
            figures = harness.in_turn(timed, plan.rounds)
            feed.close()
            recorder.flush()
            began, before = time.process_time(), file.tell()
            for number, batch in enumerate(ready):
                recorder.trained(number, batch)
            recorder.flush()
            seconds = time.process_time() - began
            size = (file.tell() - before) / sum(batch.rows for batch in ready)
    [footer], _ = read_file_footers(segments[0])
    began = time.process_time()
    hashes_of_file(footer, config.schema, hashed_columns(config.schema))
    audited = footer.rows / (time.process_time() - began)
    return {"steps": figures, "recorder": 1000 * seconds / len(ready), "bytes": size, "audit": audited}


def steps_per_second(step: Callable[[], object], count: int) -> float:
    """Per CPU second of this process, all its threads: what a step costs is small against what neighbours disturb."""
    began = time.process_time()
    for _ in range(count):
        step()
    return count / (time.process_time() - began)


@click.command()
@click.option("--quick", is_flag=True, help="Ends within a minute on 2 cores.")
@click.option("--tiny", is_flag=True, hidden=True, help="For the tests.")
def main(quick: bool, tiny: bool) -> None:
    """Our step with the record that `audit` reads, and without it."""
    harness.prepare_process()
    plan = TINY if tiny else QUICK if quick else FULL
    harness.show("shape", plan.shape.facts())
    harness.show("measured", {"rounds": plan.rounds, "steps a round": plan.steps})
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write_rows(plan.shape, path)
        found = measure(path, plan)
    figures = {name: [1000 / speed for speed in speeds] for name, speeds in found["steps"].items()}
    harness.table(["step", "CPU ms"], [[name, harness.spread(values)] for name, values in figures.items()])
    step_ms = median(figures[UNRECORDED])
    harness.table(
        ["recording", ""],
        [
            ["recorder, CPU ms a step", f"{found['recorder']:.2f}"],
            ["share of a step", f"{found['recorder'] / step_ms:.3%}"],
            ["bytes of record a row", f"{found['bytes']:.2f}"],
            ["audit, rows a CPU second", f"{found['audit']:,.0f}"],
        ],
    )
    ratios = {"over_unrecorded": harness.ratio(found["steps"][RECORDED], found["steps"][UNRECORDED])}
    harness.finish("recording", ratios, torch.get_num_threads())


if __name__ == "__main__":
    main()
