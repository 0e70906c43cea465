"""What a run began with: part by part, and what was left out, in the words its user reads."""

from __future__ import annotations

from dataclasses import dataclass, field

OFF = "switched off"
FRESH = "initialised"
PARTS = (
    "tables", "tables' optimizer", "id maps", "tower", "tower's optimizer", "learning rate", "steps and dropout",
    "in flight", "metrics", "lineage",
)  # fmt: skip


@dataclass
class _Count:
    tensors: int = 0
    rows: int = 0


@dataclass
class Account:
    """Of one start. source: where it all comes from. Rows are of tables; the other parts have none."""

    source: str
    counts: dict[tuple[str, str], _Count] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def carried(self, part: str, tensors: int, rows: int = 0) -> None:
        """So many more of a part were taken over."""
        self.left(part, "carried", tensors, rows)

    def has_carried(self, part: str) -> bool:
        """Whether anything of a part was."""
        return (part, "carried") in self.counts

    def left(self, part: str, why: str, tensors: int, rows: int = 0) -> None:
        """So many more of a part stay as they were initialised."""
        count = self.counts.setdefault((part, why), _Count())
        count.tensors += tensors
        count.rows += rows

    def say(self, part: str, words: str) -> None:
        """Of a part that is no tensors."""
        self.said[part] = words

    def note(self, line: str) -> None:
        """Something new, dropped or changed."""
        self.notes.append(line)

    def lines(self) -> list[str]:
        """The table, then the notes."""
        rows = [("part", "what", "tensors", "rows")]
        for part in PARTS:
            for (of, why), count in self.counts.items():
                if of == part:
                    rows.append((part, why, f"{count.tensors:,}", f"{count.rows:,}" if count.rows else ""))
            if part in self.said:
                rows.append((part, self.said[part], "", ""))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        head = f"the model begins with {self.source}:"
        table = [
            f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in rows
        ]
        return [head, *table, *(f"  {note}" for note in self.notes)]
