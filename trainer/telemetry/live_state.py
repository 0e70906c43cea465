"""What the live display knows: the newest of everything, and when it came. All times are this process's own clock."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from trainer.lines import Line
from trainer.telemetry.updates import At, Begun, Evaluated, Happened, Phase, Saved, Trained, Update
from trainer.telemetry.words import duration, number, size

NOTICES = 8
LOSSES = 24
WORTH_SAYING = 2.0  # seconds
# Phases of trainer/beats.py, in words; anything else there is a part of a step.
PHASES = {
    "first step": "the first step: waiting for rows, then compiling what is compiled once",
    "evaluation begins": "evaluating: waiting for rows",
    "evaluation": "evaluating",
    "scores": "evaluating: exact metrics from all predictions",
    "saving": "saving a checkpoint",
    "ending": "ending",
}
NOT_YET = "starting"


@dataclass(frozen=True)
class Notice:
    """Something that stays in view for a while. count: of the same; clock: when the newest came, local time."""

    text: str
    is_warning: bool
    count: int
    clock: str


class LiveState:
    """Filled by one thread, which also draws it."""

    def __init__(self, title: str = "") -> None:
        self.title = title
        self.phase, self.phase_since = "starting", 0.0
        self.begun: Begun | None = None
        self.trained: Trained | None = None
        self.evaluated: Evaluated | None = None
        self.losses: deque[float] = deque(maxlen=LOSSES)
        self.notices: dict[tuple[int, str], Notice] = {}
        self.at: At | None = None
        self._trained_when = self._begun_when = 0.0
        self._saved_when: float | None = None

    def take(self, item: Line | Update, now: float) -> None:
        """now: time.monotonic()."""
        if isinstance(item, Line):
            if item.is_warning:
                self._notice(item.key, item.text, True, len(item.ranks))
        elif isinstance(item, Phase):
            self.phase, self.phase_since = item.text, now
        elif isinstance(item, Begun):
            self.begun, self._begun_when = item, now
        elif isinstance(item, Trained):
            self._train(item, now)
        elif isinstance(item, Evaluated):
            self.evaluated = item
        elif isinstance(item, Saved):
            self._saved_when = now
            text = f"checkpoint of step {item.step} · {size(item.bytes)} · {number(item.seconds, 1)} s"
            self._notice((0, "checkpoint"), text, False, 0)
        elif isinstance(item, Happened):
            self._notice((0, item.text), item.text, False, 1)

    def _train(self, item: Trained, now: float) -> None:
        self.trained, self._trained_when = item, now
        if item.loss is not None:
            self.losses.append(item.loss)
        if item.checkpoint_age_seconds is not None:
            self._saved_when = now - item.checkpoint_age_seconds

    def _notice(self, key: tuple[int, str], text: str, is_warning: bool, count: int) -> None:
        before = self.notices.pop(key, None)  # the newest is the last
        self.notices[key] = Notice(text, is_warning, count + (before.count if before else 0), time.strftime("%H:%M:%S"))
        if len(self.notices) > NOTICES:
            warnings = [key for key, notice in self.notices.items() if notice.is_warning]
            oldest = iter(self.notices)
            first = next(oldest)
            del self.notices[next(oldest) if [first] == warnings else first]  # the newest warning stays

    @property
    def doing(self) -> str:
        """What goes on, in words."""
        if self.at is None or self.at.phase == NOT_YET:
            return self.phase
        said = PHASES.get(self.at.phase, "training")
        return f"{said}, batch {self.at.done} of about {self.at.of}" if self.at.of else said

    def doing_seconds(self, now: float) -> float:
        """How long it has been at it without a sign of life."""
        return now - self.phase_since if self.at is None or self.at.phase == NOT_YET else self.at.seconds

    @property
    def step(self) -> int:
        """Steps done."""
        known = self.trained.step if self.trained else self.begun.step if self.begun else 0
        if self.at is None:
            return known
        is_under_way = self.at.phase not in (*PHASES, NOT_YET) or self.at.phase == "first step"
        return max(known, self.at.step - 1 if is_under_way else self.at.step)

    @property
    def last_step(self) -> int:
        """Where the run ends, as far as is known; 0 = it is not."""
        if self.trained is not None and self.trained.seconds_left is not None and self.trained.step_seconds > 0:
            return self.trained.step + round(self.trained.seconds_left / self.trained.step_seconds)
        return self.begun.step + self.begun.steps_left if self.begun else 0

    @property
    def share(self) -> float:
        """Of what this start has to train, 0 to 1."""
        first = self.begun.step if self.begun else 0
        return min(1.0, max(0.0, (self.step - first) / max(1, self.last_step - first)))

    @property
    def rows(self) -> tuple[int, int]:
        """Request rows (trained, at the end of the run): estimates between two logs."""
        if self.begun is None:
            return 0, 0
        known, at, a_step = self.begun.rows, self.begun.step, float(self.begun.rows_a_step)
        if self.trained is not None:
            known, at = self.trained.rows, self.trained.step
            a_step = self.trained.rows_per_second * self.trained.step_seconds or a_step
        return known + round((self.step - at) * a_step), known + round(max(0, self.last_step - at) * a_step)

    def seconds_left(self, now: float) -> float | None:
        """Counted down between two logs."""
        if self.trained is None or self.trained.seconds_left is None:
            return None
        return max(0.0, self.trained.seconds_left - (now - self._trained_when))

    def checkpoint_age(self, now: float) -> float | None:
        return None if self._saved_when is None else now - self._saved_when

    def stands(self, now: float) -> str:
        """`12 s`, where nothing has moved for long enough to be worth saying."""
        seconds = self.doing_seconds(now)
        return duration(seconds) if seconds >= WORTH_SAYING else ""

    def newest_notices(self, number_of: int) -> list[Notice]:
        """Warnings first to stay: the newest of all, but the newest warning in any case."""
        found = list(self.notices.values())
        newest = found[-number_of:] if number_of > 0 else []
        warnings = [notice for notice in found if notice.is_warning]
        if newest and warnings and warnings[-1] not in newest:
            newest = [warnings[-1], *newest[1:]]
        return newest
