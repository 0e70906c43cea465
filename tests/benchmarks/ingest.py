"""Rows per second from Parquet to ready batches: ours, bare pyarrow scans, torch's DataLoader, and stock Ray Data.

    python -m tests.benchmarks.ingest [--quick] [--wide]

Ours ends with shuffled batches of unique ids per table, checked against the schema; the others with flat views of the
columns, in file order: `floor` does the least that can be called reading. The Ray executor reads in Ray's processes
alone; its consumer receives batches. --wide: the file of 500 columns only.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no network; read when Ray is first imported

import ray
import ray.data
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipelines.config import Data
from pipelines.schema import Column, History, Schema, Task
from pipelines.segments import find_segments
from pipelines.stream import Executor, ThreadExecutor, batches
from pipelines.stream_ray import READ_CPUS, RayExecutor
from pipelines.windows import Pass
from tests.benchmarks import harness
from tests.benchmarks.train_rows import lists, zipf
from trainer import machine
from trainer.launch_ray import embedded_settings

FLOOR, FLOOR_THREADS = "floor: pyarrow, one thread", "floor: pyarrow, its own threads"
TWO, LOADER = "two pyarrow processes", "torch DataLoader over pyarrow, 2 workers"
OURS_RAY, OURS_THREADS, STOCK = "ours, Ray executor", "ours, threads executor", "stock Ray Data"
PROCESSES = 2


@dataclass(frozen=True)
class Shape:
    """Categorical columns and 3 history lists, a time and one labelled candidate: all of them are read. Every one of
    the `distinct` files stands there several times, under names of its own."""

    files: int
    distinct: int = 4
    rows_a_file: int = 16_384
    row_group_rows: int = 4_096
    categorical: int = 20
    mean_length: int = 50
    longest: int = 200
    global_batch: int = 512
    window_batches: int = 8

    @property
    def rows(self) -> int:
        """In all."""
        return self.files * self.rows_a_file


WIDE = 494  # categorical columns; with the lists, 500


@dataclass(frozen=True)
class Scan:
    """One pass over the data by one contestant."""

    rows_per_second: float
    first_batch_seconds: float
    cpu_seconds_per_million: float


def write_files(shape: Shape, folder: Path) -> None:
    """Zipf–Mandelbrot ids of 10 to a million values, geometric history lengths."""
    rng = np.random.default_rng(7)
    for file in range(shape.files):
        path = folder / f"part-{file:03}.parquet"
        if file >= shape.distinct:
            os.link(folder / f"part-{file % shape.distinct:03}.parquet", path)
            continue
        rows = shape.rows_a_file
        columns = {f"field_{i}": zipf(rng, cardinality(i), rows) for i in range(shape.categorical)}
        length_R = np.minimum(rng.geometric(1 / shape.mean_length, rows), shape.longest)
        offsets, events = np.concatenate([[0], np.cumsum(length_R)]), int(length_R.sum())
        time_R = 1_700_000_000 + np.arange(rows)
        table = {name: pa.array(values) for name, values in columns.items()}
        table["time"] = pa.array(time_R)
        table["past_item"] = lists(offsets, zipf(rng, 1_000_000, events))
        table["past_category"] = lists(offsets, zipf(rng, 1_000, events))
        ages_E = np.concatenate([np.arange(length, 0, -1) for length in length_R])
        table["past_time"] = lists(offsets, np.repeat(time_R, length_R) - ages_E)
        table["item"] = lists(np.arange(rows + 1), zipf(rng, 1_000_000, rows))
        table["click"] = lists(np.arange(rows + 1), (rng.random(rows) < 0.2).astype(np.int8))
        pq.write_table(pa.table(table), path, compression="zstd", row_group_size=shape.row_group_rows)


def cardinality(field: int) -> int:
    """10, 100, … a million, in turn."""
    return int(10 ** (1 + field % 6))


def make_pass(shape: Shape, folder: Path) -> Pass:
    """Ours over the same files."""
    columns = {f"field_{i}": Column(role="context", kind="id") for i in range(shape.categorical)}
    columns["field_0"] = Column(role="user", kind="id")
    columns["time"] = Column(role="time", kind="time")
    columns["item"] = Column(role="item", kind="id", group="candidates")
    columns["click"] = Column(role="label", kind="dense", group="candidates")
    columns["past_item"] = Column(role="item", kind="id", group="history.past", shares="item")
    columns["past_category"] = Column(role="item", kind="id", group="history.past")
    columns["past_time"] = Column(role="time", kind="time", group="history.past")
    schema = Schema(
        user="field_0",
        columns=columns,
        histories={"past": History(max_length=shape.longest, time="past_time")},
        tasks={"click": Task(label="click")},
    )
    data = Data(rows=str(folder), global_batch=shape.global_batch, window_batches=shape.window_batches)
    return Pass(schema, data, find_segments(data).train, seed=1)


def bare_scan(files: list[Path], use_threads: bool) -> Iterator[int]:
    """pyarrow, row group by row group, to numpy views."""
    for path in files:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield views(file.read_row_group(group, use_threads=use_threads))


def two_processes(files: list[Path]) -> Iterator[int]:
    """Two processes, each with half of the files; only the numbers of rows come back."""
    context = multiprocessing.get_context("fork")
    counts = context.SimpleQueue()
    shares = [files[process::PROCESSES] for process in range(PROCESSES)]
    processes = [context.Process(target=_scan_into, args=(share, counts)) for share in shares]
    for process in processes:
        process.start()
    for _ in range(sum(pq.read_metadata(path).num_row_groups for path in files)):
        yield counts.get()
    for process in processes:
        process.join()


def _scan_into(files: list[Path], counts: Any) -> None:
    for rows in bare_scan(files, False):
        counts.put(rows)


class RowGroups(IterableDataset[dict[str, torch.Tensor]]):
    """Row groups as tensors that are views of Arrow's memory, every other one a worker."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        assert worker is not None
        for path in self._files[worker.id :: worker.num_workers]:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    yield tensors(file.read_row_group(group, use_threads=False))


