"""The definitions, from sums. Every value that is not defined (no examples, one class only) is None, never NaN.

log loss     LL = Σ w·(−y·ln p − (1 − y)·ln(1 − p)) ÷ Σ w, with p held in [CLIP, 1 − CLIP]
NE           LL ÷ H(r), H(r) = −r·ln r − (1 − r)·ln(1 − r), r = Σ w·y ÷ Σ w: 1 is knowing only the base rate
             (He et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook")
calibration  Σ w·p ÷ Σ w·y
AUC          P(a positive is ranked above a negative), ties count half
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CLIP = 1e-12


@dataclass(frozen=True)
class TaskValues:
    """One task's metrics over one stretch of data. examples: positions with weight > 0. loss: log loss. base_rate: Σ
    w·y ÷ Σ w.
    auc_error: |auc − exact AUC| is at most this. nonfinite: predictions left out because they were NaN or infinite.
    """

    examples: int
    weight: float
    loss: float | None
    base_rate: float | None
    ne: float | None
    auc: float | None
    calibration: float | None
    auc_error: float = 0.0
    nonfinite: int = 0


def entropy(rate: float) -> float:
    """Of a base rate, in nats; 0 where there is one class only."""
    if not 0 < rate < 1:
        return 0.0
    return -rate * math.log(rate) - (1 - rate) * math.log1p(-rate)


def normalized_entropy(loss_sum: float, label_sum: float, weight_sum: float) -> float | None:
    """From Σ w·ll, Σ w·y, Σ w; None without both classes."""
    floor = entropy(label_sum / weight_sum) if weight_sum > 0 else 0.0
    return loss_sum / weight_sum / floor if floor > 0 else None


def calibration(prediction_sum: float, label_sum: float) -> float | None:
    """From Σ w·p, Σ w·y; None without positives."""
    return prediction_sum / label_sum if label_sum > 0 else None
