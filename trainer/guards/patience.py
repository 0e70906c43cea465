"""Early stopping: evaluations without an improvement, counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Patience:
    """metric: TASK.METRIC. sign: 1 where less is better, −1 where more is. stop_after: evaluations without an
    improvement by at least min_delta; 0 = any number.

    best_score, best_step: of the evaluations counted; None before the first. stale: evaluations since the last
    improvement.
    """

    def __init__(self, metric: str, sign: int, stop_after: int, min_delta: float) -> None:
        self.metric, self._sign = metric, sign
        self._stop_after, self._min_delta = stop_after, min_delta
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.stale = 0
        self._to_beat: float | None = None  # the last improvement, which the best may have crept away from

    def count(self, step: int, scores: Mapping[str, float]) -> None:
        """One evaluation more. One where the metric is not defined (a single class, NaN throughout) is no
        improvement."""
        score = scores.get(self.metric)
        if score is not None and (self.best_score is None or self._sign * score < self._sign * self.best_score):
            self.best_score, self.best_step = score, step
        if score is not None and (self._to_beat is None or self._is_improved(score)):
            self._to_beat, self.stale = score, 0
        else:
            self.stale += 1

    @property
    def is_over(self) -> bool:
        """Whether it is time to stop."""
        return 0 < self._stop_after <= self.stale

    def state(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "metric": self.metric,
            "best_score": self.best_score,
            "best_step": self.best_step,
            "stale": self.stale,
            "to_beat": self._to_beat,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """The inverse; nothing of another metric."""
        if saved.get("metric") != self.metric:
            return
        self.best_score, self.best_step = saved["best_score"], saved["best_step"]
        self.stale, self._to_beat = saved["stale"], saved["to_beat"]

    def _is_improved(self, score: float) -> bool:
        assert self._to_beat is not None
        gain = self._sign * (self._to_beat - score)
        return gain > 0 and gain >= self._min_delta
