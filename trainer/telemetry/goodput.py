"""Where the time of a run went, over all its starts: what survived, and what was lost to which cause.

Everything adds up: good seconds and those of all causes are the wall time since the run's first start. Time after an
end that was reached (of the data, or max_steps) until the next start is left out: nobody wanted the run to go on. Of a
start that was cut short, what came after its last report is taken to be steps, all lost.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.run_dir import write_atomic

log = logging.getLogger(__name__)

FORMAT = 1
WRITE_SECONDS = 30.0  # between two writes that nothing calls for
MARKS = 64  # checkpoints whose good seconds are remembered
CAUSES = {
    "start_up": "from the command to the first step",
    "data_wait": "steps waited for their batch",
    "bad_steps": "steps that were skipped for a NaN",
    "evaluation": "scoring the held-out rows",
    "checkpoint": "training stood still for a checkpoint",
    "lost_steps": "steps that were not in the checkpoint that the next start went on from",
    "down": "from the last sign of life of a start that was stopped or cut short to the next start",
    "other": "whatever is left: reports, the ending",
}


@dataclass(frozen=True)
class Goodput:
    """Since the run's first start. restarts: starts after the first. worker_seconds: {device: time that workers were
    held}, summed over workers. first_examples: that the model had seen when the run was born."""

    restarts: int
    wall_seconds: float
    good_seconds: float
    lost_seconds: dict[str, float]
    worker_seconds: dict[str, float]
    first_examples: int = 0

    @property
    def share(self) -> float | None:
        """Goodput."""
        return self.good_seconds / self.wall_seconds if self.wall_seconds > 0 else None

    def price_per_billion(self, per_worker_hour: float, examples: int) -> float | None:
        """What a billion examples cost, in the price's own currency; None without a price or an example."""
        done = examples - self.first_examples
        hours = sum(self.worker_seconds.values()) / 3600
        return 1e9 * per_worker_hour * hours / done if per_worker_hour and done > 0 else None


# How a start ended: it came to the end of its data or steps · somebody asked it to stop · cut short, or still going on.
Ended = Literal["reached", "stopped", ""]


@dataclass
class _Kept:
    """What goodput.json holds. seen: when it was written. told: up to when the newest start has reported its time.
    stepped: it came to its first step. marks: {step of a checkpoint: good seconds then}."""

    first_start: float
    starts: int = 0
    good_seconds: float = 0.0
    lost_seconds: dict[str, float] = field(default_factory=dict)
    worker_seconds: dict[str, float] = field(default_factory=dict)
    idle_seconds: float = 0.0
    first_examples: int | None = None
    seen: float = 0.0
    told: float = 0.0
    stepped: bool = False
    ended: Ended = ""
    marks: dict[str, float] = field(default_factory=dict)
    format_version: int = FORMAT


class Ledger:
    """One a run, kept by rank 0 in `path`. workers, device: of this start. began: when this start's command was given;
    alive: the last sign of life of the start before, where `path` may be older; clock: all in seconds since 1970."""

    def __init__(
        self,
        path: Path,
        workers: int,
        device: str,
        began: float,
        alive: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._workers, self._device, self._clock = path, workers, device, clock
        now = clock()
        kept = _read(path)
        if kept is not None:
            kept.seen = min(now, kept.seen if kept.ended else max(kept.seen, alive))
        self._began = min(now, max(began, kept.seen if kept else 0.0))  # a start that follows in the same command
        if kept is None:
            kept = _Kept(first_start=self._began)
        elif kept.ended == "reached":
            kept.idle_seconds += self._began - kept.seen
        else:
            if not kept.ended:
                _add(kept.lost_seconds, "lost_steps" if kept.stepped else "start_up", _untold(kept))
            _add(kept.lost_seconds, "down", self._began - kept.seen)
        kept.starts, kept.ended, kept.told, kept.stepped = kept.starts + 1, "", self._began, False
        self._kept = kept
        self._held_before = kept.worker_seconds.get(device, 0.0)
        self.write()

    def begin(self, step: int, examples: int) -> None:
        """The first step of this start comes next, after `step`: what an earlier start did beyond it is lost."""
        kept = self._kept
        survived = max((good for mark, good in kept.marks.items() if int(mark) <= step), default=0.0)
        _add(kept.lost_seconds, "lost_steps", kept.good_seconds - survived)
        kept.good_seconds = survived
        kept.marks = {mark: good for mark, good in kept.marks.items() if int(mark) <= step}
        if kept.first_examples is None:
            kept.first_examples = examples
        kept.told, kept.stepped = self._clock(), True
        self.spent("start_up", kept.told - self._began)
        self.write()

    def trained(self, seconds: float, waited: float = 0.0, bad: float = 0.0) -> None:
        """seconds: of steps. waited, bad: of these, for data and in bad steps."""
        self._kept.good_seconds += max(0.0, seconds - waited - bad)
        self.spent("data_wait", waited)
        self.spent("bad_steps", bad)
        self._kept.told = self._clock()
        if self._kept.told - self._kept.seen > WRITE_SECONDS:
            self.write()

    def spent(self, cause: str, seconds: float) -> None:
        """On one of CAUSES."""
        _add(self._kept.lost_seconds, cause, seconds)

    def mark(self, step: int, seconds: float) -> None:
        """A checkpoint of `step` is taken. seconds: good ones since the last `trained`."""
        marks = {**self._kept.marks, str(step): self._kept.good_seconds + max(0.0, seconds)}
        self._kept.marks = dict(sorted(marks.items(), key=lambda item: int(item[0]))[-MARKS:])
        self.write()

    def figures(self) -> Goodput:
        """As of now."""
        kept, now = self._kept, self._clock()
        wall = max(0.0, now - kept.first_start - kept.idle_seconds)
        lost = {cause: kept.lost_seconds.get(cause, 0.0) for cause in CAUSES if cause != "other"}
        lost["other"] = max(0.0, wall - kept.good_seconds - sum(lost.values()))
        held = kept.worker_seconds | {self._device: self._held(now)}
        return Goodput(kept.starts - 1, wall, kept.good_seconds, lost, held, kept.first_examples or 0)

    def write(self, ended: Ended = "") -> None:
        """So that the next start knows. ended: how, where this is the last word of this start."""
        now = self._clock()
        self._kept.worker_seconds[self._device] = self._held(now)
        self._kept.seen, self._kept.ended = now, ended
        write_atomic(self._path, json.dumps(asdict(self._kept), indent=1) + "\n")

    def _held(self, now: float) -> float:
        return self._held_before + self._workers * max(0.0, now - self._began)


def _untold(kept: _Kept) -> float:
    """Seconds up to the last sign of life that nobody has reported."""
    told = kept.good_seconds + sum(kept.lost_seconds.values())
    open_seconds = kept.seen - kept.first_start - kept.idle_seconds - told
    return max(0.0, min(open_seconds, kept.seen - kept.told))


def _add(totals: dict[str, float], cause: str, seconds: float) -> None:
    totals[cause] = totals.get(cause, 0.0) + max(0.0, seconds)


def _read(path: Path) -> _Kept | None:
    """None where there is nothing to go on with."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["format_version"] != FORMAT:
            raise ValueError(f"format {found['format_version']}, known is {FORMAT}")
        return _Kept(**found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read (%s) → goodput is counted from this start on", path, error)
        return None
