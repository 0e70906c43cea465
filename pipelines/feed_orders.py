"""Which windows each task of a pass carries, and when it may begin: few tasks, an early first batch, bounded memory."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator

from pipelines.errors import DataError
from pipelines.windows import Window

LARGEST_TASK = 64 * 2**20  # bytes: beyond this a task's own price no longer shows


class Orders:
    """Cuts a pass into orders of consecutive windows, numbered from 0, and keeps account of what is in flight.

    slots: tasks that run at once. budget: bytes that may be in flight: ordered, and not yet given to the trainer. The
    first orders are of one window each, so that a batch comes early and tells how many bytes a row has; then they
    double, up to `LARGEST_TASK` and to what lets every slot work within the budget; the last ones shrink, so that the
    slots end together. What is cut where changes no batch.
    """

    def __init__(self, windows: Iterator[Window], slots: int, budget: int) -> None:
        self._windows, self._slots, self._budget = windows, max(1, slots), budget
        self._ahead: deque[Window] = deque()
        self.error: DataError | None = None
        self._exhausted = False
        self._count = 0
        self._in_flight: dict[int, int] = {}  # bytes of each order, estimated until its blocks are there
        self._rows: dict[int, int] = {}
        self._seen_bytes = self._seen_rows = 0
        self.peak_bytes = 0  # of blocks that were there and not yet released
        self._present: dict[int, int] = {}

    @property
    def bytes_in_flight(self) -> int:
        """Of all orders that are not released, by estimate where their blocks are still to come."""
        return sum(self._in_flight.values())

    def look_ahead(self) -> None:
        """Plans far enough to cut the next order and to see the end coming. Blocks: a segment's footers may have to be
        read for it. Windows alone are touched here, so that another thread may keep the account meanwhile."""
        while not self._exhausted and len(self._ahead) < 2 * self._slots * self._ramp():
            try:
                window = next(self._windows, None)
            except DataError as error:  # of planning the next segment: belongs after the windows that are planned
                self.error = error
                window = None
            if window is None:
                self._exhausted = True
            else:
                self._ahead.append(window)

    def cut(self, wanted: int) -> tuple[Window, ...] | None:
        """The next order's windows; () where it has to wait; None when there are no more, or those that come have the
        `error`. After `look_ahead`.

        wanted: highest order that every rank asks for: it may always begin, or nothing would move.
        """
        if not self._ahead:
            return None
        windows = tuple(itertools.islice(self._ahead, self._size()))
        rows = sum(window.rows for window in windows)
        if self._count > wanted and not self._has_room(rows):
            return ()
        for _ in windows:
            self._ahead.popleft()
        self._in_flight[self._count], self._rows[self._count] = int(rows * self._bytes_a_row()), rows
        self._count += 1
        return windows

    def arrived(self, number: int, size: int) -> None:
        """An order's blocks are there, with these bytes in all."""
        self._seen_bytes += size
        self._seen_rows += self._rows.pop(number)
        self._in_flight[number] = self._present[number] = size
        self.peak_bytes = max(self.peak_bytes, sum(self._present.values()))

    def release(self, number: int) -> None:
        """All ranks are done with an order's blocks."""
        self._in_flight.pop(number, None)
        self._present.pop(number, None)

    def _has_room(self, rows: int) -> bool:
        if not self._seen_rows:
            return self._count < 2 * self._slots
        return self.bytes_in_flight + rows * self._bytes_a_row() <= self._budget

    def _bytes_a_row(self) -> float:
        return self._seen_bytes / self._seen_rows if self._seen_rows else 0.0

    def _size(self) -> int:
        """Windows of the next order."""
        if not self._seen_rows:
            return 1
        a_window = self._bytes_a_row() * self._ahead[0].rows
        largest = min(LARGEST_TASK, self._budget // (3 * self._slots))  # running, and as many again waiting
        size = min(self._ramp(), int(largest / max(1.0, a_window)))
        if self._exhausted:
            size = min(size, -(-len(self._ahead) // (2 * self._slots)))
        return max(1, size)

    def _ramp(self) -> int:
        return 1 << min(6, self._count // self._slots)
