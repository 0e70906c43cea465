"""What guards cost a healthy step: CPU time of each of their calls, over that of the step.

    python -m tests.benchmarks.guards [--quick]

One rank trains the shape of train_step.py from batches ready in memory. After every step the guards look at it, as the
loop has them do; beside them the figures per slice of a field, which are off by default, and the agreement about a bad
step, with the loss that travels along and in its plain form (one flag).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, cast

import click
import torch

from pipelines.segments import find_segments
from pipelines.stream import BatchStream
from pipelines.windows import Pass
from tests.benchmarks import harness
from tests.benchmarks.train_rows import Shape, run_config, write_rows
from tests.benchmarks.train_step import Cycle, ready_batches
from trainer.assembly import assemble
from trainer.config import Config
from trainer.feed import Feed
from trainer.guards import Guards
from trainer.metrics.streaming import addends
from trainer.pipeline import SplitPipeline
from trainer.run_dir import RunDir
from trainer.runtime import start
from trainer.telemetry.telemetry import Telemetry
from trainer.train_slices import SliceReport
from trainer.train_state import TrainState

WARM = 3
PLAIN, GATE, GUARDS, SLICES, STEP = "one flag", "flag and loss", "guards", "slices of a field", "step"


@dataclass(frozen=True)
class Plan:
    """Steps that are measured."""

    steps: int
    shape: Shape


FULL = Plan(60, Shape(rows=4_096, global_batch=128))
QUICK = Plan(15, Shape(rows=2_048))
TINY = Plan(3, Shape(rows=256, row_group_rows=64, global_batch=16, mean_length=5, longest=8))


def measure(config: Config, folder: Path, steps: int) -> dict[str, list[float]]:
    """{call: CPU ms of each step}."""
    found: dict[str, list[float]] = {name: [] for name in (STEP, PLAIN, GATE, GUARDS, SLICES)}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = call()
        found[name].append(1000 * (time.process_time() - began))
        return result

    with start(300, 1) as runtime:
        pass_ = Pass(config.schema, config.data, find_segments(config.data).train, config.train.seed)
        assembly = assemble(config, runtime)
        assembly.model.train()
        gate, agree = assembly.gate, assembly.gate.agree
        ready = cast(BatchStream, Cycle(ready_batches(pass_, 1, 0)))
        feed = Feed(ready, assembly.mapper, tuple(config.schema.tasks), runtime)
        pipeline = SplitPipeline(assembly, runtime.device)
        telemetry = Telemetry(RunDir(folder), config.telemetry, 0, tuple(config.schema.tasks), quiet=True)
        guards = Guards(config, runtime, gate, telemetry, RunDir(folder), pass_)
        slices = SliceReport(config.schema, config.telemetry, runtime)
        slices.start(pass_.segments)

        def both(gradients: list[torch.Tensor]) -> bool:
            timed(PLAIN, lambda: one_flag(gradients + gate.dense_gradients(), gate._loss))
            ok: bool = timed(GATE, lambda: agree(gradients))
            return ok

        gate.agree = both  # type: ignore[method-assign]
        state = TrainState()
        for _ in range(WARM + steps):
            outputs = timed(STEP, lambda: pipeline.progress(feed))
            state = state.after(outputs)
            timed(GUARDS, lambda: guards.after_step(outputs, state))  # noqa: B023
            added = addends(outputs.probabilities_SK, outputs.labels_SK, outputs.weights_SK)  # the metrics' own
            timed(SLICES, lambda: slices.after_step(outputs, added))  # noqa: B023
        feed.close()
        telemetry.close()
    return {name: values[WARM:] for name, values in found.items()}


def one_flag(gradients: list[torch.Tensor], loss: torch.Tensor | None) -> bool:
    """The plain form: whether all is finite, and nothing else."""
    seen = [extreme for gradient in gradients if gradient.numel() for extreme in torch.aminmax(gradient)]
    if loss is not None:
        seen.append(loss)
    return bool(torch.isfinite(torch.stack(seen)).all().to(torch.int32).item())


def _config(plan: Plan, rows: Path) -> Config:
    write_rows(plan.shape, rows)
    config = run_config(plan.shape, rows)
    field = next(n for n, c in config.schema.columns.items() if c.role == "context" and c.kind == "id")
    telemetry = config.telemetry.model_copy(update={"slice_by": field, "prometheus": False, "tensorboard": False})
    return replace(config, telemetry=telemetry)


@click.command()
@click.option("--quick", is_flag=True, help="Ends within a minute on 2 cores.")
@click.option("--tiny", is_flag=True, hidden=True, help="For the tests.")
def main(quick: bool, tiny: bool) -> None:
    """What guards cost a healthy step."""
    harness.prepare_process()
    plan = TINY if tiny else QUICK if quick else FULL
    with TemporaryDirectory() as folder:
        config = _config(plan, Path(folder) / "rows.parquet")
        harness.show("shape of train_step", plan.shape.facts())
        harness.show("measured", {"steps": plan.steps, "ranks": 1, "slices by": config.telemetry.slice_by})
        found = measure(config, Path(folder) / "run", plan.steps)
    own = {name: median(values) for name, values in found.items()}
    own[STEP] -= own[PLAIN]  # which only this benchmark takes
    harness.table(
        ["call", "CPU ms a step", "of the step"],
        [[name, f"{ms:.3f}", f"{100 * ms / own[STEP]:.2f} %"] for name, ms in own.items()],
    )
    loss = max(0.0, own[GATE] - own[PLAIN])
    ratios = {"guards_share": (own[GUARDS] + loss) / own[STEP], "slices_share": own[SLICES] / own[STEP]}
    harness.finish("guards", ratios, threads=1)


if __name__ == "__main__":
    main()
