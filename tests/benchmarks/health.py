"""What the health of tables costs: our step with a sample in every step, and without any.

    python -m tests.benchmarks.health [--quick]

Both contestants train the same batches, ready in memory, and report every step, to every place that telemetry has. The
cost of a sample is the CPU time of all calls that it is made of; the contestants' difference stands beside it. A step
at the default interval pays a sample's cost divided by it. Two shapes: the one of train_step.py, and 500 tables.
Two ranks each, so that the exchange between ranks is in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, cast

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from embeddings.config import Embeddings
from model.config import Model
from pipelines.config import Data
from pipelines.schema import Column, Schema, Task
from pipelines.segments import find_segments
from pipelines.stream import BatchStream
from pipelines.windows import Pass
from tests.benchmarks import harness
from tests.benchmarks.train_rows import Shape, lists, run_config, write_rows, zipf
from tests.benchmarks.train_step import Cycle, ready_batches
from tests.distributed.ranks import run_ranks
from trainer.assembly import assemble
from trainer.config import Config
from trainer.config_sections import Telemetry as TelemetryConfig
from trainer.feed import Feed
from trainer.run_dir import RunDir
from trainer.runtime import Runtime, start
from trainer.table_health import TableHealth
from trainer.telemetry.records import TrainRecord
from trainer.telemetry.telemetry import Telemetry

OFF, SAMPLED = "no samples", "a sample a step"
MANY = 500
SCHEMA_OF_MANY = {"ids of a table": 20_000, "rows of a table": 50_000}


@dataclass(frozen=True)
class Plan:
    """A round is `steps` steps of each contestant."""

    rounds: int
    steps: int
    shape: Shape
    many_tables: int = MANY
    many_batch: int = 512


FULL = Plan(rounds=7, steps=10, shape=Shape(rows=4_096, global_batch=128))
QUICK = Plan(rounds=3, steps=4, shape=Shape(rows=2_048))
TINY = Plan(1, 1, Shape(rows=256, row_group_rows=64, global_batch=16, mean_length=5, longest=8), 20, 32)


class Contestant:
    """The trainer's own assembly, feed, pipeline and telemetry, as trainer.loop and reporter join them."""

    def __init__(self, config: Config, runtime: Runtime, pass_: Pass, folder: Path, sampled: bool) -> None:
        assembly = assemble(config, runtime)
        assembly.model.train()
        self._health = TableHealth(1, assembly, runtime) if sampled else None
        ready = cast(BatchStream, Cycle(ready_batches(pass_, runtime.world_size, runtime.rank)))
        tasks = tuple(config.schema.tasks)
        self.feed = Feed(ready, assembly.mapper, tasks, runtime, health=self._health)
        self._pipeline = TrainPipelineSparseDist(assembly.model, assembly.optimizer, runtime.device)
        self.telemetry = Telemetry(RunDir(folder), TelemetryConfig(), runtime.rank, tasks)
        self.calls: dict[str, float] = {}  # CPU seconds
        self._step = 0
        if self._health is not None:
            for name in ("mapped", "trained", "take"):
                setattr(self._health, name, self._timed(name, getattr(self._health, name)))
            hooks = assembly.module.assemble._forward_pre_hooks
            hooks |= {key: self._timed("norms", hook) for key, hook in hooks.items()}

    def step(self) -> None:
        """One step, reported."""
        self._pipeline.progress(self.feed)
        self._step += 1
        tables = {}
        if self._health is not None:
            self._health.trained(self._step)
            tables = self._health.take()
        record = TrainRecord(self._step, 0, 0.5, 1.0, 1.0, 1.0, 0.0, tables=tables)
        self._timed("told", self.telemetry.train)(record)

    def close(self) -> None:
        """The endpoint's port is free."""
        self.feed.close()
        self.telemetry.close()

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began = time.process_time()
            result = call(*arguments)
            self.calls[name] = self.calls.get(name, 0.0) + time.process_time() - began
            return result

        return timed


