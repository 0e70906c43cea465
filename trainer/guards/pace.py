"""When to evaluate: every n steps, and no oftener than a share of the time allows."""

from __future__ import annotations

import math


class Pace:
    """every: steps; 0 = never. share: of the time, what evaluations may take at most; 0 = no bound.

    An evaluation that took c seconds is followed by training of at least c · (1 − share) ÷ share seconds, at the speed
    since the one before it: so the next one's step is known at once, and is part of a checkpoint.
    """

    def __init__(self, every: int, share: float) -> None:
        self._every, self._share = every, share
        self.next_step = 0

    def is_due(self, step: int) -> bool:
        """The same on every rank: nothing is measured here."""
        return self._every > 0 and step % self._every == 0 and step >= self.next_step

    def appoint(self, step: int, seconds: float, step_seconds: float | None) -> int:
        """The step of the next evaluation after one at `step` that took `seconds`. step_seconds: of training, with
        everything but evaluations in it; None where it is not known yet. Ask one rank, and tell the others: clocks
        differ."""
        following = (step // self._every + 1) * self._every
        if not self._share or not step_seconds:
            return following
        pays = seconds * (1 - self._share) / self._share / step_seconds
        return max(following, math.ceil((step + pays) / self._every) * self._every)
