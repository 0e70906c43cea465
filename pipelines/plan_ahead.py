"""What a plan needs of a segment, brought ahead of time: its footers, checked against the store as it is now.

The next segments are loaded in the background while the present one is trained, so that the stream does not stall at a
segment's border.
"""

from __future__ import annotations

import hashlib
import posixpath
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

import numpy as np

from pipelines.errors import DataError
from pipelines.footer_cache import FooterCache
from pipelines.footer_table import Footers, read_segments
from pipelines.segments import Segment, look_up
from pipelines.storage import IN_FLIGHT, IN_FLIGHT_LOCAL, File, is_local, stat_files

NAMED = 8
Kept = TypeVar("Kept")


@dataclass(frozen=True, eq=False)
class Known:
    """A segment, its footers, and the fingerprint of what decides its plan."""

    segment: Segment
    footers: Footers
    fingerprint: str


def load(segment: Segment, cache: FooterCache, retries: int, stop: threading.Event | None = None) -> Known:
    """From the cache, or the files. Raises DataError: files that are not what was listed, or have no footer."""
    if segment.sizes:
        check_unchanged(segment, retries)
    else:
        [segment] = look_up([segment], retries)
    footers = cache.find(segment)
    if footers is None:
        [footers] = read_segments([segment], retries, stop)
    if footers.problems:
        raise DataError(list(footers.problems))
    return Known(segment, footers, fingerprint(segment, footers))


def check_unchanged(segment: Segment, retries: int) -> None:
    """Holds the files as they are against what was listed when the process began: size, and time of the last change.

    Not found: a file replaced by one of the same size within what the store's clock can tell (S3: a second). Raises
    DataError naming the files.
    """
    now = stat_files(segment.files, retries)
    before = zip(segment.files, segment.sizes, segment.changed, strict=True)
    found = [line for line in (_change(*was, file) for was, file in zip(before, now, strict=True)) if line]
    if len(found) > NAMED:
        found[NAMED:] = [
            f"segment '{segment.name}': {len(found) - NAMED} more of its {len(segment.files)} files have changed"
            " → a segment's files may not change under a run → restore them, or begin anew with what is there"
        ]
    if found:
        raise DataError(found)


def _change(path: str, size: int, changed: int, now: File | None) -> str:
    if now is None:
        return f"'{path}' does not exist any more → a segment's files may not change under a run → restore it"
    if now.size != size:
        what = f"has {now.size:,} bytes, and had {size:,} when the run began"
    elif now.changed != changed:
        what = f"was written again at {_clock(now.changed)}, and was of {_clock(changed)} when the run began"
    else:
        return ""
    return f"'{path}' {what} → a segment's files may not change under a run → restore it, or start the run again"


def _clock(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(timespec="milliseconds")


def fingerprint(segment: Segment, footers: Footers) -> str:
    """Of what decides a segment's plan: its files' names below their common folder, sizes, row groups' rows and number
    of columns. Not of when they were written: a copy of the data goes on where the original stopped."""
    folders = {posixpath.dirname(path) for path in segment.files}
    folder = posixpath.commonpath(folders) if folders else ""
    columns = [len(footers.schemas[index]) for index in footers.schema_F.tolist()]
    ends = np.cumsum(footers.counts_F).tolist()
    rows = footers.rows_G.tolist()
    digest = hashlib.sha256()
    begin = 0
    for path, size, end, width in zip(segment.files, segment.sizes, ends, columns, strict=True):
        name = path.removeprefix(folder).lstrip("/")
        digest.update(repr((name, size, tuple(rows[begin:end]), width)).encode())
        begin = end
    return digest.hexdigest()[:16]


class LoadAhead:
    """Loads segments in an order, several at a time where they are small; `take` gives them in that order.

    `close` (also at the end of a `with`) stops what is under way.
    """

    def __init__(self, segments: Sequence[Segment], order: Iterable[int], cache: FooterCache, retries: int) -> None:
        self._segments, self._order = segments, iter(order)
        self._cache, self._retries = cache, retries
        local = not segments or is_local(segments[0].files[0])
        threads = IN_FLIGHT_LOCAL if local else IN_FLIGHT
        self._most_files = 2 * threads
        self._pool = ThreadPoolExecutor(threads, "plan")
        self._pending: deque[tuple[int, Future[Known]]] = deque()
        self._files = 0
        self._stop = threading.Event()
        self._fill()

    def take(self) -> tuple[int, Known]:
        """(index of the next segment, what is known of it). Raises DataError of that segment."""
        index, future = self._pending.popleft()
        self._files -= len(self._segments[index].files)
        self._fill()
        return index, future.result()

    def close(self) -> None:
        """May be called twice."""
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> LoadAhead:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _fill(self) -> None:
        while not self._pending or self._files < self._most_files:
            index = next(self._order, None)
            if index is None:
                return
            segment = self._segments[index]
            self._files += len(segment.files)
            future = self._pool.submit(load, segment, self._cache, self._retries, self._stop)
            self._pending.append((index, future))


class Recent(Generic[Kept]):
    """The values used last, up to a total weight, and always the last one."""

    def __init__(self, weight: Callable[[Kept], int], limit: int) -> None:
        self._weight, self._limit = weight, limit
        self._kept: OrderedDict[Hashable, Kept] = OrderedDict()
        self._total = 0

    def get(self, key: Hashable) -> Kept | None:
        """None where it is not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Hashable, value: Kept) -> Kept:
        """Returns the value."""
        if key in self._kept:
            self._total -= self._weight(self._kept.pop(key))
        self._kept[key] = value
        self._total += self._weight(value)
        while self._total > self._limit and len(self._kept) > 1:
            self._total -= self._weight(self._kept.popitem(last=False)[1])
        return value
