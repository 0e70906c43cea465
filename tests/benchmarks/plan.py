"""From a listing to the plan of a run, on a store that takes 30 ms a request: ours, and what one would write at first.

    python -m tests.benchmarks.plan [--quick]

The files are 23-column Parquet of 10,000 rows; the store keeps their ends and serves them under as many names as there
are files, so that 10⁵ of them need no disk. Ours: lists, checks every footer against the schema, writes the run's plan
cache, and makes the plan of every segment from it, files looked at again. The others read footers only: one after the
other, and by 16 threads, on fewer files; their time is counted up to as many as ours.
"""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines import storage
from pipelines.config import Data
from pipelines.footer_cache import FooterCache
from pipelines.footers import check_files
from pipelines.segments import find_segments
from pipelines.windows import Pass
from tests.benchmarks import harness
from tests.pipelines.slow_store import SlowStore, file_names, log_file, log_schema

LATENCY = 0.03
ROWS_A_FILE, VARIANTS = 10_000, 4
GLOBAL_BATCH, WINDOW_BATCHES = 4096, 16


def make_store(segments: int, files: int, row_group_rows: int) -> SlowStore:
    """VARIANTS files of slightly different length, under segments · (files ÷ segments) names."""
    contents = [log_file(ROWS_A_FILE - variant, row_group_rows, variant) for variant in range(VARIANTS)]
    names = {name: number % VARIANTS for number, name in enumerate(file_names(segments, files // segments))}
    store = SlowStore(names, contents, LATENCY, light=True)
    storage.mount("slow", fs.PyFileSystem(store))
    return store


def plan_all(segments: int, files: int, row_group_rows: int) -> dict[str, float]:
    """Seconds of each part, peak memory of this process, CPU seconds."""
    store = make_store(segments, files, row_group_rows)
    data = Data(rows="slow://log", segments="..", global_batch=GLOBAL_BATCH, window_batches=WINDOW_BATCHES)
    marks, cpu = [time.perf_counter()], time.process_time()
    with TemporaryDirectory() as folder:
        found = find_segments(data).train
        marks.append(time.perf_counter())
        assert check_files(log_schema(), found, FooterCache(folder)) == []
        marks.append(time.perf_counter())
        pass_ = Pass(log_schema(), data, found, seed=1, cache=FooterCache(folder))
        rows = sum(window.rows for window in pass_.windows_from())
        marks.append(time.perf_counter())
    assert rows == sum(ROWS_A_FILE - number for number in store.names.values())
    listing, reading, planning = (b - a for a, b in itertools.pairwise(marks))
    return {
        "rows": rows,
        "list_seconds": listing,
        "check_seconds": reading,
        "order_seconds": planning,
        "plan_seconds": marks[-1] - marks[0],
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "most_at_once": store.most_at_once,
        "requests_a_file": (store.reads + store.looks + store.pages) / files,
    }


def read_plainly(files: int, threads: int, row_group_rows: int) -> float:
    """Seconds a file: opened, its size asked for, its footer read, `threads` at a time."""
    store = make_store(1, files, row_group_rows)

    def read(name: str) -> int:
        store.wait()  # an object store is asked for the size when a file is opened; then comes the read
        with storage.open_file(f"slow://{name}") as file:
            return int(pq.read_metadata(file).num_rows)

    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, store.names))
    return (time.perf_counter() - begin) / files


def in_a_process(segments: int, files: int, row_group_rows: int) -> dict[str, float]:
    """A shape in a fresh process, so that its peak of memory is its own."""
    words = ["--shape", str(segments), "--files", str(files), "--row-group-rows", str(row_group_rows)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.plan", *words],
        cwd=Path(__file__).parents[2],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


@click.command()
@click.option("--quick", is_flag=True, help="2,000 files.")
@click.option("--tiny", is_flag=True, help="600 files: that it runs, not how fast.")
@click.option("--files", default=0, help="100,000.")
@click.option("--row-group-rows", default=4096, show_default=True, help="4,096 as in ingest.py.")
@click.option("--shape", default=0, hidden=True, help="Segments; one shape, its figures as JSON.")
def main(quick: bool, tiny: bool, files: int, row_group_rows: int, shape: int) -> None:
    """See the module."""
    files = files or (600 if tiny else 2_000 if quick else 100_000)
    if shape:
        print(json.dumps(plan_all(shape, files, row_group_rows)))
        return
    harness.show(
        "shape",
        {
            "files": f"{files:,}", "columns": 23, "rows a file": ROWS_A_FILE, "rows a row group": row_group_rows,
            "latency": f"{LATENCY * 1000:.0f} ms", "in flight": storage.IN_FLIGHT,
            "footer": f"{footer_bytes(row_group_rows):,} bytes",
        },
    )  # fmt: skip
    found = {segments: in_a_process(segments, files, row_group_rows) for segments in (1, files // 100, files)}
    keys = ["list_seconds", "check_seconds", "order_seconds", "plan_seconds", "cpu_seconds", "peak_mb", "most_at_once"]
    rows = [
        [f"{segments:,} × {files // segments:,}", f"{figures['rows']:,}", *(f"{figures[key]:,.1f}" for key in keys)]
        for segments, figures in found.items()
    ]
    harness.table(["segments × files", "rows", *keys], rows)
    serial = read_plainly(40 if tiny else 300, 1, row_group_rows) * files
    sixteen = read_plainly(400 if tiny else 3_000, 16, row_group_rows) * files
    ours = max(figures["list_seconds"] + figures["check_seconds"] for figures in found.values())
    harness.table(
        ["footers of all files", "seconds"],
        [
            ["ours, list and check, slowest shape", f"{ours:,.1f}"],
            ["16 threads, open and read (counted up)", f"{sixteen:,.1f}"],
            ["one after the other (counted up)", f"{serial:,.1f}"],
        ],
    )
    slowest, largest = (max(figures[key] for figures in found.values()) for key in ("plan_seconds", "peak_mb"))
    print(f"plan_seconds {slowest:.1f} · peak_mb {largest:.0f}")
    ratios = {"serial_over_parallel": serial / ours, "sixteen_threads_over_parallel": sixteen / ours}
    harness.finish("plan", ratios | {"plan_seconds": slowest, "peak_mb": largest}, 1)


def footer_bytes(row_group_rows: int) -> int:
    """Length of a file's footer."""
    return int.from_bytes(log_file(ROWS_A_FILE, row_group_rows)[-8:-4], "little")


if __name__ == "__main__":
    main()
