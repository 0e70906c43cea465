"""The Ray executor: one Ray Data pipeline a pass, in one named actor, feeds all ranks block by block."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Generator
from functools import partial
from typing import Any

from pipelines.batch import Batch, Position
from pipelines.errors import DataError
from pipelines.payload import batches_of, carry_block, order_block
from pipelines.stream import Source
from pipelines.windows import Pass


class RayExecutor:
    """Each window is read once by a Ray Data task, and every rank fetches its own block of it.

    name: of the feed's actor, the same at all ranks and new for each attempt of a run (a restarted worker must not meet
    the feed of the dead one). Every pass through `batches` has a feed of its own, named NAME-0, NAME-1 …: ranks begin
    passes in the same order.
    num_cpus: of a read task. One thread a rank fetches; the reading is Ray's. windows_a_dataset: a long run is planned
    in pieces.
    """

    threads = 1

    def __init__(self, name: str, windows_ahead: int = 4, num_cpus: float = 1.0, windows_a_dataset: int = 512) -> None:
        self.windows_ahead, self._name = windows_ahead, name
        self._num_cpus, self._windows_a_dataset = num_cpus, windows_a_dataset
        self._passes = itertools.count()
        self._feeds: list[Any] = []  # an actor lives as long as its maker's handle, and other ranks may be behind

    def open(self, pass_: Pass, world_size: int, rank: int, start: Position | None) -> Source:
        """See Executor. The rank that comes first makes the actor."""
        import ray  # noqa: PLC0415 - the other executor runs where Ray is not installed

        actor = ray.remote(WindowFeed).options(
            name=f"{self._name}-{next(self._passes)}",
            get_if_exists=True,
            num_cpus=0,
            placement_group_capture_child_tasks=False,  # reads use the whole cluster, not the trainers' share
        )
        feed = actor.remote(pass_, world_size, start, self._num_cpus, self._windows_a_dataset)
        self._feeds.append(feed)
        jobs = (partial(_fetch, feed, index, rank) for index in itertools.count())
        return Source(jobs, partial(_leave, feed, rank))


class WindowFeed:
    """The actor. Runs the pipeline as far as the ranks ask, and holds a window's blocks until each rank took its
    own."""

    def __init__(
        self, pass_: Pass, world_size: int, start: Position | None, num_cpus: float, windows_a_dataset: int
    ) -> None:
        self._world_size = world_size
        self._blocks = _blocks(pass_, world_size, start, num_cpus, windows_a_dataset)
        self._error: BaseException | None = None
        self._waiting: dict[int, dict[int, Any]] = {}
        self._pulled = 0
        self._left: set[int] = set()

    def get(self, index: int, rank: int) -> list[Any]:
        """[reference of the rank's block of the index-th window], or [] after the last. Raises DataError."""
        while self._pulled <= index:
            refs = self._pull()
            if not refs:
                return []
            self._waiting[self._pulled] = {r: ref for r, ref in enumerate(refs) if r not in self._left}
            self._pulled += 1
        window = self._waiting[index]
        ref = window.pop(rank)
        if not window:
            del self._waiting[index]
        return [ref]

    def _pull(self) -> list[Any]:
        """The next window's references. What fails once fails for every rank: none may take it for the end."""
        if self._error is not None:
            raise self._error
        try:
            return list(itertools.islice(self._blocks, self._world_size))
        except Exception as error:
            self._error = root_cause(error)
            raise self._error from None

    def leave(self, rank: int) -> None:
        """A rank is done; the last one ends the feed."""
        import ray  # noqa: PLC0415

        self._left.add(rank)
        for window in self._waiting.values():
            window.pop(rank, None)
        if len(self._left) == self._world_size:
            self._blocks.close()
            ray.actor.exit_actor()


def root_cause(error: BaseException) -> BaseException:
    """The DataError inside Ray's wrappers, or the error itself."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, DataError):
            return DataError(inner.problems)
        inner = getattr(inner, "cause", None) or inner.__cause__
    return error


def _fetch(feed: Any, index: int, rank: int) -> list[Batch] | None:
    import ray  # noqa: PLC0415

    try:
        refs = ray.get(feed.get.remote(index, rank))
        return batches_of(ray.get(refs[0]), rank) if refs else None
    except ray.exceptions.RayError as error:
        raise root_cause(error) from None


def _leave(feed: Any, rank: int) -> None:
    feed.leave.remote(rank)


def _blocks(
    pass_: Pass, world_size: int, start: Position | None, num_cpus: float, windows_a_dataset: int
) -> Generator[Any]:
    """References of the blocks, rank after rank, window after window. One Dataset after another, so that a long run
    does not begin by planning to its end."""
    import ray.data  # noqa: PLC0415

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1  # every block a task yields stays one of its own: one a rank
    context.enable_progress_bars = False
    for name in ("ray.data", "ray.data._internal.progress"):
        logging.getLogger(name).setLevel(logging.ERROR)  # one line a Dataset, at warning level
    windows = pass_.windows_from(start)
    arguments = {"reading": pass_.reading, "world_size": world_size}
    while orders := [order_block(window) for window in itertools.islice(windows, windows_a_dataset)]:
        dataset = ray.data.from_blocks(orders).map_batches(
            carry_block, batch_size=None, batch_format="pyarrow", fn_kwargs=arguments, num_cpus=num_cpus
        )
        for bundle in dataset.iter_internal_ref_bundles():
            yield from (entry.ref for entry in bundle.blocks)
