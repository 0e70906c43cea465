"""Numbered tasks on Ray Data, and a small Ray of our own where none runs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.errors import DataError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no network at run time; read when Ray is first imported

import ray
import ray.data

log = logging.getLogger(__name__)


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


def run_tasks(task: Callable[[int], Any], count: int) -> list[Any]:
    """[task(0), …, task(count − 1)], in parallel; answers travel as JSON.

    Raises DataError with the problems of every task that raised one.
    """

    def answer(row: dict[str, int]) -> dict[str, Any]:
        try:
            return {"index": row["index"], "answer": json.dumps({"value": task(row["index"])})}
        except DataError as error:  # as data: Ray would wrap it, and stop at the first
            return {"index": row["index"], "answer": json.dumps({"problems": error.problems})}

    # One block an item: a task each. Ray's own file reading takes seconds to its first row.
    items = ray.data.from_items([{"index": index} for index in range(count)], override_num_blocks=count)
    rows = items.map(answer, num_cpus=1).take_all()
    answers = [json.loads(row["answer"]) for row in sorted(rows, key=lambda row: row["index"])]
    problems = [problem for found in answers for problem in found.get("problems", [])]
    if problems:
        raise DataError(problems)
    return [found["value"] for found in answers]