def tensors(table: pa.Table) -> dict[str, torch.Tensor]:
    """Every column's values, and the offsets of lists, without a copy."""
    found = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        [chunk] = column.chunks
        if pa.types.is_list(chunk.type):
            found[f"{name}.offsets"] = torch.from_numpy(chunk.offsets.to_numpy())
            chunk = chunk.values
        found[name] = torch.from_numpy(chunk.to_numpy())
    return found


def torch_loader(files: list[Path]) -> Iterator[int]:
    """A row group at a time through shared memory: several times faster than batch by batch."""
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    loader = DataLoader(RowGroups(files), batch_size=None, num_workers=PROCESSES, multiprocessing_context="fork")
    for found in loader:
        yield len(found["time"])


def stock_ray(files: list[Path], shape: Shape) -> Iterator[int]:
    """What Ray's documentation shows, to numpy views in the consumer."""
    [split] = ray.data.read_parquet([str(path) for path in files]).streaming_split(1)
    for table in split.iter_batches(batch_size=shape.global_batch, batch_format="pyarrow"):
        yield views(table)


def views(table: pa.Table) -> int:
    """Zero-copy numpy arrays of every column, values and offsets; returns the rows."""
    for column in table.columns:
        for chunk in column.chunks:
            if pa.types.is_list(chunk.type):
                chunk.offsets.to_numpy()
                chunk.values.to_numpy()
            else:
                chunk.to_numpy()
    return int(table.num_rows)


def ours(pass_: Pass, executor: Executor) -> Iterator[int]:
    """The trainer's own iterator of batches."""
    with batches(pass_, 1, 0, None, executor) as stream:
        for batch in stream:
            yield batch.rows


def scan(name: str, begin: Callable[[], Iterator[int]], rows: int) -> Scan:
    """Times one pass, to its end. Raises RuntimeError where a row is missing."""
    own = _own_cpu()
    with harness.CpuMeter() as meter:
        began = time.perf_counter()
        found = begin()
        total = next(found)
        first = time.perf_counter() - began
        total += sum(found)
        seconds = time.perf_counter() - began
    # An idle Ray uses some CPU as well, which is not the account of those who do without it.
    cpu = meter.seconds if name in (OURS_RAY, STOCK) else _own_cpu() - own
    if total != rows:
        raise RuntimeError(f"{name}: {total} rows of {rows}")
    return Scan(rows / seconds, first, cpu / rows * 1e6)


