"""One segment: what the run says it trained, held against what its files hold.

Memory: the records of the segment (about a byte a row and epoch), and ten bytes a row of one file at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.schema import Schema
from pipelines.segments import Segment
from trainer.audit_files import FileFooter, fingerprint_of, hashes_of_file, read_file_footers
from trainer.audit_lineage import Counted
from trainer.consumed_format import (
    Int64,
    Part,
    Record,
    UInt64,
    decode_rows,
    folder_of,
    hashed_columns,
    in_hex,
    segment_version,
    total,
)

SHOWN = 8  # ranges in a line
ONCE = "every row is read exactly once an epoch"
UInt16 = npt.NDArray[np.uint16]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be. kind: "missed", "repeated", "ids", "batches", "files", "record" or
    "lineage". rows: how many, repeats counted. ranges: (first, last) rows of the file. line: value → rule → remedy."""

    kind: str
    line: str
    segment: str = ""
    epoch: int | None = None
    file: str = ""
    rows: int = 0
    ranges: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Due:
    """How far an epoch of the segment must have been trained. batches: its first ones; None = any whole windows, while
    a shuffled epoch is under way. window, through: of the position, where it is in this segment."""

    batches: int | None
    window: int | None = None
    through: int = 0


@dataclass
class SegmentAudit:
    """rows: in the files now. read: over all epochs, repeats too, of which sampled_out and quarantined do not count in
    the model. not_yet: rows that the position says are still to come. versions: of the prepared segment, as it was
    trained; version_now: as it is. steps: first and last."""

    name: str
    rows: int = 0
    epochs: int = 0
    read: int = 0
    sampled_out: int = 0
    quarantined: int = 0
    not_yet: int = 0
    versions: set[int] = field(default_factory=set)
    version_now: int | None = None
    fingerprints: set[str] = field(default_factory=set)
    steps: tuple[int, int] | None = None
    findings: list[Finding] = field(default_factory=list)

    def count(self, kind: str) -> int:
        """Rows that were found to be so."""
        return sum(finding.rows for finding in self.findings if finding.kind == kind)

    def found(self, kind: str, what: str, rule: str, remedy: str, **of: object) -> None:
        """One more."""
        epoch = of.get("epoch")
        where = f"segment '{self.name}'" + ("" if epoch is None else f", epoch {epoch}")
        self.findings.append(Finding(kind, f"{where}: {what} → {rule} → {remedy}", self.name, **of))  # type: ignore[arg-type]


@dataclass
class _Told:
    """One record, and what the files say to it."""

    owner: str
    epoch: int
    record: Record
    places: int = 0
    ids: int = 0
    is_sure: bool = True

    @property
    def where(self) -> str:
        files = ", ".join(f"{p.file} rows {p.rows.first}–{p.rows.last}" for p in self.record.parts[:4])
        more = f" and {len(self.record.parts) - 4} more files" if len(self.record.parts) > 4 else ""
        return (
            f"window at batch {self.record.window}, steps {self.record.steps[0]}–{self.record.steps[1]}"
            f" ({self.owner}; {files}{more})"
        )


Parts: TypeAlias = list[tuple[_Told, Part]]


