"""The Ray executor: windows are carried by Ray Data tasks, once for all ranks; a rank fetches its blocks from the run's
feed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from pipelines.batch import Batch, Position
from pipelines.carry import carry_window
from pipelines.feed_pass import root_cause
from pipelines.payload import Carry, batches_of
from pipelines.stream import Source
from pipelines.windows import Pass

# Of a read task: three tasks share two cores, so that the next one works while Ray hands out the last one's blocks.
READ_CPUS = 0.66
TAKES_AHEAD = 1  # of each rank: its next block is there before the one in use is empty


class RayExecutor:
    """Makes the run's feed, or joins the one that another rank made; it warms up from this moment on.

    name: of the feed's actor, the same at all ranks and new for each attempt of a run (a restarted worker must not meet
    the feed of the dead one). purpose: tells several executors of one feed apart. Ranks begin an executor's passes in
    the same order. memory_mb: MiB of windows in flight a node. num_cpus: of a read task. One thread a rank fetches; the
    reading is Ray's. carry: how a window is carried; tests put obstacles in.
    """

    threads = 1
    windows_ahead = TAKES_AHEAD

    def __init__(
        self,
        name: str,
        purpose: str = "pass",
        memory_mb: int = 512,
        num_cpus: float = 1.0,
        carry: Carry = carry_window,
    ) -> None:
        import ray  # noqa: PLC0415 - the other executor runs where Ray is not installed

        from pipelines.feed_actor import WindowFeed  # noqa: PLC0415

        actor = ray.remote(WindowFeed).options(
            name=name,
            get_if_exists=True,
            num_cpus=0,
            placement_group_capture_child_tasks=False,  # reads use the whole cluster, not the trainers' share
        )
        self._feed: Any = actor.remote(memory_mb, num_cpus)  # it lives as long as its maker's handle
        self._purpose, self._carry = purpose, carry
        self._passes = itertools.count()
        self._latest = ""

    def open(self, pass_: Pass, world_size: int, rank: int, start: Position | None) -> Source:
        """See Executor. The rank that comes first begins the pass."""
        self._latest = f"{self._purpose}-{next(self._passes)}"
        opened = self._feed.open.remote(self._latest, pass_, world_size, start, self._carry)
        fetcher = _Fetcher(self._feed, self._latest, rank, opened)
        return Source((partial(fetcher.fetch, index) for index in itertools.count()), fetcher.leave)

    def wait_until_warm(self) -> None:
        """Until the worker processes are there: what a benchmark calls a warm Ray."""
        import ray  # noqa: PLC0415

        ray.get(self._feed.ready.remote())

    def account(self) -> dict[str, Any]:
        """Of the latest pass: see pipelines.feed_pass.FeedPass.account."""
        import ray  # noqa: PLC0415

        found: dict[str, Any] = ray.get(self._feed.account.remote(self._latest))
        return found


class _Fetcher:
    """A rank's way through one pass."""

    def __init__(self, feed: Any, key: str, rank: int, opened: Any) -> None:
        self._feed, self._key, self._rank, self._opened = feed, key, rank, opened
        self._done = 0

    def fetch(self, index: int) -> Iterable[list[Batch]] | None:
        """The windows of the index-th order, or None after the last. Raises DataError."""
        import ray  # noqa: PLC0415

        try:
            ray.get(self._opened)  # an actor with an event loop keeps no order between calls
            refs = ray.get(self._feed.take.remote(self._key, self._rank, index, self._done))
            return self._windows(ray.get(refs[0])) if refs else None
        except ray.exceptions.RayError as error:
            raise root_cause(error) from None

    def _windows(self, block: Any) -> Iterator[list[Batch]]:
        yield from batches_of(block, self._rank)
        self._done += 1

    def leave(self) -> None:
        self._feed.leave.remote(self._key, self._rank)
