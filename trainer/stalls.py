"""Who is stuck, or gone, and who merely waits for it: judged from what ranks say of themselves, and from silence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

# Phases that may rightly last long without a step: only silence is a stall there.
PATIENT = frozenset({"starting", "first step", "evaluation begins", "scores", "saving", "ending"})
FULL_STACK = 40


@dataclass(frozen=True)
class Report:
    """What a rank says of itself. number: of its reports, growing. idle_seconds: since its training thread moved, by
    its own clock. waits: it is inside an exchange with others. stack: of its training thread, innermost last, where it
    has not moved for long. failed: the error it ends with; ended: it left in order."""

    rank: int
    host: str
    pid: int
    number: int = 0
    step: int = 0
    phase: str = "starting"
    idle_seconds: float = 0.0
    waits: bool = False
    stack: tuple[str, ...] = ()
    failed: str = ""
    ended: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str | bytes) -> Report:
        values = json.loads(text)
        return Report(**values | {"stack": tuple(values["stack"])})

    @property
    def name(self) -> str:
        return f"rank {self.rank} (host {self.host}, pid {self.pid})"


@dataclass(frozen=True)
class Seen:
    """A rank as another sees it. silent_seconds: since its newest report came."""

    report: Report
    silent_seconds: float = 0.0

    @property
    def is_over(self) -> bool:
        """It said itself that it leaves."""
        return self.report.ended or bool(self.report.failed)


@dataclass(frozen=True)
class Culprit:
    """seconds: that it has not moved, or has said nothing (silent)."""

    report: Report
    seconds: float
    silent: bool

    def line(self) -> str:
        """One line: who, where, since when."""
        at = f"at step {self.report.step} ({self.report.phase})"
        if self.silent:
            return f"{self.report.name}, last seen {at}, has said nothing for {self.seconds:.0f} s"
        return f"{self.report.name} has not moved for {self.seconds:.0f} s {at}"


def judge(ranks: Mapping[int, Seen], limit: float) -> list[Culprit]:
    """Those that the others wait for. Empty: nobody has stood still, or been silent, for `limit` seconds, or whoever is
    behind does something that may last.

    Silent ones are named first: they cannot say what they do. Else the furthest behind, and of these the ones that are
    not inside an exchange; all of them where every one is.
    """
    present = [seen for seen in ranks.values() if not seen.is_over]
    silent = [seen for seen in present if seen.silent_seconds >= limit]
    if silent:
        return [Culprit(seen.report, seen.silent_seconds, True) for seen in silent]
    if not any(_idle(seen) >= limit for seen in present):
        return []
    step = min(seen.report.step for seen in present)
    behind = [seen for seen in present if seen.report.step == step]
    if any(seen.report.phase in PATIENT for seen in behind):
        return []
    busy = [seen for seen in behind if not seen.report.waits]
    return [
        Culprit(seen.report, _idle(seen), silent=seen.silent_seconds > limit / 2)
        for seen in busy or behind
        if _idle(seen) >= limit
    ]


def _idle(seen: Seen) -> float:
    return seen.report.idle_seconds + seen.silent_seconds


def lost(ranks: Mapping[int, Seen], limit: float) -> list[Culprit]:
    """Those silent for `limit` seconds that did not say that they leave: for after an exchange has failed."""
    return [
        Culprit(seen.report, seen.silent_seconds, True)
        for seen in ranks.values()
        if not seen.is_over and seen.silent_seconds >= limit
    ]


def shortened(report: Report) -> Report:
    """As it is published: a deep stack is cut at its outer end."""
    return replace(report, stack=report.stack[-FULL_STACK:])
