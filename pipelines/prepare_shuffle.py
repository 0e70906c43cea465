"""The shuffle: events of the log and of saved tails, dealt to cells of the hash space of users.

    reading task: units in the order of the log → its share of memory full → a run, dealt to all cells
    [many runs × many cells] runs are first dealt to groups of cells, and then a task a group deals them to its cells

The second pass costs one more reading and writing, and keeps each read of a cell large: at 10⁹ events, thousands of
runs of thousands of cells would be tens of millions of reads of a few kilobytes.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.batch import Int64
from pipelines.prepare_events import DAY_MICROS, NEVER, cell_codes, micros, user_hash
from pipelines.prepare_job import Job, Unit
from pipelines.prepare_read import read_unit
from pipelines.prepare_runs import Deal, RunWriter, read_place
from pipelines.prepare_work import Work

MAX_READS = 200_000  # of one pass: runs × places


def run_limit(work: Work) -> int:
    """Bytes of a run: a task holds it three times while it is dealt, and its places, beside the unit being read."""
    return max(work.share // 8, 1 << 20)


def groups_of(work: Work, log_bytes: int) -> int:
    """Cells a group of the first pass; 0 where one pass is enough."""
    runs = max(len(work.inputs), math.ceil(log_bytes / run_limit(work)))
    if runs * work.cells <= MAX_READS:
        return 0
    return math.isqrt(work.cells - 1) + 1


def deal_inputs(work: Work, index: int) -> dict[str, Any]:
    """One reading task. Returns what it read.

    {"files": {path: {"events", "days": {day: events}}}, "late": {path: {day: events}}, "tails": events of saved tails,
    "dropped": {why: events}, "spans": [(segment of the manifest, first, last time)], "first", "last": times}. Raises
    DataError where a unit cannot be read.
    """
    job, per_group = work.job, work.per_group
    folder = f"{job.shuffle}/{'groups' if per_group else 'runs'}"
    places = math.ceil(work.cells / per_group) if per_group else work.cells
    writer = RunWriter(folder, f"{index:06d}", places, _deal(job, 0, max(per_group, 1)), run_limit(work))
    found = _Found()
    for source in work.inputs[index]:
        if isinstance(source, str):
            with pa.OSFile(source, "rb") as file, pa.ipc.open_stream(file) as reader:
                for batch in reader:
                    found.tails += batch.num_rows
                    writer.add(pa.Table.from_batches([batch]))
        else:
            writer.add(_read(work, source, found))
    writer.close()
    return found.answer()


def deal_group(work: Work, index: int) -> dict[str, Any]:
    """The second pass: a group's events to its cells."""
    job, first = work.job, index * work.per_group
    places = min(work.per_group, work.cells - first)
    writer = RunWriter(f"{job.shuffle}/group-{index:05d}", "000000", places, _deal(job, first, 1), run_limit(work))
    for table in read_place(f"{job.shuffle}/groups", [index], job.log_schema):
        writer.add(table)
    writer.close()
    return {}


def _deal(job: Job, first: int, per_place: int) -> Deal:
    def place(table: pa.Table) -> Int64:
        return (cell_codes(user_hash(job, table), job.partitions) - first) // per_place

    return place


class _Found:
    """What a reading task has seen."""

    def __init__(self) -> None:
        self.files: dict[str, Counter[int]] = {}
        self.events: Counter[str] = Counter()
        self.late: dict[str, Counter[int]] = {}
        self.dropped: Counter[str] = Counter()
        self.tails = 0
        self.spans: list[tuple[int, int, int]] = []
        self.first, self.last = int(NEVER), -int(NEVER)

    def answer(self) -> dict[str, Any]:
        files = {path: {"events": self.events[path], "days": dict(days)} for path, days in self.files.items()}
        late = {path: dict(days) for path, days in self.late.items()}
        seen = {"files": files, "late": late, "tails": self.tails, "dropped": dict(self.dropped)}
        return seen | {"spans": self.spans, "first": self.first, "last": self.last}


def _read(work: Work, unit: Unit, found: _Found) -> pa.Table:
    """Events of a unit that are not of segments before `work.after`: those are in the saved tails, or late."""
    job = work.job
    table, dropped = read_unit(job, unit)
    found.dropped.update(dropped)
    time_E = micros(table[job.time], job.schema.time_unit)
    days = found.files.setdefault(unit.path, Counter())
    found.events[unit.path] += table.num_rows
    if job.settings.split == "time":
        days.update(_count(time_E // DAY_MICROS))
    if work.after is not None:
        late_E = time_E // DAY_MICROS <= work.after
        if late_E.any():
            found.late.setdefault(unit.path, Counter()).update(_count(time_E[late_E] // DAY_MICROS))
            table, time_E = table.filter(pc.invert(pa.array(late_E))), time_E[~late_E]
    if len(time_E):
        first, last = int(time_E.min()), int(time_E.max())
        found.spans.append((unit.segment, first, last))
        found.first, found.last = min(found.first, first), max(found.last, last)
    return table


def _count(day_E: Int64) -> dict[int, int]:
    days, counts = np.unique(day_E, return_counts=True)
    return dict(zip(days.tolist(), counts.tolist(), strict=True))