def _own_cpu() -> float:
    """CPU seconds of this process and of children that have ended: Ray's have not."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def compete(shape: Shape, folder: Path, rounds: int) -> dict[str, list[Scan]]:
    """Every contestant's passes, in turn, after an unmeasured one each (of Ray's only, where one round is all). Prints
    what Ray Data says of our last pass."""
    files = sorted(folder.glob("*.parquet"))
    pass_ = make_pass(shape, folder)
    executor = RayExecutor(f"ingest-{folder.name}", num_cpus=READ_CPUS)
    executor.wait_until_warm()
    contestants: dict[str, Callable[[], Iterator[int]]] = {
        FLOOR: partial(bare_scan, files, False),
        FLOOR_THREADS: partial(bare_scan, files, True),
        TWO: partial(two_processes, files),
        LOADER: partial(torch_loader, files),
        OURS_THREADS: lambda: ours(pass_, ThreadExecutor()),
        OURS_RAY: lambda: ours(pass_, executor),
        STOCK: lambda: stock_ray(files, shape),
    }
    timed = {name: partial(scan, name, begin, shape.rows) for name, begin in contestants.items()}
    # Ray's first pass starts processes and touches its store's pages; with one round all others go without.
    harness.in_turn(timed if rounds > 1 else {name: timed[name] for name in (OURS_RAY, STOCK)}, 1)
    scans = harness.in_turn(timed, rounds)
    account = executor.account()
    print(account.pop("stats"))
    harness.show("ours, Ray executor, last pass", account)
    return scans


def report(scans: dict[str, list[Scan]], suffix: str) -> dict[str, float]:
    """Prints the table; returns the ratios, their keys with the suffix."""
    speeds = {name: [s.rows_per_second for s in found] for name, found in scans.items()}
    floor = max((FLOOR, FLOOR_THREADS), key=lambda name: median(speeds[name]))
    rows = [
        [
            name,
            harness.spread(speeds[name]),
            f"{harness.ratio(speeds[name], speeds[floor]):.2f}",
            f"{median(s.first_batch_seconds for s in found):.2f}",
            f"{median(s.cpu_seconds_per_million for s in found):.1f}",
        ]
        for name, found in scans.items()
    ]
    harness.table(["Parquet to batches", "rows/s", "÷ floor", "first batch, s", "CPU s per million rows"], rows)
    ratios = {
        "floor_share": harness.ratio(speeds[OURS_RAY], speeds[floor]),
        "floor_share_threads": harness.ratio(speeds[OURS_THREADS], speeds[floor]),
        "one_thread_share": harness.ratio(speeds[OURS_RAY], speeds[FLOOR]),
        "over_ray_stock": harness.ratio(speeds[OURS_RAY], speeds[STOCK]),
        "over_ray_stock_threads": harness.ratio(speeds[OURS_THREADS], speeds[STOCK]),
        "over_torch_dataloader": harness.ratio(speeds[OURS_RAY], speeds[LOADER]),
    }
    return {key + suffix: value for key, value in ratios.items()}


def plan(quick: bool, wide: bool, tiny: bool) -> tuple[dict[str, Shape], int]:
    """({suffix of the ratios: shape}, rounds)."""
    if tiny:
        small = Shape(files=2, rows_a_file=512, row_group_rows=256, global_batch=64)
        return {"": small, "_wide": replace(small, categorical=WIDE, files=1)}, 1
    rows, columns = Shape(files=12 if quick else 64), Shape(files=2 if quick else 8, distinct=2, categorical=WIDE)
    shapes = {"": rows, "_wide": columns}
    if wide:
        del shapes[""]
    return shapes, 1 if quick else 5


@click.command()
@click.option("--quick", is_flag=True, help="Ends within a minute on 2 cores.")
@click.option("--wide", is_flag=True, help="The file of 500 columns only.")
@click.option("--tiny", is_flag=True, hidden=True, help="For the tests.")
def main(quick: bool, wide: bool, tiny: bool) -> None:
    """From Parquet to batches, against bare scans, torch's DataLoader and stock Ray Data."""
    harness.prepare_process()
    shapes, rounds = plan(quick, wide, tiny)
    cores = machine.cores()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **embedded_settings(cores, 512))
    ray.data.DataContext.get_current().enable_progress_bars = False
    ratios: dict[str, float] = {}
    try:
        for suffix, shape in shapes.items():
            harness.show("shape", asdict(shape))
            harness.show(
                "measured", {"passes": rounds, "unmeasured": 1 if rounds > 1 else "1 of Ray's", "cores": cores}
            )
            with TemporaryDirectory() as folder:
                write_files(shape, Path(folder))
                ratios |= report(compete(shape, Path(folder), rounds), suffix)
    finally:
        ray.shutdown()
    harness.finish("ingest", ratios, cores)


if __name__ == "__main__":
    main()
