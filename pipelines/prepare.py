"""`data prepare`: event logs → request rows, on Ray Data.

    units (file, row groups)  →  shuffle: events dealt to partitions by the hash of their user
    [split = "fractions"]     →  the cuts through the global order of supervised events
    partitions                →  order, histories, rows  →  a file per segment and partition, by (hash of user, time)

Same log and settings, same bytes; with another number of partitions, the same rows in other files. A row knows events
strictly before its time or, with `Schema.ties = "order"`, earlier in the stated order.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.batch import Int64
from pipelines.config import Data
from pipelines.errors import DataError
from pipelines.folders import fresh_folder
from pipelines.prepare_events import Events, read_events, shuffle_unit
from pipelines.prepare_job import Job, make_job
from pipelines.prepare_rows import Rows, find_supervised, make_rows, make_table
from pipelines.prepare_split import Key, check_segment_times, find_cuts, segment_codes, segment_folder
from pipelines.schema import Schema

log = logging.getLogger(__name__)


@dataclass
class SegmentReport:
    """One segment. supervised: candidate or history events to be predicted. labels: {column: (observed, positives)}.

    users: split by user: those who have rows here.
    """

    name: str
    rows: int = 0
    supervised: int = 0
    users: int = 0
    labels: dict[str, tuple[int, int]] = field(default_factory=dict)

    def line(self, users: int = 0) -> str:
        """For a person. users: of all segments."""
        rates = [
            f"{label} {positives / observed:.4f}" + (f" of {observed:,}" if observed != self.supervised else "")
            for label, (observed, positives) in self.labels.items()
            if observed
        ]
        shares = [f"{self.users:,} users ({self.users / users:.1%} of all)"] if users else []
        return " · ".join([f"{self.name}: {self.rows:,} rows", f"{self.supervised:,} examples", *shares, *rates])


@dataclass(frozen=True)
class PrepareReport:
    """events: read, with user, time and request. dropped: {what: number}."""

    events: int
    rows: int
    supervised: int
    dropped: dict[str, int]
    segments: tuple[SegmentReport, ...]
    partitions: int
    seconds: float

    def lines(self) -> list[str]:
        """For a person."""
        dropped = [f"left out: {number:,} {what}" for what, number in self.dropped.items()]
        users = sum(segment.users for segment in self.segments)
        total = f"{self.events:,} events → {self.rows:,} request rows, {self.supervised:,} supervised examples"
        return [
            f"{total} ({self.partitions} partitions, {self.seconds:.1f} s)",
            *dropped,
            *(s.line(users) for s in self.segments),
        ]


def prepare(
    schema: Schema, data: Data, out: Path, *, ray_address: str = "", num_cpus: int | None = None
) -> PrepareReport:
    """Writes `out/SEGMENT/part-NNNNN.parquet`, whole or not at all; on a cluster all nodes must see the folder `out`.

    Uses the Ray that this process has; else `ray_address`; else an embedded one with `num_cpus` (all cores). Raises
    SchemaError where schema and settings do not fit, DataError where the log is bad or `out` is not empty.
    """
    from pipelines.prepare_ray import ray_session, run_tasks  # noqa: PLC0415 - Ray takes seconds; problems show before

    started = time.perf_counter()
    with fresh_folder(out) as folder:
        shuffle = folder / "_shuffle"
        shuffle.mkdir()
        job = make_job(schema, data, str(folder), str(shuffle))
        with ray_session(ray_address, num_cpus):
            log.info("reading %d units of the log into %d partitions of users", len(job.units), job.partitions)
            units = run_tasks(lambda index: shuffle_unit(job, index), len(job.units))
            dropped: Counter[str] = Counter()
            for unit in units:
                dropped.update(unit["dropped"])
            events = sum(unit["events"] for unit in units)
            if events == 0:
                raise DataError(
                    [f"all events dropped: {n:,} {what} → rows need them → fix the log" for what, n in dropped.items()]
                )
            spans = [(u.segment, found["first"], found["last"]) for u, found in zip(job.units, units, strict=True)]
            problems = check_segment_times(job, spans)
            if problems:
                raise DataError(problems)
            first, last = min(unit["first"] for unit in units), max(unit["last"] for unit in units)
            cuts = find_cuts(job, first, last, run_tasks)
            log.info("building request rows")
            parts = run_tasks(lambda index: build_partition(job, index, cuts), job.partitions)
        shutil.rmtree(shuffle)
        return _report(job, events, dropped, parts, time.perf_counter() - started)


def build_partition(job: Job, partition: int, cuts: Sequence[Key]) -> dict[str, Any]:
    """Writes the files of one partition. Returns {"short": examples left out, "segments": {folder: counts}}."""
    events = read_events(job, partition)
    segment_E = segment_codes(job, events, cuts)
    rows = make_rows(job, events, find_supervised(job, events), segment_E)
    segment_R = segment_E[rows.event_R]
    segments = {}
    for code in np.unique(segment_R).tolist():
        name = segment_folder(job, code)
        path = Path(job.folder) / name / f"part-{partition:05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        segments[name] = _write_segment(job, events, rows, np.flatnonzero(segment_R == code), path)
    return {"short": rows.short, "segments": segments}


def _write_segment(job: Job, events: Events, rows: Rows, chosen_R: Int64, path: Path) -> dict[str, Any]:
    """Row group by row group, so that memory does not grow with the length of histories times the rows of a segment."""
    labels: dict[str, list[int]] = {n: [0, 0] for n, c in job.schema.columns.items() if c.role == "label"}
    size, supervised = job.settings.row_group_rows, 0
    writer: pq.ParquetWriter | None = None
    try:
        for start in range(0, len(chosen_R), size):
            table = make_table(job, events, rows, chosen_R[start : start + size])
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table, row_group_size=size)
            for name, counts in labels.items():
                if name in table.column_names:
                    observed, positives = _count_labels(table[name])
                    counts[0] += observed
                    counts[1] += positives
    finally:
        if writer is not None:
            writer.close()
    own = next(iter(rows.lists.values()))
    context = 0 if own.context_R is None else int(own.context_R[chosen_R].sum())
    supervised = int((own.end_R[chosen_R] - own.first_R[chosen_R]).sum()) - context
    users = len(np.unique(events.user_start_E[rows.event_R[chosen_R]])) if job.settings.split == "users" else 0
    return {"rows": len(chosen_R), "supervised": supervised, "users": users, "labels": labels}


def _count_labels(column: pa.ChunkedArray) -> tuple[int, int]:
    values = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    ones = pc.sum(pc.equal(values.cast(pa.float64()), 1.0)).as_py() or 0
    return len(values) - values.null_count, ones


def _report(job: Job, events: int, dropped: Counter[str], parts: list[dict[str, Any]], seconds: float) -> PrepareReport:
    segments: dict[str, SegmentReport] = {}
    for part in parts:
        for name, found in part["segments"].items():
            report = segments.setdefault(name, SegmentReport(name.partition("=")[2]))
            report.rows += found["rows"]
            report.supervised += found["supervised"]
            report.users += found["users"]
            for label, (observed, positives) in found["labels"].items():
                before = report.labels.get(label, (0, 0))
                report.labels[label] = (before[0] + observed, before[1] + positives)
    short = sum(part["short"] for part in parts)
    if short:
        dropped[f"examples with fewer than {job.settings.min_history} earlier events (they stay in histories)"] = short
    ordered = tuple(segments[name] for name in sorted(segments))
    rows, supervised = sum(s.rows for s in ordered), sum(s.supervised for s in ordered)
    return PrepareReport(events, rows, supervised, dict(dropped), ordered, job.partitions, seconds)
