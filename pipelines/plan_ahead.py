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


def load(segment: Segment, cache: FooterCache, retries: int) -> Known:
    """Of one segment. Raises DataError: files that are not what was listed, or have no footer."""
    [known] = load_all([segment], cache.find, retries)
    if isinstance(known, DataError):
        raise known
    return known


def load_all(
    segments: Sequence[Segment],
    find: Callable[[Segment], Footers | None],
    retries: int,
    stop: threading.Event | None = None,
) -> list[Known | DataError]:
    """Of each segment, as found or from its files, or what is wrong with it; the store is asked for all at once."""
    segments = look_up(segments, retries)
    faults = _changes(segments, retries)
    footers = [None if fault else find(segment) for segment, fault in zip(segments, faults, strict=True)]
    missing = [at for at, fault in enumerate(faults) if footers[at] is None and not fault]
    for at, read in zip(missing, read_segments([segments[at] for at in missing], retries, stop), strict=True):
        footers[at] = read
    answers: list[Known | DataError] = []
    for segment, found, fault in zip(segments, footers, faults, strict=True):
        if found is None or found.problems:
            answers.append(DataError(fault if found is None else list(found.problems)))
        else:
            answers.append(Known(segment, found, fingerprint(segment, found)))
    return answers


def _changes(segments: Sequence[Segment], retries: int) -> list[list[str]]:
    """For each segment, what has become of its files since they were listed, when the process began: their size, or the
    time of their last change.

    Not found: a file replaced by one of the same size within what the store's clock can tell (S3: a second).
    """
    now = iter(stat_files([path for segment in segments for path in segment.files], retries))
    changes = []
    for segment in segments:
        before = zip(segment.files, segment.sizes, segment.changed, strict=True)
        found = [line for line in (_change(*was, next(now)) for was in before) if line]
        if len(found) > NAMED:
            found[NAMED:] = [
                f"segment '{segment.name}': {len(found) - NAMED} more of its {len(segment.files)} files have changed"
                " → a segment's files may not change under a run → restore them, or start the run again"
            ]
        changes.append(found)
    return changes


def _change(path: str, size: int, changed: int, now: File | None) -> str:
    if size < 0:  # there was none: reading its footer says so
        return ""
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
    paths = [_path_alone(path) for path in segment.files]
    folders = {posixpath.dirname(path) for path in paths}
    folder = posixpath.commonpath(folders) if len(folders) > 1 else "".join(folders)
    columns = [len(footers.schemas[index]) for index in footers.schema_F.tolist()]
    ends = np.cumsum(footers.counts_F).tolist()
    rows = footers.rows_G.tolist()
    digest = hashlib.sha256()
    begin = 0
    for path, size, end, width in zip(paths, segment.sizes, ends, columns, strict=True):
        name = path.removeprefix(folder).lstrip("/")
        digest.update(repr((name, size, tuple(rows[begin:end]), width)).encode())
        begin = end
    return digest.hexdigest()[:16]


def _path_alone(path: str) -> str:
    """Without a URI's scheme and options: what a copy in another store shares with the original."""
    return path.partition("://")[2].partition("?")[0] if "://" in path else path


class LoadAhead:
    """Loads segments in an order, small ones in groups; `take` gives them in that order, one by one.

    find, keep: called in the loading thread; what was kept for one epoch is found for the next. Two groups are under
    way or ready before they are asked for. `close` (also at the end of a `with`) stops what is.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        order: Iterable[int],
        find: Callable[[Segment], Footers | None],
        keep: Callable[[Known], object],
        retries: int,
    ) -> None:
        self._segments, self._order = segments, iter(order)
        self._find, self._keep, self._retries = find, keep, retries
        local = not segments or is_local(segments[0].files[0])
        self._group_files = 4 * (IN_FLIGHT_LOCAL if local else IN_FLIGHT)
        self._pool = ThreadPoolExecutor(1, "plan")
        self._pending: deque[tuple[list[int], Future[list[Known | DataError]]]] = deque()
        self._ready: deque[tuple[int, Known | DataError]] = deque()
        self._stop = threading.Event()
        self._fill()

    def take(self) -> tuple[int, Known]:
        """(index of the next segment, what is known of it). Raises DataError of that segment."""
        if not self._ready:
            group, future = self._pending.popleft()
            self._fill()
            self._ready.extend(zip(group, future.result(), strict=True))
        index, known = self._ready.popleft()
        if isinstance(known, DataError):
            raise known
        return index, known

    def close(self) -> None:
        """May be called twice."""
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> LoadAhead:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _fill(self) -> None:
        while len(self._pending) < 2 and (group := self._next_group()):
            self._pending.append((group, self._pool.submit(self._load, group)))

    def _load(self, group: list[int]) -> list[Known | DataError]:
        found = load_all([self._segments[index] for index in group], self._find, self._retries, self._stop)
        for known in found:
            if isinstance(known, Known):
                self._keep(known)
        return found

    def _next_group(self) -> list[int]:
        group: list[int] = []
        files = 0
        while files < self._group_files and len(group) < len(self._segments):  # none twice
            index = next(self._order, None)
            if index is None:
                break
            group.append(index)
            files += len(self._segments[index].files)
        return group


class Recent(Generic[Kept]):
    """The values used last, up to a total weight, and always the last one. Threads may share it."""

    def __init__(self, weight: Callable[[Kept], int], limit: int) -> None:
        self._weight, self._limit = weight, limit
        self._kept: OrderedDict[Hashable, Kept] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Kept | None:
        """None where it is not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Hashable, value: Kept) -> Kept:
        """Returns the value."""
        with self._lock:
            if key in self._kept:
                self._total -= self._weight(self._kept.pop(key))
            self._kept[key] = value
            self._total += self._weight(value)
            while self._total > self._limit and len(self._kept) > 1:
                self._total -= self._weight(self._kept.popitem(last=False)[1])
        return value