def measure(rank: int, world_size: int, configs: dict[str, Config], folder: Path, plan: Plan) -> dict[str, Any]:
    """{shape: {"steps": {contestant: CPU ms a step, of each round}, "calls": {call: CPU ms a sample}}}."""
    found = {}
    for shape, config in configs.items():
        with start(300, 1) as runtime:
            pass_ = Pass(config.schema, config.data, find_segments(config.data).train, config.train.seed)
            contestants = {
                name: Contestant(config, runtime, pass_, folder / f"{shape} {name}", name == SAMPLED)
                for name in (OFF, SAMPLED)
            }
            for contestant in contestants.values():
                contestant.step()
                contestant.calls.clear()
            timed = {name: partial(cpu_ms, each, plan.steps) for name, each in contestants.items()}
            steps = harness.in_turn(timed, plan.rounds)
            samples = plan.rounds * plan.steps
            calls = {name: 1000 * seconds / samples for name, seconds in contestants[SAMPLED].calls.items()}
            calls["told"] -= 1000 * contestants[OFF].calls["told"] / samples
            found[shape] = {"steps": steps, "calls": calls}
            for contestant in contestants.values():
                contestant.close()
            dist.barrier(runtime.control)
    return found


def cpu_ms(contestant: Contestant, count: int) -> float:
    """A step's, of this process."""
    began = time.process_time()
    for _ in range(count):
        contestant.step()
    return 1000 * (time.process_time() - began) / count


def many_tables(folder: Path, tables: int, batch: int) -> Config:
    """One id a row and table, by hash; the candidates' item beside them."""
    rng = np.random.default_rng(5)
    rows = 4 * batch
    names = [f"field_{number:03}" for number in range(tables - 2)]
    columns: dict[str, Any] = {name: zipf(rng, SCHEMA_OF_MANY["ids of a table"], rows) for name in names}
    columns |= {"user": np.arange(rows), "time": 1_700_000_000 + np.arange(rows)}
    offsets = np.arange(rows + 1) * 2
    columns["item"] = lists(offsets, zipf(rng, 5_000, 2 * rows))
    columns["click"] = lists(offsets, (rng.random(2 * rows) < 0.2).astype(np.int8))
    path = folder / "many.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=batch)
    described = {"user": Column(role="user", kind="id"), "time": Column(role="time", kind="time")}
    described |= {name: Column(role="context", kind="id") for name in names}
    described["item"] = Column(role="item", kind="id", group="candidates")
    described["click"] = Column(role="label", kind="dense", group="candidates")
    return Config(
        schema=Schema(user="user", columns=described, tasks={"click": Task(label="click")}),
        data=Data(rows=str(path), global_batch=batch, epochs=1000, executor="threads"),
        embeddings=Embeddings(width=16, default_rows=SCHEMA_OF_MANY["rows of a table"]),
        model=Model(dim=64, num_layers=2, num_heads=4, ffn_dim=256),
    )


@click.command()
@click.option("--quick", is_flag=True, help="Ends within a minute on 2 cores.")
@click.option("--tiny", is_flag=True, hidden=True, help="For the tests.")
def main(quick: bool, tiny: bool) -> None:
    """What the health of tables costs."""
    harness.prepare_process()
    plan = TINY if tiny else QUICK if quick else FULL
    every = TelemetryConfig().tables_every
    many = f"{plan.many_tables} tables"
    harness.show("shape of train_step", plan.shape.facts())
    harness.show(many, {"global batch": plan.many_batch, "width": 16, **SCHEMA_OF_MANY})
    harness.show(
        "measured", {"rounds": plan.rounds, "steps a round": plan.steps, "ranks": 2, "default interval": every}
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write_rows(plan.shape, path)
        configs = {
            "train_step": run_config(plan.shape, path),
            many: many_tables(Path(folder), plan.many_tables, plan.many_batch),
        }
        found = run_ranks(measure, 2, configs, Path(folder), plan, timeout=1800)[0]
    shares = {}
    for shape, figures in found.items():
        step, sampled = (median(figures["steps"][name]) for name in (OFF, SAMPLED))
        cost = sum(figures["calls"].values())
        shares[shape] = cost / every / step
        harness.table(
            [f"{shape}, rank 0", "CPU ms"],
            [
                *([name, harness.spread(values)] for name, values in figures["steps"].items()),
                ["difference", f"{sampled - step:.1f}"],
                *([f"of a sample: {name}", f"{value:.2f}"] for name, value in figures["calls"].items()),
                ["a sampled step, all of it", f"{cost:.2f} ({cost / step:.1%} of a step)"],
                ["a step at the default interval", f"{cost / every:.3f} ({shares[shape]:.3%} of a step)"],
            ],
        )
    harness.finish("health", {"health_cost_share": max(shares.values())}, 1)


if __name__ == "__main__":
    main()
