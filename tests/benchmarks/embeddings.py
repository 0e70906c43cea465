"""Our sharded tables against nn.Embedding, the machine's own gather and scatter, and what travels between ranks.

    python -m tests.benchmarks.embeddings [--quick] [--huge]

A step is forward, backward and update of tables alone: rows are looked up for Zipf ids, a given gradient comes back.
`over_nn_embedding_sparse`, `…_dense`: nn.Embedding with torch's Adagrad, fed with what it is fastest with; ours with
Adagrad. `bandwidth_share`: bytes a step must move for its unique rows, per second, over what index_select and
index_add_ or index_copy_ of the same rows reach; the lower of Adagrad's and row-wise Adagrad's. `unique_saves`: step
time on two ranks of ids as they occur over that of unique ids; `…_bytes`: of bytes of rows and gradients sent.
`per_field_share`: see many_fields.py. --huge: 10⁸ rows of 16 in float16.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import click
import torch
import torch.distributed as dist

from tests.benchmarks import harness, many_fields
from tests.benchmarks.embedding_steps import Fed, OurTables, Plain, feed, move_bytes, spec_of, zipf_ids
from tests.distributed.ranks import run_ranks
from tests.distributed.wire import counted_bytes
from trainer import machine

OURS = "ours"
OURS_UNIQUE = "ours, unique ids made in the step"
BATCHES = 8
Steps = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Shape:
    """ids: of a step, Zipf over `rows`. small_tables, small_rows: of the section on small tables. cpu_seconds: count
    what one thread computes instead of how long it takes."""

    rows: int = 2_000_000
    width: int = 16
    ids: int = 200_000
    small_tables: int = 20
    small_rows: int = 1000
    small_ids: int = 1000
    rounds: int = 9
    steps: int = 5
    cpu_seconds: bool = False


FULL = Shape()
QUICK = Shape(rows=1_000_000, ids=100_000, rounds=5, steps=3)
TINY = Shape(rows=5_000, ids=2_000, small_tables=3, small_rows=100, small_ids=100, rounds=1, steps=1)
WIRE = {  # dtype, forward codec, backward codec
    "fp32": ("fp32", "fp32", "fp32"),
    "fp16 on the wire": ("fp32", "fp16", "fp16"),
    "int8 on the wire": ("fp32", "int8", "int8"),
    "fp16 tables, fp16 on the wire": ("fp16", "fp16", "fp16"),
}


def timed(steps: Steps, shape: Shape) -> dict[str, list[float]]:
    """Seconds a step of each contestant, round by round."""

    def seconds(name: str) -> float:
        # The trainer's own promise; a plain user would not pay for it.
        torch.use_deterministic_algorithms(name.startswith(OURS))
        clock = time.process_time if shape.cpu_seconds else time.perf_counter
        began = clock()
        for _ in range(shape.steps):
            steps[name]()
        return (clock() - began) / shape.steps

    for name in steps:
        seconds(name)
    return harness.in_turn({name: partial(seconds, name) for name in steps}, shape.rounds)


def show_times(title: str, figures: dict[str, list[float]]) -> None:
    """Milliseconds of each, and how many times ours' time it takes."""
    rows = [
        [name, f"{1e3 * median(values):.2f} ({1e3 * min(values):.2f}–{1e3 * max(values):.2f})",
         f"{harness.ratio(values, figures[OURS]):.2f}"]
        for name, values in figures.items()
    ]  # fmt: skip
    harness.table([title, "ms a step", "of ours"], rows)


def alone(rank: int, world_size: int, shape: Shape) -> dict[str, Any]:
    """Everything that one process measures."""
    torch.set_num_threads(1 if shape.cpu_seconds else machine.cores())
    return {"plain": against_plain(shape), "small": small_tables(shape), "bandwidth": bandwidth(shape)}


class Batches:
    """Some batches over and over: rows of one step are not in the cache from the last."""

    def __init__(self, shape: Shape, unique_only: bool = False) -> None:
        fed = [feed(zipf_ids(1, shape.ids, shape.rows, draw)) for draw in range(BATCHES)]
        if unique_only:
            fed = [Fed(each.unique, each.unique, None) for each in fed]
        self._ready = [(each, torch.randn(len(each.ids), shape.width)) for each in fed]
        self.rows = sum(len(each.unique) for each in fed) / BATCHES

    def each(self, step: Callable[[Fed, torch.Tensor], object]) -> Callable[[], object]:
        """step(ids, gradient) of the next batch."""
        turn = itertools.cycle(self._ready)
        return lambda: step(*next(turn))


