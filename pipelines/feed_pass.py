"""One pass inside the feed's actor: its pipeline, its account, and the blocks that ranks have not taken yet."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import pickle
import threading
import time
from collections.abc import Generator
from typing import Any

from pipelines.errors import DataError
from pipelines.feed_orders import Orders

NOTHING = pickle.dumps(())


class FeedPass:
    """A thread runs the Ray Data pipeline; the methods run in the actor's event loop, which alone changes what is
    here."""

    def __init__(self, dataset: Any, orders: Orders, world_size: int, warming: threading.Thread) -> None:
        self._dataset, self._orders, self._world_size = dataset, orders, world_size
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Condition()
        self._changes = 0
        self._planning = asyncio.Lock()
        self._pickled: dict[int, bytes] = {}  # orders in flight
        self._ordered = 0
        self._all_ordered = False
        self._arrived = 0
        self._blocks: dict[int, dict[int, Any]] = {}  # {order: {rank: reference}}, until taken
        self._wanted = dict.fromkeys(range(world_size), -1)  # by each rank that has not left
        self._done = dict.fromkeys(range(world_size), 0)
        self._released = 0
        self._over = False
        self._error: BaseException | None = None
        self._intervals: list[tuple[float, float]] = []
        self._began, self._first_seconds = time.perf_counter(), 0.0
        self._thread = threading.Thread(target=self._run, args=(warming,), name="feed-pass", daemon=True)
        self._thread.start()

    async def order(self, number: int) -> bytes | None:
        """The windows of the number-th order, pickled, once it may begin; None after the last."""
        async with self._planning:
            while number >= self._ordered:
                changes = self._changes
                if self._all_ordered or not self._wanted:
                    return None
                await asyncio.to_thread(self._orders.look_ahead)
                windows = self._orders.cut(min(self._wanted.values(), default=-1))
                if windows is None:
                    self._all_ordered = True
                elif windows:
                    self._pickled[self._ordered] = pickle.dumps(windows)
                    self._ordered += 1
                else:
                    async with self._changed:
                        while self._changes == changes:
                            await self._changed.wait()
        # Released orders are asked for only where the asking task is run again: nobody waits for the answer.
        return self._pickled.get(number, NOTHING)

    async def take(self, rank: int, index: int, done: int) -> list[Any]:
        """[reference of the rank's block of the index-th order], or [] after the last. done: orders whose batches the
        rank has given out. Raises what the pass failed with, at the same place for every rank."""
        if rank in self._wanted:
            self._wanted[rank], self._done[rank] = index, done
            await self._release()
        async with self._changed:
            await self._changed.wait_for(lambda: index < self._arrived or self._over or rank not in self._wanted)
        if rank not in self._wanted:
            return []
        if index < self._arrived:
            return [self._blocks[index].pop(rank)]
        error = self._error or self._orders.error
        if error is not None:
            raise error
        return []

    async def leave(self, rank: int) -> bool:
        """A rank takes no more. True: it was the last one, and the pipeline has ended."""
        if self._wanted.pop(rank, None) is None:
            return False
        del self._done[rank]
        for blocks in self._blocks.values():
            blocks.pop(rank, None)
        await self._release()
        if self._wanted:
            return False
        await asyncio.to_thread(self._thread.join)
        return True

    async def account(self) -> dict[str, Any]:
        """What the pass took: orders; blocks waiting for their ranks; bytes_in_flight by now, estimates among them;
        peak_bytes that were there at once; tasks_at_once at most; seconds to the first blocks; Ray Data's own stats."""
        return {
            "orders": self._arrived,
            "blocks_waiting": sum(len(blocks) for blocks in self._blocks.values()),
            "bytes_in_flight": self._orders.bytes_in_flight,
            "peak_bytes": self._orders.peak_bytes,
            "tasks_at_once": overlap(self._intervals),
            "first_seconds": self._first_seconds,
            "stats": await asyncio.to_thread(self._dataset.stats),
        }

    async def _release(self) -> None:
        """Forgets the orders that every rank is done with: others may begin."""
        done = min(self._done.values(), default=self._arrived)
        for number in range(self._released, min(done, self._arrived)):
            self._orders.release(number)
            self._pickled.pop(number, None)
            self._blocks.pop(number, None)
            self._released = number + 1
        await self._notify()

    async def _notify(self) -> None:
        self._changes += 1
        async with self._changed:
            self._changed.notify_all()

    def _run(self, warming: threading.Thread) -> None:
        """The pipeline's thread, to the end of the pass or until no rank is left."""
        warming.join()
        error: BaseException | None = None
        try:
            with contextlib.closing(_entries(self._dataset)) as entries:
                while blocks := list(itertools.islice(entries, self._world_size)):
                    self._on_loop(self._arrive(blocks))
                    del blocks  # a reference kept here would keep the memory
                    if not self._wanted:
                        break
        except Exception as caught:
            error = root_cause(caught)
        self._on_loop(self._end(error))

    def _on_loop(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _arrive(self, blocks: list[Any]) -> None:
        self._first_seconds = self._first_seconds or time.perf_counter() - self._began
        self._blocks[self._arrived] = {rank: block.ref for rank, block in enumerate(blocks) if rank in self._wanted}
        self._orders.arrived(self._arrived, sum(block.metadata.size_bytes or 0 for block in blocks))
        carried = blocks[0].metadata.exec_stats
        if carried is not None:
            self._intervals.append((carried.start_time_s, carried.end_time_s))
        self._arrived += 1
        await self._release()

    async def _end(self, error: BaseException | None) -> None:
        self._error, self._over = error, True
        await self._notify()


def _entries(dataset: Any) -> Generator[Any]:
    """(reference, metadata) of each block in order. Closing it ends the execution."""
    for bundle in dataset.iter_internal_ref_bundles():
        yield from bundle.blocks


def overlap(intervals: list[tuple[float, float]]) -> int:
    """How many of the intervals share a moment, at most."""
    events = sorted([(begin, 1) for begin, _ in intervals] + [(end, -1) for _, end in intervals])
    return max(itertools.accumulate(change for _, change in events), default=0)


def root_cause(error: BaseException) -> BaseException:
    """The DataError inside Ray's wrappers, or the error itself."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, DataError):
            return DataError(inner.problems)
        inner = getattr(inner, "cause", None) or inner.__cause__
    return error
