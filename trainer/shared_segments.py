"""One list of segments for all ranks: a file that appears while they start must not be in the plan of some only."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from pipelines.config import Data
from pipelines.errors import DataError
from pipelines.segments import SegmentList, find_segments
from trainer.runtime import Runtime


def shared_segments(data: Data, runtime: Runtime) -> SegmentList:
    """`find_segments` of rank 0. Collective. Raises DataError on every rank."""
    if runtime.world_size == 1:
        return find_segments(data)
    told: list[Any] = [None]
    if runtime.is_first:
        try:
            told = [find_segments(data)]
        except DataError as error:
            told = [error]
    dist.broadcast_object_list(told, group=runtime.control, group_src=0)
    if isinstance(told[0], DataError):
        raise told[0]
    found: SegmentList = told[0]
    return found
