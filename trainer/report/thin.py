"""Long curves made short without losing what one looks for in them: the highest and the lowest stay."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def extremes(values: npt.NDArray[np.float64], most: int) -> Indices:
    """Places to keep of a curve, ascending, about `most` at most: the first and the last, and of each of most/2 equal
    stretches its lowest and its highest value. A stretch without a number keeps one place, so that the gap stays."""
    count = len(values)
    if count <= most:
        return np.arange(count, dtype=np.int64)
    borders = np.linspace(0, count, max(1, most // 2) + 1).astype(np.int64)
    begins = borders[:-1]
    of_stretch = np.repeat(np.arange(len(begins)), np.diff(borders))
    low = np.where(np.isfinite(values), values, np.inf)
    high = np.where(np.isfinite(values), values, -np.inf)
    kept = [np.array([0, count - 1], dtype=np.int64)]
    for filled, best in ((low, np.minimum.reduceat(low, begins)), (high, np.maximum.reduceat(high, begins))):
        places = np.flatnonzero(filled == best[of_stretch])
        _, first = np.unique(of_stretch[places], return_index=True)
        kept.append(places[first])
    return np.unique(np.concatenate(kept))
