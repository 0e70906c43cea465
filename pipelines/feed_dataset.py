"""The Ray Data pipeline of a pass: one task hands out the feed's orders, the others carry their windows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.payload import Carry, carry_block
from pipelines.reading import Reading

if TYPE_CHECKING:
    from ray.data import Dataset


def configure() -> None:
    """Ray Data's settings in this process: blocks in order and as they are made; nothing printed."""
    import ray.data  # noqa: PLC0415
    from ray.data._internal.execution.resource_manager import ResourceManager  # noqa: PLC0415

    # A Dataset knows of no CPU until it asks a second time what the cluster has: after a whole second by default, which
    # every pass would wait for its first batch.
    ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = 0.1
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1  # every block a task yields stays one of its own: one a rank
    context.execution_no_progress_timeout_s = -1  # half an hour by default, and a trainer may evaluate for longer
    context.memory_usage_poll_interval_s = None  # a thread in every task that reads /proc
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.data._internal.progress"):
        logging.getLogger(name).setLevel(logging.ERROR)  # one line a Dataset, at warning level


def pass_dataset(feed: Any, key: str, reading: Reading, world_size: int, num_cpus: float, carry: Carry) -> Dataset:
    """One block a rank for each of the feed's orders, in their order.

    The orders come out of a task that streams them, because a Dataset's input has to be there when it starts, and a
    pass is planned as it goes. The streaming task needs no CPU of Ray's, which also keeps it from being fused with the
    tasks behind it.
    """
    import ray.data  # noqa: PLC0415

    start = ray.data.from_blocks([pa.table({"pass": [key]})])
    orders = start.map_batches(
        hand_out, batch_size=None, batch_format="pyarrow", fn_kwargs={"feed": feed}, num_cpus=0, concurrency=1
    )
    arguments = {"reading": reading, "world_size": world_size, "carry": carry}
    return orders.map_batches(
        carry_block, batch_size=None, batch_format="pyarrow", fn_kwargs=arguments, num_cpus=num_cpus
    )


def hand_out(passes: pa.Table, feed: Any) -> Iterator[pa.Table]:
    """The pass's orders, each as soon as the feed lets it begin. Run again after a failure, it gives the same ones."""
    import ray  # noqa: PLC0415

    [key] = passes.column("pass").to_pylist()
    number = 0
    while (order := ray.get(feed.order.remote(key, number))) is not None:
        yield pa.table({"order": pa.array([order], pa.binary())})
        number += 1


def warm(feed: Any, slots: int, num_cpus: float) -> None:
    """Starts Ray Data and a worker process for each task that will run at once, with what a task imports."""
    import ray.data  # noqa: PLC0415

    start = ray.data.from_blocks([pa.table({"slots": [slots]})])
    tickets = start.map_batches(
        _tickets, batch_size=None, batch_format="pyarrow", fn_kwargs={"feed": feed}, num_cpus=0, concurrency=1
    )
    tickets.map_batches(
        _meet, batch_size=None, batch_format="pyarrow", fn_kwargs={"feed": feed}, num_cpus=num_cpus
    ).materialize()


def _tickets(start: pa.Table, feed: Any) -> Iterator[pa.Table]:
    [slots] = start.column("slots").to_pylist()
    for slot in range(slots):
        yield pa.table({"slot": [slot]})
    _meet(start, feed)


def _meet(ticket: pa.Table, feed: Any) -> pa.Table:
    """Stays until all are there: one process would do all the tickets otherwise. This module's imports are a task's."""
    import ray  # noqa: PLC0415

    ray.get(feed.meet.remote())
    return ticket
