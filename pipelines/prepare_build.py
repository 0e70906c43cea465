"""The two stages of `data prepare`: the shuffle, then partitions to files. How many tasks, cells, files there are."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.errors import DataError
from pipelines.prepare_job import Job, Unit
from pipelines.prepare_labels import windows_of
from pipelines.prepare_ray import cpus, run_tasks
from pipelines.prepare_shuffle import deal_group, deal_inputs, groups_of, run_limit
from pipelines.prepare_split import check_segment_times, find_cuts
from pipelines.prepare_update import FileFacts, Update
from pipelines.prepare_work import COPIES, Work, cost, save_layout
from pipelines.prepare_write import build_partition

log = logging.getLogger(__name__)

UNIT_EVENTS = 250_000  # at most, about; see pipelines.prepare_job
FILE_EVENTS = 16_384  # of one segment in one file
MAX_FILES = 4096  # a segment
MIN_SHARE = 64 << 20  # bytes of memory with which a task can work; with less there are fewer tasks at a time
TAILS_A_TASK = 8


@dataclass
class Reading:
    """What the shuffle has seen. files: {path: {"events", "days"}}. late: {path: {day: events}}. spans:
    (segment of the manifest, first, last time) of units. Times: in microseconds."""

    files: FileFacts = field(default_factory=dict)
    late: dict[str, dict[int, int]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    events: int = 0
    tails: int = 0
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    first: int = 2**63 - 1
    last: int = -(2**63)

    @property
    def days(self) -> set[int]:
        """Days of which events were taken."""
        late = {(path, day) for path, days in self.late.items() for day in days}
        return {day for path, facts in self.files.items() for day in facts["days"] if (path, day) not in late}


@dataclass(frozen=True)
class Shuffled:
    """Events dealt to cells."""

    work: Work
    reading: Reading


def shuffle(job: Job, update: Update, facts: FileFacts, tails: Sequence[str], partitions: int) -> Shuffled:
    """Deals the log's events and those of saved tails to cells. partitions: files a segment; 0 = yet to be said."""
    settings = job.settings
    tasks = max(1, min(cpus(), settings.memory_mb * 2**20 // MIN_SHARE))
    share = settings.memory_mb * 2**20 // tasks
    size = {path: fact["bytes"] for path, fact in facts.items()}
    part_read = sum(size[path] for path in update.read) / max(sum(size.values()), 1)
    rows = math.ceil(job.rows * part_read) + sum(os.path.getsize(path) for path in tails) // 20
    units = [unit for unit in job.units if unit.path in update.read]
    if UNIT_EVENTS * _event_bytes(job.log_schema) * COPIES > share // 2:
        units = [replace(unit, first=group, end=group + 1) for unit in units for group in range(unit.first, unit.end)]
    work = Work(
        replace(job, units=()), (), share, tasks, after=update.after, write=update.write, write_from=update.write_from
    )
    estimate = rows * _event_bytes(job.log_schema)
    work = replace(work, job=replace(work.job, partitions=_cells(work, cost(rows, estimate), rows, partitions)))
    work = replace(work, inputs=_inputs(work, tails, units))
    work = replace(work, per_group=groups_of(work, estimate))
    save_layout(job.shuffle, work.per_group)
    log.info("reading %d units of the log, %d tasks at a time with %d MiB each", len(units), tasks, share >> 20)
    reading = _merge(run_tasks(partial(deal_inputs, work), len(work.inputs), "reading the log", tasks))
    problems = check_segment_times(job, reading.spans)
    if problems:
        raise DataError(problems)
    work = replace(work, inputs=())
    if work.per_group:
        groups = math.ceil(work.cells / work.per_group)
        run_tasks(partial(deal_group, work), groups, "dealing again", tasks)
        shutil.rmtree(f"{job.shuffle}/groups")
    return Shuffled(work, reading)


def build(
    shuffled: Shuffled, target: Path, as_of: int, states: Sequence[int], partitions: int
) -> tuple[Work, list[Any]]:
    """Writes the segments below `target`. Returns what was done, and the answer of each partition."""
    work, reading = shuffled.work, shuffled.reading
    if reading.events + reading.tails == 0:
        raise DataError(
            [f"all events dropped: {n:,} {what} → rows need them → fix the log" for what, n in reading.dropped.items()]
        )
    run = partial(run_tasks, limit=work.tasks)
    cuts = find_cuts(work.job, reading.first, reading.last, lambda task, count: run(task, count, "finding the cuts"))
    if not partitions:
        segments = len(reading.days) if work.job.settings.split == "time" else 2
        wanted = math.ceil(reading.events / segments / FILE_EVENTS)
        partitions = min(_power_of_two(wanted), work.cells, MAX_FILES)
    log.info("building request rows, %d files a segment", partitions)
    windows = windows_of(work.job.settings)
    work = replace(work, partitions=partitions, as_of=as_of, windows=windows, states=tuple(states), target=str(target))
    parts = run(lambda index: build_partition(work, index, cuts), partitions, "building rows")
    return work, parts


def _cells(work: Work, needed: int, rows: int, partitions: int) -> int:
    """A multiple of the files a segment, so many that one most likely fits into half of what a slice may cost."""
    cells = math.ceil(needed / (work.limit / 2))
    if partitions:
        return partitions * _power_of_two(math.ceil(cells / partitions))
    return _power_of_two(max(cells, min(math.ceil(rows / FILE_EVENTS), MAX_FILES)))


def _inputs(work: Work, tails: Sequence[str], units: Sequence[Unit]) -> tuple[tuple[Unit | str, ...], ...]:
    """A reading task is about one run, but there are two tasks for each that works at a time."""
    unit_bytes = UNIT_EVENTS * _event_bytes(work.job.log_schema)
    per_task = max(min(math.ceil(len(units) / (2 * work.tasks)), run_limit(work) // unit_bytes), 1)
    saved = [tuple(tails[first : first + TAILS_A_TASK]) for first in range(0, len(tails), TAILS_A_TASK)]
    return (*saved, *(tuple(units[first : first + per_task]) for first in range(0, len(units), per_task)))


def _event_bytes(schema: pa.Schema) -> int:
    """A guess."""
    sizes = 0
    for column in schema:
        try:
            sizes += max(column.type.bit_width // 8, 1)
        except ValueError:
            sizes += 64 if pa.types.is_nested(column.type) else 24
    return max(sizes, 1)


def _merge(answers: Sequence[dict[str, Any]]) -> Reading:
    reading = Reading()
    for answer in answers:
        for path, facts in answer["files"].items():
            mine = reading.files.setdefault(path, {"events": 0, "days": Counter()})
            mine["events"] += facts["events"]
            mine["days"].update({int(day): number for day, number in facts["days"].items()})
        for path, days in answer["late"].items():
            found = Counter(reading.late.get(path, {}))
            found.update({int(day): number for day, number in days.items()})
            reading.late[path] = dict(found)
        reading.dropped.update(answer["dropped"])
        reading.tails += answer["tails"]
        reading.spans += [(code, first, last) for code, first, last in answer["spans"]]
        reading.first, reading.last = min(reading.first, answer["first"]), max(reading.last, answer["last"])
    reading.events = sum(facts["events"] for facts in reading.files.values())
    return reading


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()
