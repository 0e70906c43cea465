"""Lines of a log that come from many ranks: who said them, and the same ones of many ranks folded into one."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

HOLD_SECONDS = 1.0  # a line of another rank waits so long for the same of others
REMEMBER_SECONDS = 60.0  # that the first rank has said it
SHORT = 60  # of what was said already


@dataclass(frozen=True)
class Line:
    """One line, or several that belong together, as somebody said it. ranks: who; the first rank alone by default.
    host: of other ranks, "" where it is the reader's own. again: the first rank has just said the same. Picklable."""

    text: str
    level: int = logging.INFO
    ranks: tuple[int, ...] = (0,)
    host: str = ""
    again: bool = False

    @property
    def is_warning(self) -> bool:
        return self.level >= logging.WARNING

    @property
    def is_foreign(self) -> bool:
        """Of other ranks than the one that speaks."""
        return self.ranks != (0,)

    @property
    def key(self) -> tuple[int, str]:
        """The same for what differs by numbers alone: of ranks, ports, rows."""
        return self.level, re.sub(r"\d+", "#", self.text)

    def plain(self) -> str:
        """`warning: text`; of others `ranks 1–7: warning: text`."""
        text = shortened(self.text) if self.again else self.text
        text = f"the same: {text}" if self.again else text
        said = f"{logging.getLevelName(self.level).lower()}: {text}" if self.is_warning else text
        return (
            f"{spoken_ranks(self.ranks)}{f' ({self.host})' if self.host else ''}: {said}" if self.is_foreign else said
        )


def shortened(text: str, length: int = SHORT) -> str:
    """Its first line, cut at `length`."""
    first = text.split("\n", 1)[0]
    return first if len(first) <= length else f"{first[: length - 1].rstrip()}…"


def spoken_ranks(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 1–7`, `ranks 0, 2, 5–7`."""
    runs: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}{'–' if len(run) > 2 else ', '}{run[-1]}" for run in runs]
    return f"rank{'' if len(set(ranks)) == 1 else 's'} {', '.join(parts)}"


class Folding:
    """Holds lines of other ranks for a moment, so that the same of many is said once. host: the reader's own."""

    def __init__(self, host: str = "") -> None:
        self._host = host
        self._held: dict[tuple[int, str], tuple[Line, float]] = {}
        self._first: dict[tuple[int, str], float] = {}  # what the first rank has said

    def first_said(self, line: Line, now: float) -> None:
        """The first rank's own lines are not held; what others say after it is folded into it."""
        if line.is_warning:
            self._first = {key: when for key, when in self._first.items() if now - when < REMEMBER_SECONDS}
            self._first[line.key] = now

    def add(self, line: Line, now: float) -> None:
        """A line of another rank."""
        line = replace(line, host="" if line.host == self._host else line.host)
        key = line.key
        if key not in self._held:
            self._held[key] = line, now
            return
        held, since = self._held[key]
        host = held.host if held.host == line.host else "several hosts"
        self._held[key] = replace(held, ranks=tuple(sorted({*held.ranks, *line.ranks})), host=host), since

    @property
    def is_empty(self) -> bool:
        return not self._held

    def due(self, now: float, everything: bool = False) -> Iterable[Line]:
        """Those that were held long enough."""
        for key, (line, since) in list(self._held.items()):
            if everything or now - since >= HOLD_SECONDS:
                del self._held[key]
                yield replace(line, again=now - self._first.get(key, -REMEMBER_SECONDS) < REMEMBER_SECONDS)
