"""`data prepare`: events a second, memory against its budget, and how both grow with the log.

    python -m tests.benchmarks.prepare [--quick | --tiny] [--globo clicks.tar.gz] [--memory-mb 512]

Synthetic logs of 1, 4 and 16 million events in the same eight days, users in proportion; 5 % of all events are one
user's. The Globo log (a tar.gz of hourly CSV files) when it is given: each click is a row with the clicks before it.
Ray is warm; its start is not measured. Time is wall time; CPU seconds are printed beside it.
"""

from __future__ import annotations

import argparse
import shutil
import tarfile
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from pipelines.config import Data, Prepare
from pipelines.prepare import PrepareReport, prepare
from pipelines.prepare_ray import cpus, ray_session
from pipelines.schema import Column, History, Schema, Task
from tests.benchmarks import harness
from tests.benchmarks.memory import MemoryMeter

FIRST_DAY = 1_763_596_800
DAYS = 8
FILE_EVENTS = 500_000
LAST_DAY = FIRST_DAY + 86_400 * (DAYS - 1)
MILLIONS = (1, 4, 16)


@dataclass(frozen=True)
class Figures:
    """Of one run."""

    report: PrepareReport
    wall: float
    cpu: float
    memory: MemoryMeter
    bytes: int


def write_clicks(folder: Path, events: int, *, giant: float = 0.05, seed: int = 1) -> Path:
    """A log of `events` shown items, four a request, in the order of time; a share `giant` of it is one user's."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    requests, users = events // 4, max(events // 50, 1)
    time_Q = FIRST_DAY + np.sort(rng.integers(0, DAYS * 86_400, requests))
    user_Q = np.where(rng.random(requests) < giant, 0, 1 + rng.zipf(1.3, requests) % users)
    day_starts = np.searchsorted(time_Q, FIRST_DAY + 86_400 * np.arange(DAYS + 1)).tolist()
    cuts = [(a, min(a + FILE_EVENTS // 4, e)) for s, e in pairwise(day_starts) for a in range(s, e, FILE_EVENTS // 4)]
    for index, (first, end) in enumerate(cuts):  # a file is of one day
        part = np.repeat(np.arange(first, end), 4)
        item = rng.zipf(1.2, len(part)) % 100_000
        table = pa.table(
            {
                "user": user_Q[part],
                "request": part,
                "time": time_Q[part],
                "item": item,
                "category": (item % 97).astype(np.int32),
                "click": (rng.random(len(part)) < 0.2).astype(np.int8),
            }
        )
        pq.write_table(table, folder / f"{index:05d}.parquet", row_group_size=100_000, compression="zstd")
    return folder


def clicks_schema(length: int = 50) -> Schema:
    """Candidates of a request, and the events shown before it."""
    item = {
        "item": Column(role="item", kind="id", group="candidates"),
        "category": Column(role="item", kind="id", group="candidates"),
        "click": Column(role="label", kind="dense", group="candidates"),
    }
    history = {
        "views_item": Column(role="item", kind="id", group="history.views", source="item", shares="item"),
        "views_category": Column(role="item", kind="id", group="history.views", source="category", shares="category"),
        "views_click": Column(role="action", kind="id", group="history.views", source="click"),
        "views_time": Column(role="time", kind="time", group="history.views", source="time"),
    }
    static = {
        "user": Column(role="user", kind="id"),
        "request": Column(role="request", kind="id"),
        "time": Column(role="time", kind="time"),
    }
    return Schema(
        user="user",
        columns=static | item | history,
        histories={"views": History(max_length=length, time="views_time")},
        tasks={"click": Task(label="click")},
    )


def globo_schema(length: int = 50) -> Schema:
    """A click, and the clicks before it."""
    item = {name: Column(role="item", kind="id", group="candidates") for name in ("article", "referrer")}
    history = {
        f"clicks_{name}": Column(role="item", kind="id", group="history.clicks", source=name, shares=name)
        for name in ("article", "referrer")
    }
    return Schema(
        user="user",
        time_unit="ms",
        columns={
            "user": Column(role="user", kind="id"),
            **{name: Column(role="user", kind="id") for name in ("environment", "device", "os", "country", "region")},
            "time": Column(role="time", kind="time"),
            **item,
            "click": Column(role="label", kind="dense", group="candidates"),
            **history,
            "clicks_time": Column(role="time", kind="time", group="history.clicks", source="time"),
        },
        histories={"clicks": History(max_length=length, time="clicks_time")},
        tasks={"click": Task(label="click")},
    )


def write_globo(archive: Path, folder: Path) -> Path:
    """The hourly CSV files as Parquet, 24 to a file."""
    names = {
        "user_id": "user",
        "click_article_id": "article",
        "click_timestamp": "time",
        "click_environment": "environment",
        "click_deviceGroup": "device",
        "click_os": "os",
        "click_country": "country",
        "click_region": "region",
        "click_referrer_type": "referrer",
    }
    folder.mkdir(parents=True)
    tables: list[pa.Table] = []
    written = 0
    with tarfile.open(archive, "r:gz") as files:
        for member in files:
            file = files.extractfile(member) if member.name.endswith(".csv") else None
            if file is not None and member.size > 1000:
                table = csv.read_csv(pa.py_buffer(file.read()))
                chosen = table.select(list(names)).rename_columns(list(names.values()))
                tables.append(chosen.append_column("click", pa.array(np.ones(len(chosen), np.int8))))
            if len(tables) == 24:
                pq.write_table(pa.concat_tables(tables), folder / f"{written:03d}.parquet", row_group_size=100_000)
                tables, written = [], written + 1
    if tables:
        pq.write_table(pa.concat_tables(tables), folder / f"{written:03d}.parquet", row_group_size=100_000)
    return folder


def measure(schema: Schema, log: Path, out: Path, settings: Prepare, *, keep: bool = False) -> Figures:
    """One run of `data prepare`; the rows are removed again unless they are to be kept."""
    with harness.CpuMeter() as cpu, MemoryMeter() as memory:
        started = time.perf_counter()
        report = prepare(schema, Data(rows=str(out), prepare=settings), out)
        wall = time.perf_counter() - started
    size = sum(path.stat().st_size for path in out.glob("*/*.parquet"))
    if not keep:
        shutil.rmtree(out)
    return Figures(report, wall, cpu.seconds, memory, size)


def measure_day(schema: Schema, log: Path, out: Path, settings: Prepare) -> Figures:
    """The last day, added to the others. Its files are those of the last eighth of the log."""
    files = sorted(log.glob("*.parquet"))
    later = [path for path in files if pq.read_table(path, columns=["time"])["time"][0].as_py() >= LAST_DAY]
    for path in later:
        path.rename(path.with_suffix(".later"))
    measure(schema, log, out, settings, keep=True)
    for path in later:
        path.with_suffix(".later").rename(path)
    return measure(schema, log, out, settings)


def line(name: str, figures: Figures) -> list[str]:
    """Of the table."""
    events = figures.report.events
    return [
        name,
        f"{events:,}",
        f"{figures.report.rows:,}",
        f"{figures.bytes / 2**20:,.0f}",
        str(figures.report.partitions),
        f"{figures.wall:.1f}",
        f"{figures.cpu:.1f}",
        f"{events / figures.wall:,.0f}",
        f"{figures.memory.growth / 2**20:,.0f}",
        f"{figures.memory.idle / 2**20:,.0f}",
    ]


def main() -> None:
    """Prints a table and the ratios."""
    harness.prepare_process()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the events")
    parser.add_argument("--tiny", action="store_true", help="a hundredth: only to see that it runs")
    parser.add_argument("--globo", type=Path, help="the Globo log, a tar.gz of hourly CSV files")
    parser.add_argument("--memory-mb", type=int, default=512)
    options = parser.parse_args()
    share = 10_000 if options.tiny else 100_000 if options.quick else 1_000_000
    sizes = {f"{m * share / 1_000_000:g} M": m * share for m in MILLIONS}
    budget = options.memory_mb
    harness.show("synthetic", {"days": DAYS, "events a request": 4, "history": 50, "giant user": "5 % of all events"})
    harness.show("budget", {"MiB": budget})
    rows, found = [], {}
    with tempfile.TemporaryDirectory(prefix="prepare-") as scratch, ray_session("", None):
        work = Path(scratch)
        harness.show("Ray", {"cores": cpus()})
        warm = write_clicks(work / "warm", 20_000)
        measure(clicks_schema(), warm, work / "rows", Prepare(log=str(warm), request="request", memory_mb=budget))
        for name, events in sizes.items():
            log = write_clicks(work / "log", events)
            settings = Prepare(log=str(log), request="request", memory_mb=budget)
            found[name] = measure(clicks_schema(), log, work / "rows", settings)
            rows.append(line(name, found[name]))
            if events == 4 * share:
                day = measure_day(clicks_schema(), log, work / "rows", settings)
                rows.append(line("its last day, added", day))
            shutil.rmtree(log)
        if options.globo:
            log = write_globo(options.globo, work / "log")
            globo = measure(globo_schema(), log, work / "rows", Prepare(log=str(log), memory_mb=budget))
            rows.append(line("Globo", globo))
    header = ["log", "events", "rows", "MiB written", "files a segment", "seconds", "CPU seconds", "events/s"]
    harness.table([*header, "memory, MiB above idle", "idle, MiB"], rows)
    one, four, sixteen = found.values()
    ratios = {
        "time_4_over_1": four.wall / one.wall,
        "time_16_over_4": sixteen.wall / four.wall,
        "cpu_4_over_1": four.cpu / one.cpu,
        "cpu_16_over_4": sixteen.cpu / four.cpu,
        "memory_16_over_1": sixteen.memory.growth / one.memory.growth,
        "rebuild_over_added_day": four.cpu / day.cpu,
        "memory_over_budget": max(f.memory.growth for f in found.values()) / (budget * 2**20),
    }
    harness.finish("prepare", ratios, threads=1)


if __name__ == "__main__":
    main()
