"""What a bad step was made of: which number was not finite, on which rank, and in which rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.guards.kept import Lists, positions
from trainer.recommender import Outputs

NAMED = 5  # of parameters, files and rows


@dataclass(frozen=True)
class Seen:
    """Of one rank. what: not finite. rows: {file: (first row, last row, rows)} of its share of the batch. suspects:
    "FILE row N" of rows whose own prediction is not finite."""

    rank: int
    what: tuple[str, ...]
    rows: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    suspects: tuple[str, ...] = ()


def look(outputs: Outputs, culprits: Sequence[str], files: Sequence[str], lists: Lists, rank: int) -> Seen:
    """At this rank's share of a bad step."""
    host = outputs.host
    if host.filler:
        return Seen(rank, tuple(culprits))
    rows = {}
    for file in np.unique(host.file).tolist():
        of_file = host.row[host.file == file]
        rows[files[file]] = (int(of_file.min()), int(of_file.max()), len(of_file))
    row_S, _ = positions(lists.lengths(host))
    unsound_S = ~np.isfinite(outputs.probabilities_SK.float().cpu().numpy()).all(axis=1)
    suspects = [f"{files[host.file[row]]} row {host.row[row]}" for row in np.unique(row_S[unsound_S]).tolist()]
    return Seen(rank, tuple(culprits), rows, tuple(suspects))


@dataclass(frozen=True)
class BadStep:
    """Of all ranks, the same on each."""

    step: int
    what: tuple[str, ...]
    rows: tuple[str, ...]
    suspects: tuple[str, ...]

    def words(self) -> str:
        """For a line: `step 412: the loss is not finite; in the batch of FILE rows 3–90 (64); predictions that are not
        finite: FILE row 18`."""
        parts = [f"step {self.step}: {_some(self.what)} {'is' if len(self.what) == 1 else 'are'} not finite"]
        parts.append(f"its batch is {_some(self.rows)}")
        if self.suspects:
            parts.append(f"predictions are not finite in {_some(self.suspects)}")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """For metrics.jsonl and why.json: no more names than the line has."""
        return {key: list(getattr(self, key)[:NAMED]) for key in ("what", "rows", "suspects")}


def join(step: int, seen: Sequence[Seen]) -> BadStep:
    """A NaN loss of one rank reaches the dense gradients of all: then the loss alone is named."""
    ranks = {what: [s.rank for s in seen if what in s.what] for s in seen for what in s.what}
    loss = {what: of for what, of in ranks.items() if what == "the loss"}
    named = loss or ranks
    what = [f"{name} (rank {', '.join(map(str, of))})" if len(seen) > len(of) else name for name, of in named.items()]
    rows: dict[str, list[tuple[int, int, int]]] = {}
    for each in seen:
        for file, of_file in each.rows.items():
            rows.setdefault(file, []).append(of_file)
    ranges = [_range(file, of) for file, of in sorted(rows.items())]
    return BadStep(step, tuple(what), tuple(ranges), tuple(name for each in seen for name in each.suspects))


def _range(file: str, of: Sequence[tuple[int, int, int]]) -> str:
    low, high = min(low for low, _, _ in of), max(high for _, high, _ in of)
    return f"{file} row {low}" if low == high else f"{file} rows {low}–{high} ({sum(count for _, _, count in of)})"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
