"""Where the training thread of this process is: said by it at every step, read by the watchdog."""

from __future__ import annotations

import time
from collections.abc import Callable

from trainer.telemetry.updates import At


class Beats:
    """One a process. at: (step, phase, when: time.monotonic()) of the newest sign of life. part: what part of a step
    runs, where a clock tells them apart. done: batches of the evaluation under way, (so many, of about so many)."""

    __slots__ = ("at", "done", "part")

    def __init__(self) -> None:
        self.at: tuple[int, str, float] = (0, "starting", time.monotonic())
        self.done = (0, 0)
        self.part: Callable[[], str | None] = lambda: None

    def beat(self, step: int, phase: str = "step") -> None:
        """The thread that trains has come to this. Costs a fraction of a microsecond: call it as often as you like."""
        self.at = (step, phase, time.monotonic())

    def look(self) -> At:
        """For a display."""
        step, phase, when = self.at
        return At(step, phase, time.monotonic() - when, *(self.done if phase == "evaluation" else ()))