class SegmentAuditor:
    """due: {epoch: how far}."""

    def __init__(
        self, segment: Segment, schema: Schema, global_batch: int, window_batches: int, due: Mapping[int, Due]
    ) -> None:
        self._segment, self._schema, self._due = segment, schema, due
        self._global_batch, self._window_batches = global_batch, window_batches
        self._factors = hashed_columns(schema)
        self._told: list[_Told] = []
        self._parts: dict[str, Parts] = defaultdict(list)
        self._shares: dict[int, dict[tuple[int, ...], list[int]]] = defaultdict(dict)
        self.found = SegmentAudit(segment.name)

    def take(self, counted: Counted, rank: int, record: Record) -> None:
        """One of the segment's records."""
        owner = f"attempt {counted.header.attempt}, rank {rank}"
        told = _Told(owner, record.epoch, record)
        self._told.append(told)
        for part in record.parts:
            self._parts[part.file].append((told, part))
        key = (*record.batches, *record.steps, counted.header.world_size)
        share = self._shares[record.epoch].setdefault(key, [0, 0])
        share[0] += record.rows
        share[1] += 1
        found = self.found
        found.read += record.rows
        found.sampled_out += record.sampled_out
        found.quarantined += record.quarantined
        found.fingerprints.add(record.fingerprint)
        if record.version is not None:
            found.versions.add(record.version)
        before = found.steps or record.steps
        found.steps = (min(before[0], record.steps[0]), max(before[1], record.steps[1]))

    def close(self) -> SegmentAudit:
        """After the last record: reads the files."""
        footers, problems = read_file_footers(self._segment)
        for problem in problems:
            self.found.findings.append(Finding("files", problem, self._segment.name))
        self.found.rows = sum(footer.rows for footer in footers)
        self.found.epochs = len(self._shares)
        begin = 0
        if not problems:
            for epoch in sorted(self._shares.keys() | self._due.keys()):
                self._check_batches(epoch)
        for footer in footers:
            self._check_file(footer, begin)
            begin += footer.rows
        if not problems:
            self._check_version(fingerprint_of(footers))
        self._check_sums(unread=len(problems))
        return self.found

    def _check_version(self, fingerprint: str) -> None:
        """Files that were rewritten under a higher version, as late labels do it, may still hold the rows that were
        trained: then that is all there is to say."""
        self.found.version_now = segment_version(folder_of(self._segment.files))
        raised = self.found.version_now is not None and any(v < self.found.version_now for v in self.found.versions)
        others = sorted(self.found.fingerprints - {fingerprint})
        if others and not raised:
            self.found.found(
                "files",
                f"its fingerprint is {fingerprint}, it was trained as {', '.join(others)}",
                "a segment's files stay as they were trained",
                "restore them, or read below which rows differ",
            )

    def _check_batches(self, epoch: int) -> None:
        """Which global batches were trained, and whether all ranks together had all their rows."""
        batches = -(-self.found.rows // self._global_batch)
        trained: dict[int, int] = defaultdict(int)
        for (first, last, begin, end, ranks), (rows, told) in self._shares[epoch].items():
            wanted = min((last + 1) * self._global_batch, self.found.rows) - first * self._global_batch
            if (rows, told) != (wanted, ranks):
                self.found.found(
                    "batches",
                    f"batches {first}–{last} (steps {begin}–{end}) had {rows} rows at {told} ranks",
                    f"they are {max(wanted, 0)} rows at {ranks} ranks",
                    "look at the rows below",
                    epoch=epoch,
                )
            for batch in range(first, last + 1):
                trained[batch] += 1
        twice = [batch for batch, times in trained.items() if times > 1]
        for kind, found in (("were trained twice", twice), ("were not trained", self._absent(epoch, trained, batches))):
            for first, last in runs_of(np.array(sorted(found), np.int64)):
                self.found.found(
                    "batches", f"batches {first}–{last} {kind}", ONCE, "look at the rows below", epoch=epoch
                )

    def _absent(self, epoch: int, trained: Mapping[int, int], batches: int) -> list[int]:
        due = self._due.get(epoch, Due(0))
        if due.batches is not None:
            wanted: set[int] = set(range(min(due.batches, batches)))
        else:
            size = self._window_batches
            begun = {batch - batch % size for batch in trained}
            wanted = {batch for window in begun - {due.window} for batch in range(window, min(window + size, batches))}
            if due.window is not None:
                wanted |= set(range(due.window, due.through + 1))
        return sorted(wanted - trained.keys())

    def _check_file(self, footer: FileFooter, begin: int) -> None:
        """begin: rows of the segment before this file."""
        parts = self._parts.pop(footer.name, [])
        counts = {epoch: np.zeros(footer.rows, np.uint16) for epoch in self._shares.keys() | self._due.keys()}
        try:
            hashes = hashes_of_file(footer, self._schema, self._factors) if parts else None
        except (OSError, pa.ArrowException, TypeError) as error:
            why = str(error).splitlines()[0]
            line = f"'{footer.path}' cannot be read: {why} → audit reads every file that was trained → restore it"
            self.found.findings.append(Finding("files", line, self._segment.name, file=footer.name))
            hashes = None
        for told, part in parts:
            self._count(footer, told, part, counts[told.epoch], hashes)
        for epoch, count_R in counts.items():
            due_R = self._due_rows(epoch, begin, footer.rows)
            self.found.not_yet += int(np.count_nonzero((count_R == 0) & ~due_R))
            self._name(footer, epoch, count_R, due_R, parts)

    def _count(
        self, footer: FileFooter, told: _Told, part: Part, count_R: UInt16, hashes: tuple[UInt64, UInt64] | None
    ) -> None:
        try:
            rows = decode_rows(part.rows)
            bad = np.zeros(0, np.int64) if part.quarantined is None else decode_rows(part.quarantined)
        except ValueError as error:
            told.is_sure = False
            self.found.found(
                "record", f"{told.where}: {error}", "records are as they were written", "restore it", epoch=told.epoch
            )
            return
        beyond = int(np.count_nonzero(rows >= footer.rows))
        if beyond:
            self.found.found(
                "files",
                f"row {rows[-1]} of {footer.name} was trained, which now has {footer.rows} rows",
                "a segment's files stay as they were trained",
                "restore the file",
                epoch=told.epoch,
                file=footer.name,
            )
            rows, bad, told.is_sure = rows[: len(rows) - beyond], bad[bad < footer.rows], False
        np.add.at(count_R, rows, 1)
        if hashes is None:
            told.is_sure = False
            return
        places_R, ids_R = hashes
        told.places += total(places_R[rows])
        told.ids += total(ids_R[rows]) - total(ids_R[bad])

    def _due_rows(self, epoch: int, begin: int, rows: int) -> Bool:
        """Which of a file's rows must have been read. Inside the position's window the order is the planner's: there
        only the number of rows counts."""
        due = self._due.get(epoch, Due(0))
        batches = -(-self.found.rows // self._global_batch)
        if due.batches is None:
            return np.zeros(rows, bool)
        if due.batches >= batches:
            return np.ones(rows, bool)
        whole = due.batches - due.batches % self._window_batches
        due_R: Bool = np.arange(begin, begin + rows) < whole * self._global_batch
        return due_R

    def _name(self, footer: FileFooter, epoch: int, count_R: UInt16, due_R: Bool, parts: Parts) -> None:
        """Gaps and repeats of a file."""
        missed = np.flatnonzero((count_R == 0) & due_R)
        if len(missed):
            self.found.found(
                "missed",
                f"{footer.name} rows {in_words(missed)} were not read ({len(missed):,} in all)",
                ONCE,
                "go back to a checkpoint before, or train them in a run that begins with this one (--init-from)",
                epoch=epoch, file=footer.name, rows=len(missed), ranges=tuple(runs_of(missed)),
            )  # fmt: skip
        twice_R = count_R > 1
        repeated = np.flatnonzero(twice_R)
        if len(repeated):
            extra = int(count_R[repeated].sum(dtype=np.int64)) - len(repeated)
            by = [
                told.record.steps
                for told, part in parts
                if told.epoch == epoch and twice_R[decoded(part, len(twice_R))].any()
            ]
            steps = ", ".join(f"{first}–{last}" for first, last in sorted(by)[:SHOWN]) + (
                " …" if len(by) > SHOWN else ""
            )
            self.found.found(
                "repeated",
                f"{footer.name} rows {in_words(repeated)} were read {extra:,} times too often, in steps {steps}",
                ONCE,
                "go back to a checkpoint before, or accept their weight",
                epoch=epoch, file=footer.name, rows=extra, ranges=tuple(runs_of(repeated)),
            )  # fmt: skip

    def _check_sums(self, unread: int) -> None:
        """The hashes. What names a file that is not there any more is told first."""
        for name, parts in self._parts.items():
            for told, _ in parts:
                told.is_sure = False
            if not unread:
                self.found.found(
                    "files",
                    f"{name} was trained, and is not in the segment any more",
                    "a segment's files stay as they were trained",
                    "restore the file",
                    file=name,
                )
        for told in self._told:
            if not told.is_sure:
                continue
            if in_hex(told.places) != told.record.places or self._rows_of(told.record.parts) != told.record.rows:
                self.found.found(
                    "record", f"{told.where}: rows and their sum differ", "records are as they were written",
                    "restore the file of the record", epoch=told.epoch,
                )  # fmt: skip
            elif in_hex(told.ids) != told.record.ids:
                self.found.found(
                    "ids",
                    f"{told.where}: the ids that were trained are not those of these rows",
                    "a row is trained with its own ids",
                    "if the files are as they were, the stream mixed rows up: report it",
                    epoch=told.epoch, rows=told.record.rows,
                )  # fmt: skip

    @staticmethod
    def _rows_of(parts: Iterable[Part]) -> int:
        return sum(part.rows.count for part in parts)


def runs_of(rows: Int64) -> Iterator[tuple[int, int]]:
    """(first, last) of each run of neighbours among ascending numbers."""
    if len(rows):
        breaks = np.flatnonzero(np.diff(rows) > 1)
        firsts: Sequence[int] = rows[np.concatenate([[0], breaks + 1])].tolist()
        lasts: Sequence[int] = rows[np.concatenate([breaks, [len(rows) - 1]])].tolist()
        yield from zip(firsts, lasts, strict=True)


def in_words(rows: Int64) -> str:
    """Ranges of ascending numbers, the first few."""
    ranges = list(runs_of(rows))
    shown = ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in ranges[:SHOWN])
    return shown if len(ranges) <= SHOWN else f"{shown} and {len(ranges) - SHOWN:,} ranges more up to {ranges[-1][1]}"


def decoded(part: Part, limit: int) -> Int64:
    """A part's rows below `limit`; none where they are not what they were written as, which is told elsewhere."""
    try:
        rows = decode_rows(part.rows)
    except ValueError:
        return np.zeros(0, np.int64)
    return rows[rows < limit]
