"""Summaries of a stream of values in bounded memory. All are deterministic, and do not depend on how the stream is cut,
except `Frequent` beyond its limit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.batch import Int64
from pipelines.hashing import mix

Keys = npt.NDArray[np.int64] | npt.NDArray[np.float64]
UInt64 = npt.NDArray[np.uint64]
ID_SEED, PLACE_SEED = 0x1D5, 0x9A7


class Frequent:
    """Counts of values; exact while there are at most `limit` of them. Beyond, the rarest half is forgotten time and
    again, so that counts are lower bounds, close for frequent values."""

    def __init__(self, limit: int = 8192) -> None:
        self.limit, self.exact = limit, True
        self.keys: Keys = np.zeros(0, np.int64)
        self.counts: Int64 = np.zeros(0, np.int64)

    def add(self, keys: Keys, counts: Int64) -> None:
        """keys: each once."""
        both = np.concatenate([self.keys, keys]) if len(self.keys) else keys
        self.keys, inverse = np.unique(both, return_inverse=True)
        counts = np.concatenate([self.counts, counts])
        self.counts = np.bincount(inverse, weights=counts, minlength=len(self.keys)).astype(np.int64)
        if len(self.keys) > self.limit:
            self.exact = False
            kept = np.sort(np.argsort(-self.counts, kind="stable")[: self.limit // 2])
            self.keys, self.counts = self.keys[kept], self.counts[kept]

    def top(self, count: int) -> Int64:
        """Places in `keys` of the most frequent ones; ties by value."""
        return np.argsort(-self.counts, kind="stable")[:count]


class LowestHashes:
    """The `limit` distinct ids whose hash is lowest (bottom-k), with exact counts: a uniform sample of the distinct
    ids, and of the same ids in every stream that has them."""

    def __init__(self, limit: int = 1024) -> None:
        self.limit = limit
        self.hashes: UInt64 = np.zeros(0, np.uint64)
        self.counts: Int64 = np.zeros(0, np.int64)

    def add(self, ids: Int64, counts: Int64) -> None:
        """ids: each once."""
        hashes = mix(ids, ID_SEED)
        if len(self.hashes) == self.limit:
            below = hashes <= self.hashes[-1]
            hashes, counts = hashes[below], counts[below]
        merged, inverse = np.unique(np.concatenate([self.hashes, hashes]), return_inverse=True)
        sums = np.bincount(inverse, weights=np.concatenate([self.counts, counts]), minlength=len(merged))
        self.hashes, self.counts = merged[: self.limit], sums[: self.limit].astype(np.int64)

    def distinct(self) -> int:
        """Ids seen: exact below the limit, else estimated with a standard error of 1 / √limit."""
        if len(self.hashes) < self.limit:
            return len(self.hashes)
        return round((self.limit - 1) / (float(self.hashes[-1]) / 2.0**64))


class Places:
    """A uniform sample of the values, without replacement: those whose place in the stream has the lowest hash; all of
    them where there are no more than `limit`."""

    def __init__(self, limit: int = 4096) -> None:
        self.limit, self.seen = limit, 0
        self.span: tuple[float, float] | None = None  # lowest and highest of all values
        self._hashes: UInt64 = np.zeros(0, np.uint64)
        self._values: npt.NDArray[np.float64] = np.zeros(0)

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """In the stream's order."""
        hashes = mix(np.arange(self.seen, self.seen + len(values)), PLACE_SEED)
        self.seen += len(values)
        if len(values):
            low, high = float(values.min()), float(values.max())
            self.span = (low, high) if self.span is None else (min(low, self.span[0]), max(high, self.span[1]))
        if len(self._hashes) == self.limit:
            below = hashes <= self._hashes.max()
            hashes, values = hashes[below], values[below]
        hashes, values = np.concatenate([self._hashes, hashes]), np.concatenate([self._values, values])
        if len(hashes) > self.limit:
            kept = np.argpartition(hashes, self.limit - 1)[: self.limit]
            hashes, values = hashes[kept], values[kept]
        self._hashes, self._values = hashes, values

    def quantiles(self, count: int) -> tuple[float, ...]:
        """At 0, 1 / count, … 1: values of the sample (the lower of two neighbours); () where there is none."""
        if not len(self._values):
            return ()
        steps = np.linspace(0, 1, count + 1)
        found = np.quantile(self._values, steps, method="inverted_cdf")
        return tuple(float(value) for value in np.nan_to_num(found))  # JSON has no infinity: the largest float