def against_plain(shape: Shape) -> dict[str, list[float]]:
    """Large table: the same ids through ours and through nn.Embedding."""
    batches = Batches(shape)
    ours = OurTables({"t": spec_of("t", shape.rows, shape.width, "adagrad")})
    sparse, sparse_unique = (Plain(shape.rows, shape.width, sparse=True) for _ in range(2))
    dense = Plain(shape.rows, shape.width, sparse=False)
    return timed(
        {
            OURS: batches.each(lambda fed, g: ours.step({"t": fed}, {"t": g})),
            OURS_UNIQUE: batches.each(lambda fed, g: ours.step({"t": feed(fed.ids)}, {"t": g})),
            "nn.Embedding, sparse gradients": batches.each(lambda fed, g: sparse.step(fed.ids, None, g)),
            "nn.Embedding, sparse, unique ids given": batches.each(
                lambda fed, g: sparse_unique.step(fed.unique, fed.inverse, g)
            ),
            "nn.Embedding, dense gradients": batches.each(lambda fed, g: dense.step(fed.ids, None, g)),
        },
        shape,
    )


def small_tables(shape: Shape) -> dict[str, list[float]]:
    """Many small tables: what a step costs beside moving rows."""
    names = [f"t{k}" for k in range(shape.small_tables)]
    fed = {name: feed(zipf_ids(k, shape.small_ids, shape.small_rows)) for k, name in enumerate(names)}
    gradients = {name: torch.randn(shape.small_ids, shape.width) for name in names}
    ours = OurTables({name: spec_of(name, shape.small_rows, shape.width, "adagrad") for name in names})
    plain = {name: Plain(shape.small_rows, shape.width, sparse=False) for name in names}
    return timed(
        {
            OURS: lambda: ours.step(fed, gradients),
            "nn.Embedding, dense gradients": lambda: [
                plain[name].step(fed[name].ids, None, gradients[name]) for name in names
            ],
        },
        shape,
    )


def bandwidth(shape: Shape) -> dict[str, dict[str, Any]]:
    """{optimizer: figures of ours and of the bare machine, bytes a step of each} for the same unique rows."""
    batches = Batches(shape, unique_only=True)
    weights = torch.randn(shape.rows, shape.width)

    def add(fed: Fed, gradient: torch.Tensor) -> None:
        weights.index_select(0, fed.unique)
        weights.index_add_(0, fed.unique, gradient)

    def copy(fed: Fed, gradient: torch.Tensor) -> None:
        weights.index_select(0, fed.unique)
        weights.index_copy_(0, fed.unique, gradient)

    bare = {"index_select, index_add_": batches.each(add), "index_select, index_copy_": batches.each(copy)}
    found = {}
    for optimizer in ("adagrad", "rowwise_adagrad"):
        ours = OurTables({"t": spec_of("t", shape.rows, shape.width, optimizer)})
        step = partial(lambda tables, fed, g: tables.step({"t": fed}, {"t": g}), ours)
        figures = timed({OURS: batches.each(step)} | bare, shape)
        found[optimizer] = {"figures": figures, "bytes": move_bytes(batches.rows, shape.width, optimizer)}
    return found


