"""The trainer's one iterator of batches, from a position on; two executors carry the windows, the same batches bit for
bit."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from pipelines.batch import Batch, Position
from pipelines.carry import carry_window
from pipelines.config import Data
from pipelines.errors import DataError
from pipelines.windows import Pass, Window

Job = Callable[[], Iterable[list[Batch]] | None]


@dataclass(frozen=True)
class Source:
    """jobs: each answers with the batches of one or more windows, window after window, in the pass's order; the answer
    None is the end. close: the rank takes no more of them."""

    jobs: Iterator[Job]
    close: Callable[[], None]


class Executor(Protocol):
    """Says how a rank's windows are fetched. threads: at a time. windows_ahead: jobs before they are asked for."""

    threads: int
    windows_ahead: int

    def open(self, pass_: Pass, world_size: int, rank: int, start: Position | None) -> Source:
        """Begins a pass for a rank, at the window that holds `start`."""
        ...


class BatchStream(Iterator[Batch]):
    """Batches of one rank. Windows are fetched ahead from the first moment; an error in one is raised where its batches
    would be. `close` (also at the end of a `with`) stops the fetching."""

    def __init__(self, source: Source, threads: int, windows_ahead: int, skip: int) -> None:
        self._jobs, self._close_source = source.jobs, source.close
        self._windows_ahead, self._skip = windows_ahead, skip
        self._pool = ThreadPoolExecutor(threads, "windows")
        self._pending: deque[Future[Iterable[list[Batch]] | None]] = deque()
        self._windows: Iterator[list[Batch]] = iter(())
        self._ready: deque[Batch] = deque()
        self._closed = False
        self._fill()

    def __next__(self) -> Batch:
        try:
            while not self._ready:
                window = next(self._windows, None)
                if window is not None:
                    self._ready.extend(window[self._skip :])
                    self._skip = 0
                elif not self._fetch():
                    raise StopIteration
        except BaseException:
            self.close()
            raise
        return self._ready.popleft()

    @property
    def waiting(self) -> tuple[int, int]:
        """(batches, windows behind them) that are read and wait to be taken."""
        return len(self._ready), sum(job.done() for job in self._pending)

    def _fetch(self) -> bool:
        """The next job's windows; False at the end."""
        if self._closed or not self._pending:
            return False
        windows = self._pending.popleft().result()
        if windows is None:
            return False
        self._fill()
        self._windows = iter(windows)
        return True

    def close(self) -> None:
        """Stops; what was fetched and not yet taken is dropped."""
        if self._closed:
            return
        self._closed = True
        self._close_source()  # first: a job that waits for its turn is told that it is over
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
        self._windows = iter(())
        self._ready.clear()

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _fill(self) -> None:
        while len(self._pending) < self._windows_ahead:
            try:
                job = next(self._jobs, None)
            except DataError as error:  # of planning the next segment: belongs after the batches that are ready
                self._jobs = iter([partial(_fail, error)])
                continue
            if job is None:
                return
            self._pending.append(self._pool.submit(job))


def batches(pass_: Pass, world_size: int, rank: int, start: Position | None, executor: Executor) -> BatchStream:
    """The rank's batch of every global batch of the pass, from `start` (the first one wanted; None = the beginning) on.

    Raises DataError: at once when the data are not the position's, later where rows are not as the schema says.
    """
    skip = 0
    if start is not None:
        next(pass_.windows_from(start))  # a position that does not fit the data is an error now
        skip = start.batch % pass_.data.window_batches
    source = executor.open(pass_, world_size, rank, start)
    return BatchStream(source, executor.threads, executor.windows_ahead, skip)


class ThreadExecutor:
    """Threads of this process. Every rank reads the windows that it has a part of, that is all: right for one or a few
    processes."""

    def __init__(self, windows_ahead: int = 4, threads: int = 0) -> None:
        self.windows_ahead = windows_ahead
        self.threads = threads or max(1, min(windows_ahead, (os.cpu_count() or 1) // 2))

    def open(self, pass_: Pass, world_size: int, rank: int, start: Position | None) -> Source:
        """See Executor. Nothing outlives the stream's threads."""
        jobs = (partial(_carry_one, window, pass_, world_size, rank) for window in pass_.windows_from(start))
        return Source(jobs, lambda: None)


def _carry_one(window: Window, pass_: Pass, world_size: int, rank: int) -> list[list[Batch]]:
    return [carry_window(window, pass_.reading, world_size, [rank])[rank]]


def _fail(error: DataError) -> list[list[Batch]] | None:
    raise error


def choose_executor(config: Data) -> tuple[str, str]:
    """("ray" or "threads", the reason). Never imports Ray to find out."""
    if config.executor != "auto":
        return config.executor, "data.executor says so"
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return "ray", "a Ray runs in this process: each window is read once for all ranks"
    return "threads", "no Ray runs in this process: every rank reads its windows itself"
