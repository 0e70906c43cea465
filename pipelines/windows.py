"""The plan of a run's order, made from footers alone: which rows form which window and which global batches, before any
row is read.

The row groups of a segment, in file order (`data.order = "time"`) or permuted by (seed, epoch, segment) (`"shuffle"`),
make one long sequence of rows. A window is a stretch of it of window_batches · global_batch rows; the last of a segment
may be shorter. Its rows are shuffled by (seed, epoch, segment, window) and cut into global batches. Under "shuffle" the
windows of all segments are then permuted by (seed, epoch). Nothing here depends on the world size. Segments enter by
name, never by their number: a run over one day and then another has the order of a run over both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.batch import Int64, Position
from pipelines.config import Data
from pipelines.errors import DataError
from pipelines.footer_cache import FooterCache
from pipelines.footer_table import Footers
from pipelines.hashing import derive_seed, permutation
from pipelines.plan_ahead import Known, LoadAhead, Recent, load
from pipelines.reading import BY_LENGTH, Reading, RowCost
from pipelines.schema import Schema
from pipelines.segments import Segment

# What a pass keeps of the segments used last: about 200 MB of footers, and as much of plans. An entry counts as so many
# row groups, for its own objects.
MOST_ROW_GROUPS, ENTRY = 2**23, 64


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
        group, behind = np.searchsorted(self.ends_G, [begin, end - 1], side="right").tolist()
        before = int(self.ends_G[group] - self.groups_G4[group, 3])  # rows before the group
        stretches = []
        for file, row_group, start, rows in self.groups_G4[group : behind + 1].tolist():
            first, last = max(0, begin - before), min(rows, end - before)
            stretches.append(Stretch(file, self.files[file], row_group, start, first, last))
            before += rows
        seed = derive_seed(self.seed, self.epoch, self.name, index, "rows") if self.shuffle else None
        rows = end - begin
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
    known: Known | None = None,
) -> SegmentPlan:
    """The plan of one segment. index: its place in the run's list. shuffle: False for evaluation. known: its footers;
    None = they are read. Raises DataError (footers)."""
    known = load(segment, FooterCache(None), data.read_retries) if known is None else known
    groups_G4 = _row_groups(known.footers)
    if shuffle and data.order == "shuffle":
        groups_G4 = groups_G4[permutation(len(groups_G4), derive_seed(seed, epoch, segment.name, "row groups"))]
    return SegmentPlan(
        epoch=epoch,
        segment=index,
        name=segment.name,
        files=segment.files,
        fingerprint=known.fingerprint,
        global_batch=data.global_batch,
        window_rows=data.global_batch * data.window_batches,
        seed=seed,
        shuffle=shuffle,
        groups_G4=groups_G4,
        ends_G=np.cumsum(groups_G4[:, 3]),
    )


def _row_groups(footers: Footers) -> Int64:
    """[row groups that have rows, (file, row group, start row in the file, rows)]."""
    counts_F, rows_G = footers.counts_F, footers.rows_G
    file_G = np.repeat(np.arange(len(counts_F)), counts_F)
    first_F = np.cumsum(counts_F) - counts_F  # each file's first row group
    before_G = np.cumsum(rows_G) - rows_G
    start_G = before_G - np.repeat(np.append(before_G, 0)[first_F], counts_F)
    groups_G4 = np.stack([file_G, np.arange(len(rows_G)) - np.repeat(first_F, counts_F), start_G, rows_G], axis=1)
    return groups_G4[rows_G > 0]


class Pass:
    """The run's whole order over its segments and epochs. A segment's footers are brought when it is first needed, the
    next segments' in the background; those used last are kept, in bounded memory.

    shuffle: False for evaluation: one epoch, segments and rows in order, no seed, train_only columns as served.
    A checkpoint saves the position of the last batch done; `position_after` of it is where a resumed run starts.
    quarantine, cost: see pipelines.reading, which readers get as `reading`. cache: where the check of the files has
    left their footers.
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
        cache: FooterCache | None = None,
    ) -> None:
        self.schema, self.data, self.segments = schema, data, tuple(segments)
        self.reading = Reading(schema, data, quarantine, cost)
        self.seed, self.shuffle = (seed if shuffle else 0), shuffle
        self.epochs = data.epochs if shuffle else 1
        self._cache = cache or FooterCache(None)
        self._mixed = shuffle and data.order == "shuffle"
        self._rows_S: Int64 = np.full(len(self.segments), -1)  # −1: not known yet
        self._loaded_epochs: set[int] = set()
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_known", "_plans")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_rows_S": state["_rows_S"].copy()})  # what Ray carries is read-only
        self._forget()

    def _forget(self) -> None:
        self._known: Recent[Known] = Recent(lambda k: ENTRY + len(k.footers.rows_G), MOST_ROW_GROUPS)
        self._plans: Recent[SegmentPlan] = Recent(lambda p: ENTRY + len(p.ends_G), MOST_ROW_GROUPS // 4)

    def plan(self, epoch: int, segment: int) -> SegmentPlan:
        """Of the segment-th segment. Raises DataError (footers, or files that are not what was listed)."""
        kept = self._plans.get((epoch, segment))
        if kept is not None:
            return kept
        known = self._known.get(self.segments[segment].name)
        if known is None:
            known = self._keep(segment, load(self.segments[segment], self._cache, self.data.read_retries))
        plan = plan_segment(
            self.segments[segment], self.data, self.seed, epoch, index=segment, shuffle=self.shuffle, known=known
        )
        return self._plans.put((epoch, segment), plan)

    def total_rows(self) -> int:
        """Over all epochs. Needs every footer."""
        return self.epochs * int(self._all_rows().sum())

    def total_batches(self) -> int:
        """Global batches over all epochs. Needs every footer."""
        return self.epochs * int(self._batches(self._all_rows()).sum())

    def batches_after(self, position: Position | None) -> int:
        """Global batches still to come when the one at `position` is done (None = none is): an estimate. Rows of
        segments that are not planned yet are taken from their bytes; no footer is read for it, but for the first
        segment's, and under "shuffle", which plans all of them anyway. position: of this pass."""
        batches_S = self._batches(self._all_rows() if self._mixed else self._estimated_rows())
        total = int(batches_S.sum())
        if position is None:
            return self.epochs * total
        segment = next(index for index, s in enumerate(self.segments) if s.name == position.name)
        window, within = divmod(position.batch, self.data.window_batches)
        done = position.epoch * total + within + 1
        if self._mixed:
            segments, indices = self._window_order(position.epoch)
            at = int(np.flatnonzero((segments == segment) & (indices == window))[0])
            left = batches_S[segments[:at]] - indices[:at] * self.data.window_batches
            done += int(np.minimum(left, self.data.window_batches).sum())
        else:
            done += int(batches_S[:segment].sum()) + window * self.data.window_batches
        return max(0, self.epochs * total - done)

    def windows_from(self, position: Position | None = None) -> Iterator[Window]:
        """Windows in order, from the one that holds the position's batch. Raises DataError when the data are not the
        position's, or a segment's files not what was listed, where that segment would begin."""
        start = None if position is None else self._locate(position)
        first_epoch = 0 if position is None else position.epoch
        if not self._mixed:
            yield from self._in_time(first_epoch, start or (0, 0))
            return
        for epoch in range(first_epoch, self.epochs):
            yield from self._shuffled(epoch, start)
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

    def _in_time(self, first_epoch: int, start: tuple[int, int]) -> Iterator[Window]:
        first_segment, first_window = start
        count = len(self.segments)
        ahead: LoadAhead | None = None
        try:
            for number in range(first_epoch * count + first_segment, self.epochs * count):
                if ahead is not None:
                    self._keep(*ahead.take())
                plan = self.plan(*divmod(number, count))
                for index in range(first_window, plan.num_windows):
                    yield plan.window(index)
                    if ahead is None:  # the first window is on its way: now there is time for the next segments
                        ahead = self._load_ahead(n % count for n in range(number + 1, self.epochs * count))
                first_window = 0
        finally:
            if ahead is not None:
                ahead.close()

    def _shuffled(self, epoch: int, start: tuple[int, int] | None) -> Iterator[Window]:
        if epoch not in self._loaded_epochs:  # the files are looked at once an epoch
            self._load(range(len(self.segments)))
            self._loaded_epochs.add(epoch)
        segments, indices = self._window_order(epoch)
        first = 0 if start is None else int(np.flatnonzero((segments == start[0]) & (indices == start[1]))[0])
        for segment, index in zip(segments[first:], indices[first:], strict=True):
            yield self.plan(epoch, int(segment)).window(int(index))

    def _window_order(self, epoch: int) -> tuple[Int64, Int64]:
        """(segment, window in it) of the epoch's windows, under "shuffle"."""
        counts = -(-self._all_rows() // (self.data.global_batch * self.data.window_batches))
        segments = np.repeat(np.arange(len(counts)), counts)
        indices = np.arange(len(segments)) - np.repeat(np.cumsum(counts) - counts, counts)
        order = permutation(len(indices), derive_seed(self.seed, epoch, "windows"))
        return segments[order], indices[order]

    def _load_ahead(self, order: Iterable[int]) -> LoadAhead:
        def keep(known: Known) -> None:
            self._known.put(known.segment.name, known)

        return LoadAhead(self.segments, order, self._find, keep, self.data.read_retries)

    def _find(self, segment: Segment) -> Footers | None:
        known = self._known.get(segment.name)
        return self._cache.find(segment) if known is None else known.footers

    def _load(self, order: Sequence[int]) -> None:
        with self._load_ahead(order) as ahead:
            for _ in order:
                self._keep(*ahead.take())

    def _keep(self, segment: int, known: Known) -> Known:
        self._rows_S[segment] = known.footers.rows
        return self._known.put(self.segments[segment].name, known)

    def _all_rows(self) -> Int64:
        """[segments]: rows of each, exactly."""
        self._rows_from_cache()
        self._load(np.flatnonzero(self._rows_S < 0).tolist())
        return self._rows_S

    def _estimated_rows(self) -> Int64:
        self._rows_from_cache()
        if len(self.segments) and not np.any(self._rows_S > 0):
            self.plan(0, 0)
        bytes_S = np.array([sum(segment.sizes) for segment in self.segments], np.int64)
        known_S = self._rows_S >= 0
        rate = self._rows_S[known_S].sum() / max(1, bytes_S[known_S].sum())
        return np.where(known_S, self._rows_S, np.ceil(rate * bytes_S).astype(np.int64))

    def _rows_from_cache(self) -> None:
        for segment in np.flatnonzero(self._rows_S < 0):
            rows = self._cache.rows(self.segments[segment])
            if rows is not None:
                self._rows_S[segment] = rows

    def _batches(self, rows_S: Int64) -> Int64:
        return -(-rows_S // self.data.global_batch)
