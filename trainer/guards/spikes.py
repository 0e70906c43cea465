"""Spikes of the loss: a step's loss far above those before it, by median and median absolute deviation.

Both bear half of the window being spikes, so that a level that stays becomes the normal one. They are of the global
batch's loss, which every rank knows; nothing here is measured or exchanged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

FEWEST = 32  # losses before anything is judged
REFRESH = 8  # steps that one pair of medians serves: they cost 60 µs
TO_SIGMA = 1.4826  # of a normal distribution, standard deviation over median absolute deviation
LEAST = 0.01  # of the median: a loss that hardly ever changes has no spike below `sigmas` percent


@dataclass(frozen=True)
class Spike:
    """loss: of the step. median, sigma: of those before it. A spike that lasts is one: at its first step."""

    loss: float
    median: float
    sigma: float

    @property
    def height(self) -> float:
        """In sigmas above the median."""
        return (self.loss - self.median) / self.sigma


class SpikeDetector:
    """sigmas: how far above; 0 = nothing is a spike. window: steps that the medians are of."""

    def __init__(self, sigmas: float, window: int) -> None:
        self._sigmas = sigmas
        self._losses: deque[float] = deque(maxlen=window)
        self._fewest = min(FEWEST, window)
        self._seen = 0
        self._median, self._sigma = 0.0, float("inf")
        self._is_above = False

    def look(self, loss: float | None) -> Spike | None:
        """After every step, with its loss; None = it has none."""
        if loss is None or not self._sigmas:
            return None
        was_above, self._is_above = self._is_above, loss > self._median + self._sigmas * self._sigma
        spike = Spike(loss, self._median, self._sigma) if self._is_above and not was_above else None
        self._losses.append(loss)
        self._seen += 1
        if self._seen % REFRESH == 0 and len(self._losses) >= self._fewest:
            losses = np.array(self._losses)
            self._median = float(np.median(losses))
            deviation = float(np.median(np.abs(losses - self._median)))
            self._sigma = max(TO_SIGMA * deviation, LEAST * abs(self._median), 1e-12)
        return spike

    def state(self) -> dict[str, Any]:
        """Plain JSON, exact to the bit. Infinity, which JSON has no word for, is null."""
        sigma = self._sigma if np.isfinite(self._sigma) else None
        return {
            "losses": list(self._losses),
            "seen": self._seen,
            "median": self._median,
            "sigma": sigma,
            "is_above": self._is_above,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """The inverse; of a larger window its newest losses."""
        self._losses.extend(saved["losses"])
        self._seen, self._median, self._is_above = saved["seen"], saved["median"], saved["is_above"]
        self._sigma = float("inf") if saved["sigma"] is None else saved["sigma"]
