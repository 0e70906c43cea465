"""Ways for a window to be hard to carry, for tests of the Ray feed: what a task runs in place of `carry_window`."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import ray

from pipelines.batch import Batch
from pipelines.carry import carry_window
from pipelines.reading import Reading
from pipelines.windows import Window


class Meeting:
    """An actor at which tasks wait for each other."""

    def __init__(self, size: int) -> None:
        self._size, self._here, self._full = size, 0, asyncio.Event()

    async def arrive(self) -> None:
        """Returns once as many are there as the meeting is for; at once from then on."""
        self._here += 1
        if self._here >= self._size:
            self._full.set()
        await self._full.wait()


@dataclass(frozen=True)
class Met:
    """No window is carried before as many tasks are at it as the meeting is for. meeting: the actor's name."""

    meeting: str

    def __call__(
        self, window: Window, reading: Reading, world_size: int, ranks: Iterable[int]
    ) -> dict[int, list[Batch]]:
        ray.get(ray.get_actor(self.meeting).arrive.remote())
        return carry_window(window, reading, world_size, ranks)


@dataclass(frozen=True)
class Killed:
    """The process that first carries the window of this index is killed in it. marker: a file that says that it was."""

    marker: Path
    index: int

    def __call__(
        self, window: Window, reading: Reading, world_size: int, ranks: Iterable[int]
    ) -> dict[int, list[Batch]]:
        if window.index == self.index and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return carry_window(window, reading, world_size, ranks)


@dataclass(frozen=True)
class Crashing:
    """A fault of the program, not of the data, in the window of this index."""

    index: int

    def __call__(
        self, window: Window, reading: Reading, world_size: int, ranks: Iterable[int]
    ) -> dict[int, list[Batch]]:
        if window.index == self.index:
            raise ZeroDivisionError("planted")
        return carry_window(window, reading, world_size, ranks)
