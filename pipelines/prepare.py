"""`data prepare`: event logs → request rows, on Ray Data.

    units (file, row groups), tails  →  shuffle: runs on disk, dealt to cells of the hash space of users
    [split = "fractions"]            →  the cuts through the global order of supervised events
    partitions (of whole cells)      →  slices that fit in memory → order, histories, rows → a file a segment
    a new folder                     →  in its place in one rename; else its segments are swapped in by a journal

Same log, settings and as_of, same bytes, whatever the memory and cores; with other `partitions`, the same rows in other
files. A row knows events strictly before its time or, with `Schema.ties = "order"`, earlier in the stated order. The
rules: docs/prepare.md.
"""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from pathlib import Path

from pipelines.config import Data
from pipelines.errors import DataError
from pipelines.folders import fresh_folder
from pipelines.prepare_job import Job, make_job
from pipelines.prepare_labels import parse_time
from pipelines.prepare_output import NEW, is_prepared, opened
from pipelines.prepare_report import PrepareReport, SegmentReport
from pipelines.schema import Schema

__all__ = ["PrepareReport", "SegmentReport", "prepare"]


def prepare(
    schema: Schema,
    data: Data,
    out: Path,
    *,
    ray_address: str = "",
    num_cpus: int | None = None,
    refresh: bool = False,
    as_of: str = "",
) -> PrepareReport:
    """Writes `out/SEGMENT/part-NNNNN.parquet`, whole or not at all; on a cluster all nodes must see the folder `out`.

    Where `out` was prepared before, adds the days that are new; with `refresh` also makes anew what changed. as_of: in
    the place of `data.prepare.as_of`. Uses the Ray that this process has; else `ray_address`; else an embedded one with
    `num_cpus` (all cores). Raises SchemaError where schema and settings do not fit, DataError where the log is bad or
    `out` holds something else.
    """
    from pipelines.prepare_change import change, create  # noqa: PLC0415 - imports Ray, which takes seconds
    from pipelines.prepare_ray import ray_session  # noqa: PLC0415

    started = time.perf_counter()
    asked = parse_time(as_of) if as_of else None
    if is_prepared(out):
        with opened(out), ExitStack() as stack:
            job = _make_job(schema, data, out / NEW)

            def start_ray() -> None:  # not where there is nothing to do
                stack.enter_context(ray_session(ray_address, num_cpus))

            return change(job, out, _moment(asked, job), start_ray, refresh=refresh, started=started)
    if refresh:
        raise DataError(f"'{out}' holds no prepared rows → --refresh renews what is there → prepare without it first")
    with fresh_folder(out) as folder:
        job = _make_job(schema, data, folder)
        with ray_session(ray_address, num_cpus):
            report = create(job, folder, _moment(asked, job), started=started)
        shutil.rmtree(job.shuffle)
        return report


def _moment(asked: int | None, job: Job) -> int | None:
    """as_of: what was asked for, else what the settings say, else None."""
    return parse_time(job.settings.as_of) if asked is None and job.settings.as_of else asked


def _make_job(schema: Schema, data: Data, folder: Path) -> Job:
    shuffle = folder / "_shuffle"
    shuffle.mkdir()
    return make_job(schema, data, str(folder), str(shuffle))
