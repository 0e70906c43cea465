"""Numbered tasks on Ray Data, and a small Ray of our own where none runs."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.errors import DataError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no network at run time; read when Ray is first imported

import pyarrow as pa
import ray
import ray.data

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def ray_session(address: str, num_cpus: int | None) -> Iterator[None]:
    """The Ray of this process if it has one; else the cluster at `address`; else an embedded one for the block."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    ours = not ray.is_initialized()
    if ours and address:
        ray.init(address=address, **quiet)
    elif ours:
        cpus = num_cpus or len(os.sched_getaffinity(0))
        log.info("starting an embedded Ray on %d cores, because none runs here", cpus)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    for name, level in (("ray.data", logging.WARNING), ("ray.data._internal.progress", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def cpus() -> int:
    """Of the Ray that runs."""
    return max(int(ray.cluster_resources().get("CPU", 1)), 1)


def run_tasks(task: Callable[[int], Any], count: int, what: str = "", limit: int | None = None) -> list[Any]:
    """[task(0), …, task(count − 1)], in parallel, at most `limit` at a time; answers travel as JSON. `what` is done:
    shown while it is.

    Raises DataError with the problems of every task that raised one.
    """
    if count == 0:
        return []

    def answer(row: dict[str, int]) -> dict[str, Any]:
        try:
            return {"index": row["index"], "answer": json.dumps({"value": task(row["index"])})}
        except DataError as error:  # as data: Ray would wrap it, and stop at the first
            return {"index": row["index"], "answer": json.dumps({"problems": error.problems})}
        finally:
            _give_back_memory()

    # One block an item: a task each. Ray's own file reading takes seconds to its first row.
    items = ray.data.from_items([{"index": index} for index in range(count)], override_num_blocks=count)
    compute = ray.data.TaskPoolStrategy(min(limit or count, count))
    rows = []
    with progress(what, count) as done:
        for row in items.map(answer, num_cpus=1, compute=compute).iter_rows():
            rows.append(row)
            done(len(rows))
    answers = [json.loads(row["answer"]) for row in sorted(rows, key=lambda row: row["index"])]
    problems = [problem for found in answers for problem in found.get("problems", [])]
    if problems:
        raise DataError(problems)
    return [found["value"] for found in answers]


def _give_back_memory() -> None:
    """What allocators keep for later would count against the budget of the tasks in other processes."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


@contextmanager
def progress(what: str, count: int) -> Iterator[Callable[[int], None]]:
    """Yields what is to be called with the number of tasks that are done: a bar on a terminal, else a line now and
    then."""
    if not what:
        yield lambda done: None
    elif sys.stderr.isatty():
        from rich.console import Console  # noqa: PLC0415 - only where somebody looks
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=count)
            yield lambda done: bar.update(task, completed=done)
    else:
        said = time.monotonic()

        def tell(done: int) -> None:
            nonlocal said
            if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                log.info("%s: %d of %d tasks done", what, done, count)

        yield tell
