"""CPU time from Parquet to ready batches in one process, stage by stage, without any executor.

    python -m tests.benchmarks.reader_core [--quick]

Two files: the ingest benchmark's (lists), and one of 500 static columns (narrow). The floor is a bare scan by pyarrow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TypeVar

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.carry import carry_window, load_window
from pipelines.config import Data
from pipelines.read import read_window
from pipelines.schema import Column, Schema, Task
from pipelines.segments import find_segments
from pipelines.windows import Pass
from tests.benchmarks import harness, ingest
from trainer import machine

Answer = TypeVar("Answer")
WIDE = {"id": 300, "string": 50, "dense": 150}


def write_wide(folder: Path, rows: int) -> None:
    """Ids of 10 to a million values, some of them strings, and numbers, a tenth of them null."""
    rng = np.random.default_rng(3)
    table = {}
    for i in range(WIDE["id"]):
        table[f"id_{i}"] = pa.array(ingest.zipf(rng, ingest.cardinality(i), rows))
    for i in range(WIDE["string"]):
        numbers = ingest.zipf(rng, ingest.cardinality(i), rows)
        table[f"string_{i}"] = pa.array([f"value-{number}" for number in numbers.tolist()])
    for i in range(WIDE["dense"]):
        table[f"dense_{i}"] = pa.array(rng.random(rows, np.float32), mask=rng.random(rows) < 0.1)
    table["time"] = pa.array(1_700_000_000 + np.arange(rows))
    table["item"] = ingest.lists(np.arange(rows + 1), ingest.zipf(rng, 1_000_000, rows))
    table["click"] = ingest.lists(np.arange(rows + 1), (rng.random(rows) < 0.2).astype(np.int8))
    pq.write_table(pa.table(table), folder / "part-000.parquet", compression="zstd", row_group_size=4096)


def wide_pass(folder: Path) -> Pass:
    """All 503 columns are read."""
    columns = {f"id_{i}": Column(role="context", kind="id") for i in range(WIDE["id"])}
    columns |= {f"string_{i}": Column(role="context", kind="id") for i in range(WIDE["string"])}
    columns |= {f"dense_{i}": Column(role="context", kind="dense") for i in range(WIDE["dense"])}
    columns["id_0"] = Column(role="user", kind="id")
    columns["time"] = Column(role="time", kind="time")
    columns["item"] = Column(role="item", kind="id", group="candidates")
    columns["click"] = Column(role="label", kind="dense", group="candidates")
    schema = Schema(user="id_0", columns=columns, tasks={"click": Task(label="click")})
    data = Data(rows=str(folder), global_batch=512)
    return Pass(schema, data, find_segments(data).train, seed=1)


def bare_scan(folder: Path) -> Iterator[int]:
    """pyarrow, row group by row group, without a look at the values."""
    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield len(file.read_row_group(group, use_threads=False))


def measure(folder: Path, pass_: Pass, rounds: int) -> dict[str, list[float]]:
    """{stage: CPU seconds per million rows, round by round}, each stage with those before it."""
    windows = list(pass_.windows_from())
    rows = sum(window.rows for window in windows)
    schema = pass_.schema
    stages: dict[str, Callable[[], Iterator[object]]] = {
        "floor: pyarrow alone": lambda: bare_scan(folder),
        "read": lambda: (len(table) for window in windows for table, *_ in read_window(window, schema)),
        "read, decode": lambda: (len(load_window(window, pass_.reading).user) for window in windows),
        "batches": lambda: (len(carry_window(window, pass_.reading, 1, [0])) for window in windows),
        "batches of 8 ranks": lambda: (len(carry_window(window, pass_.reading, 8, range(8))) for window in windows),
    }

    def run(stage: Callable[[], Iterator[object]]) -> float:
        began = time.process_time()
        for _ in stage():
            pass
        return (time.process_time() - began) / rows * 1e6

    timed = {name: (lambda stage=stage: run(stage)) for name, stage in stages.items()}
    figures = harness.in_turn(timed, rounds + 1)
    return {name: found[1:] or found for name, found in figures.items()}


@click.command()
@click.option("--quick", is_flag=True, help="Ends within a minute on 2 cores.")
@click.option("--tiny", is_flag=True, hidden=True, help="For the tests.")
def main(quick: bool, tiny: bool) -> None:
    """CPU seconds per million rows of each stage of the reader."""
    harness.prepare_process()
    rounds, files, wide_rows = (0, 1, 1024) if tiny else (3, 2, 8192) if quick else (7, 4, 16384)
    ratios = {}
    shape = ingest.Shape(files=files) if not tiny else ingest.Shape(files=1, rows_a_file=1024)
    with TemporaryDirectory() as lists, TemporaryDirectory() as wide:
        ingest.write_files(shape, Path(lists))
        write_wide(Path(wide), wide_rows)
        for name, folder, pass_ in (
            ("lists", Path(lists), ingest.make_pass(shape, Path(lists))),
            ("wide", Path(wide), wide_pass(Path(wide))),
        ):
            figures = measure(folder, pass_, rounds)
            floor = figures["floor: pyarrow alone"]
            rows = [
                [stage, f"{median(found):.2f}", f"{min(found):.2f}", f"{median(found) - median(floor):+.2f}"]
                for stage, found in figures.items()
            ]
            harness.table([f"{name}: CPU s per million rows", "median", "least", "over the floor"], rows)
            ratios[f"floor_share_{name}"] = harness.ratio(floor, figures["batches"])
            ratios[f"cpu_seconds_{name}"] = median(figures["batches"])
    harness.finish("reader_core", ratios, machine.cores())


if __name__ == "__main__":
    main()
