"""What the embedding part of a step costs when the same ids are spread over many fields.

    python -m tests.benchmarks.many_fields [--quick] [--batch-rows 8]

Production rankers have 500 to 2,000 fields. The same ids a row, rows of tables and widths, in 20 fields and in 1,000
and 2,000, each with a table of its own. Cost: from batch arrays ready in memory, over the mapping of ids to rows,
wrapping, the exchange of ids, lookup, fields rebuilt, to backward through all of it and the tables' update. The tower
is a stand-in that takes every field and gives each a gradient. TorchRec as it is runs beside it with the same plan.
Ratios are of CPU time over all threads and ranks, which other work on the machine changes least.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import click
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.types import ShardingEnv

from embeddings.idmap import IdMapper
from embeddings.optim import fuse_optimizer
from embeddings.plan import make_plan
from embeddings.sharders import sharders
from embeddings.specs import table_specs
from embeddings.tables import Tables, key_order
from model.inputs import RankerInput
from pipelines.batch import Batch
from tests.benchmarks import harness
from tests.benchmarks.field_batches import TASK, Shape, field_batches, field_embeddings, field_schema, step_info
from tests.benchmarks.stock_torchrec import StockModel, stock_batch
from tests.distributed.ranks import run_ranks
from trainer import machine
from trainer.device_batch import RequestBatch, wrap
from trainer.gate import GradientGate
from trainer.layout import make_layout
from trainer.recommender import Assemble, Recommender
from trainer.runtime import Runtime, start

FEW, MANY, MOST = 20, 1000, 2000
BATCHES_IN_MEMORY = 4


@dataclass(frozen=True)
class Plan:
    """How long to measure. A round is `steps` steps of every contestant."""

    shape: Shape
    fields: tuple[int, ...]
    rounds: int
    steps: int
    world_sizes: tuple[int, ...] = (1, 2)
    warm_steps: int = 2


FULL = Plan(Shape(), (FEW, MANY, MOST), rounds=7, steps=5)
QUICK = Plan(Shape(), (FEW, MANY), rounds=7, steps=3, world_sizes=(1,))
TINY = Plan(Shape(batch_rows=4, table_rows=20_000), (FEW, MANY), rounds=1, steps=1, world_sizes=(1,), warm_steps=1)


class _Given(torch.autograd.Function):
    """Takes all fields and gives each a gradient, at the price of neither's arithmetic."""

    @staticmethod
    def forward(ctx: Any, gradients: list[torch.Tensor], *fields: torch.Tensor) -> torch.Tensor:
        ctx.gradients = gradients
        return fields[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (None, *ctx.gradients)


class StandIn(nn.Module):
    """The tower's stand-in: {field: [R, W]} → a loss of zero with given gradients."""

    def __init__(self, shape: Shape, fields: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        gradients_FRW = torch.randn(fields, shape.batch_rows, shape.width, generator=generator)
        self._gradients = list(gradients_FRW.unbind())

    def forward(self, fields: dict[str, torch.Tensor]) -> torch.Tensor:
        loss: torch.Tensor = _Given.apply(self._gradients, *fields.values())  # type: ignore[no-untyped-call]
        return loss


class OurScorer(nn.Module):
    """In the scorer's place."""

    def __init__(self, tower: nn.Module, gate: GradientGate) -> None:
        super().__init__()
        self._tower, self._gate = tower, gate

    def forward(self, inputs: RankerInput, batch: RequestBatch) -> tuple[torch.Tensor, torch.Tensor]:
        loss: torch.Tensor = self._tower(inputs.static)
        self._gate.watch_loss(loss)
        return loss, loss.detach()


class NoDense:
    """An optimizer of nothing: only tables are trained."""

    def zero_grad(self) -> None:
        """Nothing."""

    def step(self) -> None:
        """Nothing."""


Contestant = Callable[[], object]  # one step


def ours(shape: Shape, fields: int, ready: list[Batch], runtime: Runtime) -> Contestant:
    """The trainer's own parts, as trainer.assembly and trainer.feed join them, with the stand-in for a tower."""
    schema, config = field_schema(fields), field_embeddings(shape, fields)
    specs = table_specs(schema, config)
    layout = make_layout(schema, specs)
    gate = GradientGate(runtime.gate)
    tables = Tables(specs)
    fuse_optimizer(tables, specs)
    model = Recommender(tables, Assemble(layout, gate), OurScorer(StandIn(shape, fields), gate))  # type: ignore[arg-type]
    plan = make_plan(model, specs, runtime.world_size, process_group=runtime.tables)
    env = ShardingEnv.from_process_group(runtime.tables)
    sharded = DistributedModelParallel(model, env, torch.device("cpu"), plan, sharders())
    mapper = IdMapper(specs, runtime.control, key_order(tables))

    def feed() -> Iterator[RequestBatch]:
        for step, batch in enumerate(itertools.cycle(ready), 1):
            rows = mapper.rows_of(batch.tables, train=True)
            yield wrap(batch, step_info(batch, step), rows, mapper.groups, (TASK,), runtime.world_size)

    return _steps(sharded, feed())


def stock(shape: Shape, fields: int, ready: list[Batch], runtime: Runtime) -> Contestant:
    """TorchRec as it is, by the same plan."""
    schema, config = field_schema(fields), field_embeddings(shape, fields)
    specs = table_specs(schema, config)
    model = StockModel(specs, make_layout(schema, specs).table_of, StandIn(shape, fields))
    fuse_optimizer(model.tables, specs)
    plan = make_plan(model, specs, runtime.world_size, process_group=runtime.tables)
    env = ShardingEnv.from_process_group(runtime.tables)
    sharder: Any = EmbeddingCollectionSharder()
    sharded = DistributedModelParallel(model, env, torch.device("cpu"), plan, [sharder])
    return _steps(sharded, (stock_batch(batch, specs) for batch in itertools.cycle(ready)))


def _steps(model: nn.Module, feed: Iterator[Any]) -> Contestant:
    no_dense: Any = NoDense()
    pipeline = TrainPipelineSparseDist(model, no_dense, torch.device("cpu"))
    return lambda: pipeline.progress(feed)


MAKERS = {"ours": ours, "TorchRec as it is": stock}


def measure(rank: int, world_size: int, plan: Plan) -> dict[str, dict[str, list[float]]]:
    """In each rank: {"wall" and "cpu": {"MAKER, FIELDS": milliseconds a step of each round}}; CPU is of all ranks."""
    with start(300, max(1, machine.cores() // world_size)) as runtime:
        contestants: dict[str, Contestant] = {}
        for fields in plan.fields:
            ready = field_batches(plan.shape, fields, BATCHES_IN_MEMORY)
            for name, make in MAKERS.items():
                contestants[f"{name}, {fields}"] = make(plan.shape, fields, ready, runtime)

        def timed(name: str, count: int) -> tuple[float, float]:
            dist.barrier(runtime.control)
            began, began_cpu = time.perf_counter(), time.process_time()
            for _ in range(count):
                contestants[name]()
            cpu = torch.tensor([time.process_time() - began_cpu], dtype=torch.float64)
            dist.all_reduce(cpu, group=runtime.control)
            return 1e3 * (time.perf_counter() - began) / count, 1e3 * float(cpu) / count

        for name in contestants:
            timed(name, plan.warm_steps)
        figures = harness.in_turn({name: partial(timed, name, plan.steps) for name in contestants}, plan.rounds)
    return {
        "wall": {name: [wall for wall, _ in rounds] for name, rounds in figures.items()},
        "cpu": {name: [cpu for _, cpu in rounds] for name, rounds in figures.items()},
    }


def report(found: dict[str, dict[str, list[float]]], plan: Plan, ranks: int) -> dict[str, float]:
    """Prints a table; returns {key without its prefix: share}."""
    shares = {}
    rows = []
    for maker in MAKERS:
        for fields in plan.fields:
            wall, cpu = (found[kind][f"{maker}, {fields}"] for kind in ("wall", "cpu"))
            share = harness.ratio(found["cpu"][f"{maker}, {plan.fields[0]}"], cpu)
            wall_share = harness.ratio(found["wall"][f"{maker}, {plan.fields[0]}"], wall)
            shares[f"{maker}, {fields}"] = share
            rows.append(
                [
                    maker,
                    f"{fields:,}",
                    f"{median(cpu):,.1f}",
                    f"{median(wall):,.1f}",
                    f"{share:.2f}",
                    f"{wall_share:.2f}",
                ]
            )
    named = f"{ranks} rank{'s' if ranks > 1 else ''}"
    harness.table([named, "fields", "CPU ms a step", "ms a step", "few ÷ this, CPU", "by the clock"], rows)
    return shares


def ratios(quick: bool, tiny: bool = False, batch_rows: int = 0) -> dict[str, float]:
    """{"per_field_share": cost in 20 fields ÷ cost in 1,000, "per_field_share_stock": the same of TorchRec as it is},
    and in the full run of 2,000 fields and of 2 ranks too; prints the tables they come from."""
    plan = TINY if tiny else QUICK if quick else FULL
    if batch_rows:
        plan = replace(plan, shape=replace(plan.shape, batch_rows=batch_rows))
    harness.show("shape", plan.shape.facts())
    harness.show("measured", {"rounds": plan.rounds, "steps a round": plan.steps, "warm-up steps": plan.warm_steps})
    result = {}
    for ranks in plan.world_sizes:
        shares = report(run_ranks(measure, ranks, plan, timeout=1800)[0], plan, ranks)
        suffix = "" if ranks == 1 else f"_{ranks}_ranks"
        for fields in plan.fields[1:]:
            most = "" if fields == MANY else f"_{fields}"
            result[f"per_field_share{most}{suffix}"] = shares[f"ours, {fields}"]
            result[f"per_field_share_stock{most}{suffix}"] = shares[f"TorchRec as it is, {fields}"]
    return result


@click.command()
@click.option("--quick", is_flag=True, help="Ends within a minute on 2 cores.")
@click.option("--batch-rows", default=0, help="Rows of a batch; the fewer, the more a field weighs.")
@click.option("--tiny", is_flag=True, hidden=True, help="For the tests.")
def main(quick: bool, batch_rows: int, tiny: bool) -> None:
    """The embedding part of a step in 20 fields and in 1,000, ours and TorchRec's."""
    harness.prepare_process()
    harness.finish("many_fields", ratios(quick, tiny, batch_rows), machine.cores())


if __name__ == "__main__":
    main()
