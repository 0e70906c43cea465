"""A fixed, fair sample of the held-out rows: what an evaluation under way is made on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipelines.batch import Position
from pipelines.config import Data
from pipelines.hashing import mix
from pipelines.windows import Pass, Window

# A place costs about the reading of one row group. From so many on the sample is as good as any, if users are not
# sorted by what they do.
MOST_PLACES = 64


class SampledPass(Pass):
    """About `rows` rows in order, for evaluation; all of them where there are no more.

    All rows of all segments, in order, are cut into as many equal parts as places are sampled. Of each part one place
    is taken, a hash of the part's number says which, and read for one global batch or a few. So every segment and file
    has its share, and the rows are a function of the files, `rows` and `data.global_batch` alone: the same ones each
    time, in any run, for any number of ranks.
    """

    def __init__(self, rows: int, *, data: Data, **rest: Any) -> None:
        self._wanted = -(-rows // data.global_batch)  # global batches
        per_place = -(-self._wanted // MOST_PLACES)
        super().__init__(data=data.model_copy(update={"window_batches": per_place}), shuffle=False, **rest)

    def windows_from(self, position: Position | None = None) -> Iterator[Window]:
        """See Pass; only from the beginning."""
        assert position is None, "an evaluation is never resumed"
        per_place = self.data.window_batches
        windows_S = -(-self._all_rows() // (self.data.global_batch * per_place))
        total = int(windows_S.sum())
        ends_S = np.cumsum(windows_S)
        for chosen in chosen_places(total, -(-self._wanted // per_place)):
            segment = int(np.searchsorted(ends_S, chosen, side="right"))
            yield self.plan(0, segment).window(chosen - int(ends_S[segment] - windows_S[segment]))


def chosen_places(total: int, wanted: int) -> list[int]:
    """One of each of `wanted` equal parts of 0 … total − 1, ascending; all where there are no more."""
    if wanted >= total:
        return list(range(total))
    borders = np.arange(wanted + 1) * total // wanted
    sizes = np.diff(borders)
    hashes = mix(np.arange(wanted), 0)
    chosen: list[int] = (borders[:-1] + (hashes % sizes.astype(np.uint64)).astype(np.int64)).tolist()
    return chosen
