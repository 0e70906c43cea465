"""The plan of a run's order, made from footers alone: which rows form which window and which global batches, before any
row is read.

The row groups of a segment, in file order (`data.order = "time"`) or permuted by (seed, epoch, segment) (`"shuffle"`),
make one long sequence of rows. A window is a stretch of it of window_batches · global_batch rows; the last of a segment
may be shorter. Its rows are shuffled by (seed, epoch, segment, window) and cut into global batches. Under "shuffle" the
windows of all segments are then permuted by (seed, epoch). Nothing here depends on the world size. Segments enter by
name, never by their number: a run over one day and then another has the order of a run over both.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.batch import Int64, Position
from pipelines.config import Data
from pipelines.errors import DataError
from pipelines.footers import Footer, read_footers
from pipelines.hashing import derive_seed, permutation
from pipelines.reading import BY_LENGTH, Reading, RowCost
from pipelines.schema import Schema
from pipelines.segments import Segment


@dataclass(frozen=True)
class Stretch:
    """Rows first … last − 1 of a row group. file: index in the segment's files. start: row in the file of the row
    group's first row."""

    file: int
    path: str
    row_group: int
    start: int
    first: int
    last: int


@dataclass(frozen=True)
class Window:
    """The picklable order for one window. index: in its segment. shuffle_seed: None = rows stay in order. evaluation:
    train_only columns read as their `serve_as`."""

    epoch: int
    segment: int
    name: str
    fingerprint: str
    index: int
    first_batch: int
    global_batch: int
    rows: int
    shuffle_seed: int | None
    evaluation: bool
    stretches: tuple[Stretch, ...]

    @property
    def batches(self) -> int:
        return -(-self.rows // self.global_batch)

    def position(self, batch: int) -> Position:
        """Of the window's batch-th global batch."""
        return Position(self.epoch, self.segment, self.first_batch + batch, self.name, self.fingerprint)

    def order(self) -> Int64:
        """The window's rows, in the order in which batches are cut from them."""
        return np.arange(self.rows) if self.shuffle_seed is None else permutation(self.rows, self.shuffle_seed)


@dataclass(frozen=True, eq=False)
class SegmentPlan:
    """One segment in one epoch. files: what `Batch.file` counts. groups_G4: int64 [row groups in reading order, (file,
    row group, start row in the file, rows)]. ends_G: rows up to each group's end. Windows are made when asked for."""

    epoch: int
    segment: int
    name: str
    files: tuple[str, ...]
    fingerprint: str
    global_batch: int
    window_rows: int
    seed: int
    shuffle: bool
    groups_G4: Int64
    ends_G: Int64

    @property
    def rows(self) -> int:
        return int(self.ends_G[-1]) if len(self.ends_G) else 0

    @property
    def global_batches(self) -> int:
        return -(-self.rows // self.global_batch)

    @property
    def num_windows(self) -> int:
        return -(-self.rows // self.window_rows)

    @property
    def windows(self) -> Iterator[Window]:
        """In the segment's own order."""
        return (self.window(index) for index in range(self.num_windows))

    def window(self, index: int) -> Window:
        """The index-th window."""
        begin = index * self.window_rows
        end = min(begin + self.window_rows, self.rows)
        stretches = []
        group = int(np.searchsorted(self.ends_G, begin, side="right"))
        while begin < end:
            file, row_group, start, rows = (int(v) for v in self.groups_G4[group])
            first = begin - (int(self.ends_G[group]) - rows)
            last = min(rows, first + end - begin)
            stretches.append(Stretch(file, self.files[file], row_group, start, first, last))
            begin += last - first
            group += 1
        seed = derive_seed(self.seed, self.epoch, self.name, index, "rows") if self.shuffle else None
        rows = end - index * self.window_rows
        first_batch = index * (self.window_rows // self.global_batch)
        return Window(
            self.epoch, self.segment, self.name, self.fingerprint, index, first_batch, self.global_batch, rows, seed,
            not self.shuffle, tuple(stretches),
        )  # fmt: skip


def plan_segment(
    segment: Segment,
    data: Data,
    seed: int,
    epoch: int,
    *,
    index: int = 0,
    shuffle: bool = True,
    footers: Sequence[Footer] | None = None,
) -> SegmentPlan:
    """The plan of one segment. index: its place in the run's list. shuffle: False for evaluation. Raises DataError
    (footers)."""
    footers = read_footers(segment.files) if footers is None else footers
    groups_G4 = _row_groups(footers)
    if shuffle and data.order == "shuffle":
        groups_G4 = groups_G4[permutation(len(groups_G4), derive_seed(seed, epoch, segment.name, "row groups"))]
    return SegmentPlan(
        epoch=epoch,
        segment=index,
        name=segment.name,
        files=segment.files,
        fingerprint=fingerprint(footers),
        global_batch=data.global_batch,
        window_rows=data.global_batch * data.window_batches,
        seed=seed,
        shuffle=shuffle,
        groups_G4=groups_G4,
        ends_G=np.cumsum(groups_G4[:, 3]),
    )


def fingerprint(footers: Sequence[Footer]) -> str:
    """Of what decides a segment's plan: its files' names below their common folder, sizes, row groups' rows and number
    of columns."""
    folder = posixpath.commonpath([posixpath.dirname(footer.path) for footer in footers]) if footers else ""
    digest = hashlib.sha256()
    for footer in footers:
        name = footer.path.removeprefix(folder).lstrip("/")
        digest.update(repr((name, footer.size, footer.row_groups, len(footer.schema))).encode())
    return digest.hexdigest()[:16]


def _row_groups(footers: Sequence[Footer]) -> Int64:
    parts = [np.zeros((0, 4), np.int64)]
    for file, footer in enumerate(footers):
        rows = np.array(footer.row_groups, np.int64)
        parts.append(np.stack([np.full_like(rows, file), np.arange(len(rows)), np.cumsum(rows) - rows, rows], axis=1))
    groups_G4 = np.concatenate(parts)
    return groups_G4[groups_G4[:, 3] > 0]


class Pass:
    """The run's whole order over its segments and epochs. Footers of a segment are read when it is first needed, once.

    shuffle: False for evaluation: one epoch, segments and rows in order, no seed, train_only columns as served.
    A checkpoint saves the position of the last batch done; `position_after` of it is where a resumed run starts.
    quarantine, cost: see pipelines.reading, which readers get as `reading`.
    """

    def __init__(
        self,
        schema: Schema,
        data: Data,
        segments: Sequence[Segment],
        seed: int = 0,
        shuffle: bool = True,
        quarantine: str = "",
        cost: RowCost = BY_LENGTH,
    ) -> None:
        self.schema, self.data, self.segments = schema, data, tuple(segments)
        self.reading = Reading(schema, data, quarantine, cost)
        self.seed, self.shuffle = (seed if shuffle else 0), shuffle
        self.epochs = data.epochs if shuffle else 1
        self._footers: dict[int, list[Footer]] = {}

    def plan(self, epoch: int, segment: int) -> SegmentPlan:
        """Of the segment-th segment. Raises DataError (footers)."""
        chosen = self.segments[segment]
        if segment not in self._footers:
            self._footers[segment] = read_footers(chosen.files)
        return plan_segment(
            chosen, self.data, self.seed, epoch, index=segment, shuffle=self.shuffle, footers=self._footers[segment]
        )

    def total_rows(self) -> int:
        """Over all epochs. Reads every footer."""
        return self.epochs * sum(self.plan(0, s).rows for s in range(len(self.segments)))

    def total_batches(self) -> int:
        """Global batches over all epochs. Reads every footer."""
        return self.epochs * sum(self.plan(0, s).global_batches for s in range(len(self.segments)))

    def windows_from(self, position: Position | None = None) -> Iterator[Window]:
        """Windows in order, from the one that holds the position's batch. Raises DataError when the data are not the
        position's."""
        start = None if position is None else self._locate(position)
        for epoch in range(0 if position is None else position.epoch, self.epochs):
            windows = (
                self._shuffled(epoch, start)
                if self.shuffle and self.data.order == "shuffle"
                else self._in_time(epoch, start)
            )
            yield from windows
            start = None

    def position_after(self, position: Position) -> Position | None:
        """Of the next global batch, or None after the last. Raises DataError when the data are not the position's."""
        windows = self.windows_from(position)
        window = next(windows)
        following = position.batch + 1 - window.first_batch
        if following < window.batches:
            return window.position(following)
        window_after = next(windows, None)
        return None if window_after is None else window_after.position(0)

    def _locate(self, position: Position) -> tuple[int, int]:
        """(segment, window) of a position, by the segment's name."""
        segment = next((i for i, s in enumerate(self.segments) if s.name == position.name), None)
        if segment is None:
            raise DataError(
                f"the position is in segment '{position.name}' → the run's segments must hold it"
                " → add it to data.segments"
            )
        plan = self.plan(position.epoch, segment)
        if plan.fingerprint != position.fingerprint:
            raise DataError(
                f"segment '{position.name}' has fingerprint {plan.fingerprint}, the position {position.fingerprint}"
                " → a segment's files may not change under a run"
                " → restore them, or start a new run from its weights (--init-from)"
            )
        if position.epoch >= self.epochs or position.batch >= plan.global_batches:
            raise DataError(
                f"epoch {position.epoch}, batch {position.batch} of segment '{position.name}'"
                f" → the run has {self.epochs} epochs and"
                f" {plan.global_batches} batches there → keep data.epochs and data.global_batch as they were"
            )
        return segment, position.batch // self.data.window_batches

    def _in_time(self, epoch: int, start: tuple[int, int] | None) -> Iterator[Window]:
        first_segment, first_window = start or (0, 0)
        for segment in range(first_segment, len(self.segments)):
            plan = self.plan(epoch, segment)
            yield from (plan.window(index) for index in range(first_window, plan.num_windows))
            first_window = 0

    def _shuffled(self, epoch: int, start: tuple[int, int] | None) -> Iterator[Window]:
        plans = [self.plan(epoch, segment) for segment in range(len(self.segments))]
        counts = [plan.num_windows for plan in plans]
        segments = np.repeat(np.arange(len(plans)), counts)
        indices = np.concatenate([np.arange(count) for count in counts])
        order = permutation(len(indices), derive_seed(self.seed, epoch, "windows"))
        segments, indices = segments[order], indices[order]
        first = 0 if start is None else int(np.flatnonzero((segments == start[0]) & (indices == start[1]))[0])
        for segment, index in zip(segments[first:], indices[first:], strict=True):
            yield plans[segment].window(int(index))