def wire(rank: int, world_size: int, shape: Shape) -> dict[str, tuple[list[float], int]]:
    """{how: (seconds a step of each round, bytes of rows and gradients that all ranks send in a step)}."""
    ids = zipf_ids(1, shape.ids // world_size, shape.rows, draw=rank)
    fed = feed(ids)
    repeated = Fed(ids, ids, None)
    gradient = torch.randn(len(ids), shape.width)
    steps: Steps = {}
    for name, (dtype, forward, backward) in WIRE.items():
        spec = spec_of("t", shape.rows, shape.width, "rowwise_adagrad")
        table = {"t": replace(spec, dtype=dtype, sharding="row_wise")}  # type: ignore[arg-type]
        tables = OurTables(table, forward, backward)
        steps[f"{name}, unique ids"] = partial(tables.step, {"t": fed}, {"t": gradient})
        steps[f"{name}, ids as they occur"] = partial(tables.step, {"t": repeated}, {"t": gradient})
    sent = {}
    for name, step in steps.items():
        with counted_bytes() as counted:
            step()
        total = torch.tensor(sum(n for dtype, n in counted.items() if dtype not in {torch.int32, torch.int64}))
        dist.all_reduce(total)
        sent[name] = int(total)
    return {name: (figures, sent[name]) for name, figures in timed(steps, shape).items()}


def show_bandwidth(found: dict[str, dict[str, Any]]) -> float:
    """Prints gigabytes a second; returns the lower share."""
    shares, rows = [], []
    for optimizer, result in found.items():
        figures, sizes = result["figures"], result["bytes"]
        rates = {name: [sizes[name] / seconds / 1e9 for seconds in values] for name, values in figures.items()}
        best = max((name for name in rates if name != OURS), key=lambda name: median(rates[name]))
        shares.append(harness.ratio(rates[OURS], rates[best]))
        for name, values in rates.items():
            label = f"ours, {optimizer}" if name == OURS else name
            share = f"{shares[-1]:.2f} of {best}" if name == OURS else ""
            rows.append([label, f"{median(figures[name]) * 1e3:.2f}", f"{median(values):.1f}", share])
    harness.table(["the same unique rows", "ms a step", "GB/s", "share"], rows)
    return min(shares)


def show_wire(found: dict[str, tuple[list[float], int]]) -> dict[str, float]:
    """Prints bytes and times; returns the ratios."""
    plain, plain_sent = found["fp32, ids as they occur"]
    rows = [
        [name, f"{sent / 1e6:.2f}", f"{1e3 * median(values):.2f}", f"{harness.ratio(plain, values):.2f}"]
        for name, (values, sent) in found.items()
    ]
    harness.table(["2 ranks, 1 thread each", "MB sent a step", "ms a step", "speed"], rows)
    unique, unique_sent = found["fp32, unique ids"]
    return {"unique_saves": harness.ratio(plain, unique), "unique_saves_bytes": plain_sent / unique_sent}


@click.command()
@click.option("--quick", is_flag=True, help="Ends within a minute on 2 cores.")
@click.option("--cpu-seconds", is_flag=True, help="Of one process and thread, where others use the machine.")
@click.option("--huge", is_flag=True, help="Only: a table of 10⁸ rows of 16 in float16, 4 GB in all.")
@click.option("--tiny", is_flag=True, hidden=True, help="For the tests.")
def main(quick: bool, cpu_seconds: bool, huge: bool, tiny: bool) -> None:
    """Our sharded tables against nn.Embedding and against the machine."""
    harness.prepare_process()
    if huge:
        from tests.benchmarks.embeddings_huge import report

        harness.finish("embeddings_huge", report(tiny), machine.cores())
        return
    shape = replace(TINY if tiny else QUICK if quick else FULL, cpu_seconds=cpu_seconds)
    fed = feed(zipf_ids(1, shape.ids, shape.rows))
    harness.show("shape", asdict(shape) | {"unique ids of a step": len(fed.unique)})
    found = run_ranks(alone, 1, shape, timeout=900)[0]
    plain = found["plain"]
    show_times(f"one table of {shape.rows:,} rows, Adagrad", plain)
    show_times(f"{shape.small_tables} tables of {shape.small_rows:,} rows, Adagrad", found["small"])
    given, raw = plain["nn.Embedding, sparse, unique ids given"], plain["nn.Embedding, sparse gradients"]
    ratios = {
        "over_nn_embedding_sparse": min(harness.ratio(given, plain[OURS]), harness.ratio(raw, plain[OURS_UNIQUE])),
        "over_nn_embedding_dense": harness.ratio(plain["nn.Embedding, dense gradients"], plain[OURS_UNIQUE]),
        "bandwidth_share": show_bandwidth(found["bandwidth"]),
    }
    if cpu_seconds:  # the rest is about waiting
        harness.finish("embeddings", ratios, 1)
        return
    ratios |= show_wire(run_ranks(wire, 2, shape, timeout=900)[0])
    ratios |= many_fields.ratios(quick, tiny)
    harness.finish("embeddings", ratios, machine.cores())


if __name__ == "__main__":
    main()
