"""The feed: one actor a run, which opens a Ray Data pipeline for every pass and hands each rank the references of its
blocks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

from pipelines.batch import Position
from pipelines.feed_dataset import configure, pass_dataset, warm
from pipelines.feed_orders import Orders
from pipelines.feed_pass import FeedPass
from pipelines.payload import Carry
from pipelines.windows import Pass

MEET_SECONDS, MEET_POLLS = 5.0, 100


class WindowFeed:
    """The actor. memory_mb: MiB of windows in flight a node. num_cpus: of a read task. Methods run in one event loop;
    what blocks runs in threads."""

    def __init__(self, memory_mb: int, num_cpus: float) -> None:
        import ray  # noqa: PLC0415

        configure()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        self._num_cpus = num_cpus
        self._slots = max(1, int(ray.available_resources().get("CPU", 1) / num_cpus))
        self._budget = memory_mb * 2**20 * max(1, len(nodes))
        self._passes: dict[str, FeedPass] = {}
        self._closed: dict[str, dict[str, Any]] = {}
        self._met = 0
        own = ray.get_runtime_context().current_actor
        self._warming = threading.Thread(target=self._warm, args=(own,), name="feed-warm", daemon=True)
        self._warming.start()

    def _warm(self, own: Any) -> None:
        with contextlib.suppress(Exception):  # what is wrong shows, with its place, when a pass is opened
            warm(own, self._slots, self._num_cpus)

    async def meet(self) -> None:
        """For `warm`: returns when all its tasks are there, or after a while where Ray has less room than it said."""
        self._met += 1
        for _ in range(MEET_POLLS):
            if self._met > self._slots:  # as many readers as slots, and the task that hands out orders
                return
            await asyncio.sleep(MEET_SECONDS / MEET_POLLS)

    async def ready(self) -> bool:
        """True once worker processes are there and have imported what they need."""
        await asyncio.to_thread(self._warming.join)
        return True

    async def open(self, key: str, pass_: Pass, world_size: int, start: Position | None, carry: Carry) -> None:
        """Begins a pass, for the rank that comes first."""
        import ray  # noqa: PLC0415

        if key not in self._passes and key not in self._closed:
            orders = Orders(pass_.windows_from(start), self._slots, self._budget)
            own = ray.get_runtime_context().current_actor
            dataset = pass_dataset(own, key, pass_.reading, world_size, self._num_cpus, carry)
            self._passes[key] = FeedPass(dataset, orders, world_size, self._warming)

    async def order(self, key: str, number: int) -> bytes | None:
        """For `hand_out`: the windows of the number-th order, pickled, once it may begin; None after the last."""
        return await self._passes[key].order(number) if key in self._passes else None

    async def take(self, key: str, rank: int, index: int, done: int) -> list[Any]:
        """[reference of the rank's block of the index-th order], or [] after the last. done: the rank has given out all
        batches of the orders before this one. Raises what the pass failed with."""
        return await self._passes[key].take(rank, index, done) if key in self._passes else []

    async def leave(self, key: str, rank: int) -> None:
        """A rank takes no more of a pass; the last one ends it."""
        found = self._passes.get(key)
        if found is not None and await found.leave(rank):
            self._closed[key] = await found.account()
            del self._passes[key]

    async def account(self, key: str) -> dict[str, Any]:
        """What became of a pass: see FeedPass.account."""
        return await self._passes[key].account() if key in self._passes else self._closed[key]
