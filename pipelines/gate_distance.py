"""Distances between two profiles of one column: the stability index, and the share of ids that are new."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.profile_format import ColumnProfile
from pipelines.profile_sketches import LowestHashes

LEAST_IDS = 30  # fewer tell nothing about a share
BINS = 10


@dataclass(frozen=True)
class Share:
    """A share of `count` independent things."""

    value: float
    count: int

    @property
    def variance(self) -> float:
        """Of the estimate, with 2 successes and failures added (Agresti–Coull): a share of 0 is not certain."""
        smoothed = (self.value * self.count + 2) / (self.count + 4)
        return smoothed * (1 - smoothed) / (self.count + 4)


@dataclass(frozen=True)
class Distance:
    """value: the index. noise: what samples of one distribution reach with 3 standard deviations."""

    value: float
    noise: float


def psi(before: ColumnProfile, now: ColumnProfile, count_before: int, count_now: int) -> Distance | None:
    """Population stability index: Σ over bins of (q − p) ln(q ÷ p), p and q the shares before and now.

    Bins are the values where there are at most 32, else the deciles before. None for ids of more values before.
    count_before, count_now: independent values, users at most. Shares are held above half of one, so that an empty bin
    is not infinitely far.
    """
    if not count_before or not count_now or not before.top or not now.top:
        return None
    if before.quantiles and now.quantiles and not (before.exact_top and now.exact_top):
        bins = _by_decile(before.quantiles, now.quantiles)
    elif before.exact_top:
        bins = _by_value(before, now)
    else:
        return None
    index = 0.0
    for share_before, share_now in bins:
        p, q = max(share_before, 0.5 / count_before, 1e-4), max(share_now, 0.5 / count_now, 1e-4)
        index += (q - p) * math.log(q / p)
    # Without a change count · PSI is about χ² with bins − 1 degrees of freedom (Yurdakul 2018).
    freedom, scale = max(len(bins) - 1, 1), 1 / count_before + 1 / count_now
    return Distance(index, scale * (freedom + 3 * math.sqrt(2 * freedom)))


def unknown_share(now: ColumnProfile, before: Sequence[ColumnProfile]) -> Share | None:
    """Share of now's distinct ids that none of the columns before has; None where too few ids can be told.

    A profile keeps the ids of lowest hash: an id can be missed only where its hash is above the last one kept.
    """
    limit = LowestHashes().limit
    known_to = [column.ids[-1][0] for column in before if len(column.ids) >= limit]
    highest = min(known_to, default=2**64)
    comparable = [code for code, _ in now.ids if code <= highest]
    if len(comparable) < LEAST_IDS or not any(column.ids for column in before):
        return None
    known = {code for column in before for code, _ in column.ids}
    return Share(sum(code not in known for code in comparable) / len(comparable), len(comparable))


def _by_value(before: ColumnProfile, now: ColumnProfile) -> list[tuple[float, float]]:
    p = {top.value: top.share for top in before.top}
    q = {top.value: top.share for top in now.top}
    # Where now has more values than it lists, those that it does not list are one bin, with what is new.
    told = [value for value in p if now.exact_top or value in q]
    bins = [(p[value], q.get(value, 0.0)) for value in told]
    rest = (1.0 - sum(share for share, _ in bins), 1.0 - sum(share for _, share in bins))
    return [*bins, rest] if max(rest) > 1e-9 else bins


def _by_decile(before: tuple[float, ...], now: tuple[float, ...]) -> list[tuple[float, float]]:
    step = (len(before) - 1) // BINS
    edges = sorted(set(before[step:-1:step]))
    p = [0.0, *(_below(before, edge) for edge in edges), 1.0]
    q = [0.0, *(_below(now, edge) for edge in edges), 1.0]
    return [(p[i + 1] - p[i], q[i + 1] - q[i]) for i in range(len(p) - 1)]


def _below(quantiles: tuple[float, ...], edge: float) -> float:
    """P(value ≤ edge), between two quantiles by a straight line."""
    place = bisect_right(quantiles, edge) - 1
    last = len(quantiles) - 1
    if place < 0:
        return 0.0
    if place >= last:
        return 1.0
    width = quantiles[place + 1] - quantiles[place]
    return (place + (edge - quantiles[place]) / width) / last if width and math.isfinite(width) else place / last
