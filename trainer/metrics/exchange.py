"""How ranks put what each holds together: sums of integers, and rows that travel to the rank that owns them.

Through a gloo group, in host memory: the control group of a run. Alone, or without a group, nothing travels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]


class Exchange:
    """Every method is collective."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)

    def sums(self, integers: Sequence[int]) -> list[int]:
        """Over all ranks; each total within an int64."""
        if self.size == 1:
            return list(integers)
        total = torch.tensor(integers, dtype=torch.int64)
        dist.all_reduce(total, group=self._group)
        return [int(value) for value in total]

    def largest(self, value: float) -> float:
        """Over all ranks."""
        if self.size == 1:
            return value
        found = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._group)
        return float(found)

    def rows(self, array: Array) -> Array:
        """[ranks, …]: of arrays of one shape on all ranks."""
        if self.size == 1:
            return array[None]
        parts = [torch.empty_like(torch.from_numpy(array)) for _ in range(self.size)]
        dist.all_gather(parts, torch.from_numpy(np.ascontiguousarray(array)), group=self._group)
        return np.stack([part.numpy() for part in parts])

    def to_owners(self, owner_N: Int64, columns: Sequence[Array]) -> list[Array]:
        """Rows [N] of several columns, each at the rank that owns it: what this rank owns, in the order of the ranks
        they come from. One column travels at a time, so that no more than one is held twice."""
        if self.size == 1:
            return list(columns)
        order = np.argsort(owner_N, kind="stable")
        sent = np.bincount(owner_N, minlength=self.size).astype(np.int64)
        received = np.ascontiguousarray(self.rows(sent)[:, self.rank])
        found = []
        for column in columns:
            out = torch.from_numpy(np.empty(int(received.sum()), column.dtype))
            given = torch.from_numpy(column[order])
            dist.all_to_all_single(out, given, received.tolist(), sent.tolist(), group=self._group)
            found.append(out.numpy())
        return found


ALONE = Exchange()
