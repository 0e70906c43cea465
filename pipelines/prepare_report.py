"""What `data prepare` says when it is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class SegmentReport:
    """One segment. supervised: candidate or history events to be predicted. labels: {column: (observed, positives)}.

    users: split by user: those who have rows here. state: "new", "rewritten", "unchanged" or "removed".
    """

    name: str
    rows: int = 0
    supervised: int = 0
    labels: dict[str, tuple[int, int]] = field(default_factory=dict)
    version: int = 1
    state: str = "new"
    users: int = 0

    @classmethod
    def of(cls, info: dict[str, Any], state: str, *, by_user: bool = False) -> SegmentReport:
        """From a `_segment.json`."""
        labels = {name: (int(observed), int(positives)) for name, (observed, positives) in info["labels"].items()}
        users = info["users"] if by_user else 0
        name = info["segment"].partition("=")[2]
        return cls(name, info["rows"], info["supervised"], labels, info["version"], state, users)

    def line(self, users: int = 0) -> str:
        """For a person. users: of all segments."""
        rates = [
            f"{label} {positives / observed:.4f}" + (f" of {observed:,}" if observed != self.supervised else "")
            for label, (observed, positives) in self.labels.items()
            if observed
        ]
        shares = [f"{self.users:,} users ({self.users / users:.1%} of all)"] if users else []
        version = [f"version {self.version}, {self.state}"] if (self.version, self.state) != (1, "new") else []
        return " · ".join(
            [f"{self.name}: {self.rows:,} rows", f"{self.supervised:,} examples", *shares, *version, *rates]
        )


@dataclass(frozen=True)
class PrepareReport:
    """events: read from the log, with user, time and request. rows, supervised: written. dropped: {what: number}.

    tails: events read from saved tails instead of the log. late: {file: its events of segments that were there before}.
    partitions: files a segment. segments: made, in name order; those that came out equal say "unchanged".
    notes: what else a person should know.
    """

    events: int
    rows: int
    supervised: int
    dropped: dict[str, int]
    segments: tuple[SegmentReport, ...]
    partitions: int
    seconds: float
    tails: int = 0
    duplicates: int = 0
    late: dict[str, int] = field(default_factory=dict)
    as_of: str = ""
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For a person."""
        total = f"{self.events:,} events → {self.rows:,} request rows, {self.supervised:,} supervised examples"
        facts = [f"{self.partitions} partitions", f"{self.seconds:.1f} s"]
        if self.as_of:
            facts.append(f"labels as of {self.as_of}")
        if self.tails:
            facts.append(f"and {self.tails:,} events of saved tails")
        left_out = dict(self.dropped)
        users = sum(segment.users for segment in self.segments)
        if self.duplicates:
            left_out["duplicates (the last of the log is kept)"] = self.duplicates
        lines = [
            f"{total} ({', '.join(facts)})",
            *(f"left out: {number:,} {what}" for what, number in left_out.items()),
        ]
        if self.late:
            files = sorted(self.late)
            named = f"'{files[0]}'" if len(files) == 1 else f"{len(files)} files, first '{files[0]}'"
            lines.append(
                f"left out: {sum(self.late.values()):,} late events of {named}: their segments are there already → "
                "run with --refresh to take them in"
            )
        return [*lines, *self.notes, *(segment.line(users) for segment in self.segments)]
