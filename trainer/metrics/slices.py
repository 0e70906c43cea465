"""The streaming metrics once more, per slice of the examples: the same sums, with a coarser histogram.

Shape suffixes as in streaming; G slices.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from trainer.metrics.streaming import CARRY_AT, FRACTION, SUMS, Addends, carried, columns, split, values_of
from trainer.metrics.values import TaskValues

BINS = 512  # of 0.05 log-odds
SliceScope = Literal["segment", "window"]
SCOPES: tuple[SliceScope, ...] = ("segment", "window")
Values = dict[str, dict[str, TaskValues]]


class SliceMetrics:
    """Sums of this rank per slice and task. 20 slices of 4 tasks are 2.6 MB, whatever the data."""

    def __init__(self, tasks: Sequence[str], slices: Sequence[str], device: torch.device | str = "cpu") -> None:
        self.tasks, self.slices = tuple(tasks), tuple(slices)
        shape = (2, len(SCOPES), len(self.slices), len(self.tasks), SUMS + 2 * BINS)
        self._sums = torch.zeros(shape, dtype=torch.int64, device=device)
        self._positions = 0

    def update(self, slice_S: torch.Tensor, found: Addends) -> None:
        """Adds one batch of this rank, by what TaskMetrics.update has made of it. slice_S: int64, of each position."""
        self._positions += len(slice_S)
        if self._positions > CARRY_AT:
            carried(self._sums)
            self._positions = len(slice_S)
        task_K = torch.arange(len(self.tasks), device=slice_S.device)
        first_SK = (slice_S.unsqueeze(1) * len(self.tasks) + task_K) * (SUMS + 2 * BINS)
        places = [first_SK + statistic for statistic in range(SUMS)]
        places.append(first_SK + SUMS + columns(found, BINS))
        place = torch.stack(places).flatten()
        added = split(torch.cat([found.sums_6SK, found.w_SK.unsqueeze(0)])).flatten(1)
        for scope in range(len(SCOPES)):  # in place: the sums are many more than what one batch adds
            self._sums[:, scope].view(2, -1).index_add_(1, place, added)

    def reset(self, scope: SliceScope) -> None:
        """See TaskMetrics.reset."""
        self._sums[:, SCOPES.index(scope)] = 0

    def reduced(self, group: dist.ProcessGroup | None = None) -> GlobalSlices:
        """Collective: the sums of all ranks. This rank's own stay as they are."""
        total = carried(self._sums.clone()).cpu()
        if dist.is_initialized() and dist.get_world_size(group) > 1:
            dist.all_reduce(total, group=group)
        return GlobalSlices(self.tasks, self.slices, carried(total).numpy())

    def load(self, state: dict[str, Any], rank: int) -> None:
        """GlobalSlices.state() of any world size; nothing of other slices or tasks."""
        self._sums.zero_()
        same = (list(state["tasks"]), list(state["slices"]), state["bins"], state["fraction_bits"])
        if rank == 0 and same == (list(self.tasks), list(self.slices), BINS, FRACTION):
            content = zlib.decompress(base64.b64decode(state["sums"]))
            saved = np.frombuffer(content, dtype="<i8").reshape(self._sums.shape)
            self._sums.copy_(torch.from_numpy(saved.copy()))


class GlobalSlices:
    """Sums over all ranks, at one moment. integers: int64 [2, scopes, G, K, statistics], carried."""

    def __init__(self, tasks: tuple[str, ...], slices: tuple[str, ...], integers: npt.NDArray[np.int64]) -> None:
        self.tasks, self.slices, self._integers = tasks, slices, integers

    def values(self, scope: SliceScope) -> Values:
        """{slice: {task: its metrics}}."""
        whole, fractions = self._integers[:, SCOPES.index(scope)]
        sums = whole + fractions * 2.0**-FRACTION
        return {
            name: {task: values_of(of_task) for task, of_task in zip(self.tasks, of_slice, strict=True)}
            for name, of_slice in zip(self.slices, sums, strict=True)
        }

    def state(self) -> dict[str, Any]:
        """Plain JSON, exact to the bit: what a checkpoint keeps."""
        content = base64.b64encode(zlib.compress(self._integers.astype("<i8").tobytes())).decode("ascii")
        return {
            "tasks": list(self.tasks),
            "slices": list(self.slices),
            "bins": BINS,
            "fraction_bits": FRACTION,
            "sums": content,
        }
