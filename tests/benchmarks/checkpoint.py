"""Checkpoints beside the training against ones that wait for them: what training waits, bytes, speed and memory.

    python -m tests.benchmarks.checkpoint [--quick]

One table with row-wise Adagrad in one process, trained on Zipf ids (as in embeddings.py), a checkpoint every `every`
steps on this machine's disk. `stall_share`: of the wall time, what training stood still for checkpoints, in copying
rows aside too, at that interval, which is printed; `stall_share_at_10_minutes`: what the big table's checkpoint cost,
at the default interval. `stall_async_over_sync`: against mode = "sync". `wall_async_over_none`: wall time of all steps
over that of the same steps without checkpoints: the writer's own work on the machine's cores as well.
`delta_bytes_share`: a difference's bytes over a full one's, after one id has been drawn for every five rows of the
table. `save_peak_over_table`, `load_peak_over_table`: resident memory at its highest above what was there before, over
the bytes of weights and state; a full copy would be 1.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch

from embeddings.held import Held, whole
from embeddings.held_tables import held_tables
from embeddings.touched import watch_rows
from pipelines.schema import Column, Schema
from tests.benchmarks import harness
from tests.benchmarks.embedding_steps import OurTables, feed, spec_of, zipf_ids
from tests.distributed.ranks import run_ranks
from trainer import machine
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.state import CheckpointState
from trainer.config_sections import Checkpoint
from trainer.run_dir import RunDir

SCHEMA = Schema(user="user", columns={"user": Column(role="user", kind="id")})
DENSE = 500_000  # parameters beside the tables, with two moments each
CONTESTANTS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "async": {"mode": "async"},
    "sync": {"mode": "sync"},
}


@dataclass(frozen=True)
class Shape:
    """ids: of a step. every: steps between checkpoints. big_rows: of the table whose memory is looked at."""

    rows: int = 5_000_000
    width: int = 16
    ids: int = 50_000
    every: int = 500
    checkpoints: int = 2
    rounds: int = 2
    big_rows: int = 40_000_000


FULL = Shape()
QUICK = Shape(rows=2_000_000, ids=20_000, every=1000, checkpoints=2, rounds=1, big_rows=8_000_000)
TINY = Shape(rows=20_000, ids=500, every=3, checkpoints=2, rounds=1, big_rows=100_000)


class Training:
    """One table and some dense tensors; steps on ids drawn before."""

    def __init__(self, shape: Shape, rows: int, draws: int = 16) -> None:
        specs = {"t": spec_of("t", rows, shape.width, "rowwise_adagrad")}
        self.tables = OurTables(specs)
        self.touched = watch_rows(self.tables.sharded, specs)
        self._held = {f"tables/{name}": held for name, held in held_tables(self.tables.sharded, specs).items()}
        self._held |= {f"dense/{name}": whole(torch.rand(DENSE)) for name in ("w", "exp_avg", "exp_avg_sq")}
        self.bytes = sum(held.bytes for name, held in self._held.items() if name.startswith("tables/"))
        self._fed = [feed(zipf_ids(0, shape.ids, rows, draw)) for draw in range(draws)]
        self._gradient = torch.randn(shape.ids, shape.width)
        self._steps = 0

    def step(self) -> None:
        fed = self._fed[self._steps % len(self._fed)]
        self.tables.step({"t": fed}, {"t": self._gradient})
        self._steps += 1

    def held(self) -> Mapping[str, Held]:
        return self._held


def _state(step: int) -> CheckpointState:
    return CheckpointState(step=step, data_schema=SCHEMA)


def run(shape: Shape, training: Training, settings: dict[str, Any] | None) -> dict[str, float]:
    """`checkpoints` intervals of `every` steps, each ended by a checkpoint; the first, full one is before them. Means
    of a checkpoint, and the wall time of all."""
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = Checkpointer(
            RunDir(folder), Checkpoint(**(settings or {})), touched=training.touched if settings else None
        )
        full = checkpointer.save(_state(0), training.held) if settings else None
        found = []
        began = time.perf_counter()
        for number in range(shape.checkpoints):
            for _ in range(shape.every):
                training.step()
            if settings is not None:
                checkpointer.begin(_state(number + 1), training.held)
            found += checkpointer.poll()
        for _ in range(shape.every):  # beside which the last one is written
            training.step()
        wall = time.perf_counter() - began
        found += checkpointer.wait()
    if full is None:
        return {"wall": wall}
    return {
        "wall": wall,
        "stall": sum(saved.stall_seconds for saved in found) / len(found),
        "seconds": sum(saved.seconds for saved in found) / len(found),
        "bytes": full.bytes,
    }


def differences(rank: int, world_size: int, shape: Shape) -> dict[int, dict[str, float]]:
    """{steps since the checkpoint before: a difference's bytes, those of a full one, rows in it}."""
    torch.set_num_threads(machine.cores())
    steps = max(1, shape.rows // 5 // shape.ids)
    intervals = (max(1, steps // 4), steps, 4 * steps)
    training = Training(shape, shape.rows, draws=sum(intervals))
    found: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        config = Checkpoint(mode="sync", full_every=9)
        checkpointer = Checkpointer(RunDir(folder), config, touched=training.touched)
        full = checkpointer.save(_state(0), training.held)
        for number, interval in enumerate(intervals):
            for _ in range(interval):
                training.step()
            (shard,) = training.touched.shards()
            rows = int((shard.generation_R == training.touched.generation).sum())
            delta = checkpointer.save(_state(number + 1), training.held)
            found[interval] = {"bytes": delta.bytes, "full": full.bytes, "rows": rows}
    return found


def compare(rank: int, world_size: int, shape: Shape) -> dict[str, list[dict[str, float]]]:
    """Each contestant's figures of each round, in one process."""
    torch.set_num_threads(machine.cores())
    training = Training(shape, shape.rows, draws=64)
    for _ in range(5):
        training.step()
    contestants = {name: lambda s=settings: run(shape, training, s) for name, settings in CONTESTANTS.items()}
    return harness.in_turn(contestants, shape.rounds)


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


class Peak:
    """`with Peak() as peak: …`; then peak.bytes: the most that was resident above what was there before."""

    bytes = 0

    def __enter__(self) -> Peak:
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is what is there now
        self._before = _memory("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        self.bytes = max(1, _memory("VmHWM") - self._before)


def memory(rank: int, world_size: int, shape: Shape) -> dict[str, float]:
    """Of one big table: saved while it waits, saved beside steps, loaded; seconds and peaks of each."""
    torch.set_num_threads(machine.cores())
    training = Training(shape, shape.big_rows)
    for _ in range(5):
        training.step()
    result: dict[str, float] = {"table": training.bytes}
    with tempfile.TemporaryDirectory() as folder:
        for mode in ("sync", "async"):
            checkpointer = Checkpointer(RunDir(f"{folder}/{mode}"), Checkpoint(mode=mode), touched=training.touched)
            began = time.perf_counter()
            with Peak() as peak:
                checkpointer.begin(_state(1), training.held)
                while not (saved := checkpointer.poll()):
                    training.step()
            result |= {
                f"{mode} save": peak.bytes,
                f"{mode} save seconds": time.perf_counter() - began,
                f"{mode} save stall": saved[0].stall_seconds,
            }
        path = RunDir(f"{folder}/sync").require_latest()
        began = time.perf_counter()
        with Peak() as peak:
            checkpointer.load(path, training.held())
        seconds = time.perf_counter() - began
        result |= {"load": peak.bytes, "load seconds": seconds, "load stall": seconds}
    return result


def _speed(what: str, big: dict[str, float]) -> list[str]:
    seconds = big[f"{what} seconds"]
    rate, stall = big["table"] / seconds / 1e6, big[f"{what} stall"]
    return [what, f"{seconds:.2f}", f"{rate:.0f}", f"{stall:.3f}", f"{big[what] / 1e6:.0f}"]


def report_differences(shape: Shape, found: dict[int, dict[str, float]]) -> float:
    """Prints them; the share at the middle interval."""
    harness.table(
        ["ids drawn since the checkpoint before", "rows touched", "MB", "of a full one"],
        [
            [
                f"{steps * shape.ids:,}, {steps * shape.ids / shape.rows:.2f} of the rows",
                f"{delta['rows'] / shape.rows:.1%}",
                f"{delta['bytes'] / 1e6:.1f} of {delta['full'] / 1e6:.1f}",
                f"{delta['bytes'] / delta['full']:.3f}",
            ]
            for steps, delta in found.items()
        ],
    )
    middle = list(found.values())[1]
    return middle["bytes"] / middle["full"]


def report(shape: Shape, figures: dict[str, list[dict[str, float]]], big: dict[str, float]) -> dict[str, float]:
    """Prints the tables of time and of memory."""

    def middle(name: str, key: str) -> float:
        return median(figure[key] for figure in figures[name])

    steps = (shape.checkpoints + 1) * shape.every
    step_seconds = middle("none", "wall") / steps
    rows = []
    for name in CONTESTANTS:
        row = [name, f"{middle(name, 'wall'):.2f}"]
        if name != "none":
            stall = middle(name, "stall")
            row += [
                f"{1e3 * stall:.1f}",
                f"{stall * shape.checkpoints / middle(name, 'wall'):.2%}",
                f"{middle(name, 'seconds'):.2f}",
                f"{middle(name, 'bytes') / 1e6:.1f}",
            ]
        rows.append([*row, *[""] * (6 - len(row))])
    header = ["checkpoints", f"s for {steps} steps", "ms waited, each", "of wall time", "s to its commit", "MB each"]
    harness.table(header, rows)
    table = big["table"]
    harness.table(
        [f"{shape.big_rows:,} rows, {table / 1e9:.2f} GB", "s", "MB/s", "training waited, s", "peak above, MB"],
        [_speed(what, big) for what in ("sync save", "async save", "load")],
    )
    interval = shape.every * step_seconds
    print(f"a checkpoint every {shape.every} steps is one every {interval:.1f} s here\n", flush=True)
    return {
        "stall_share": middle("async", "stall") * shape.checkpoints / middle("async", "wall"),
        "stall_share_at_10_minutes": big["async save stall"] / 600,
        "stall_async_over_sync": middle("async", "stall") / middle("sync", "stall"),
        "wall_async_over_none": harness.ratio(*([f["wall"] for f in figures[name]] for name in ("async", "none"))),
        "save_peak_over_table": max(big["sync save"], big["async save"]) / table,
        "load_peak_over_table": big["load"] / table,
        "save_mb_per_second": table / big["sync save seconds"] / 1e6,
        "load_mb_per_second": table / big["load seconds"] / 1e6,
    }


@click.command()
@click.option("--quick", is_flag=True, help="Within a minute.")
@click.option("--tiny", is_flag=True, hidden=True, help="To see that it runs.")
def main(quick: bool, tiny: bool) -> None:
    """Checkpoints beside the training."""
    harness.prepare_process()
    shape = TINY if tiny else QUICK if quick else FULL
    harness.show("shape", asdict(shape) | {"dense values": 3 * DENSE})
    figures = run_ranks(compare, 1, shape, timeout=1800)[0]
    big = run_ranks(memory, 1, shape, timeout=1800)[0]
    ratios = report(shape, figures, big)
    ratios["delta_bytes_share"] = report_differences(shape, run_ranks(differences, 1, shape, timeout=1800)[0])
    harness.finish("checkpoint", ratios, machine.cores())


if __name__ == "__main__":
    main()
