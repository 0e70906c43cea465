"""Bytes that leave a rank in TorchRec's exchanges, counted where they are handed to torch.distributed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


@contextmanager
def counted_bytes() -> Iterator[Counter[torch.dtype]]:
    """Counts, by dtype, what this rank sends to others in all_to_all_single meanwhile. Ids are int64 and int32; rows
    and gradients float32, float16 or, quantised, uint8."""
    sent: Counter[torch.dtype] = Counter()
    real = dist.all_to_all_single

    def counting(output: torch.Tensor, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        splits = kwargs.get("input_split_sizes")
        rank, world_size = dist.get_rank(), dist.get_world_size()
        stays = splits[rank] if splits else input.shape[0] // world_size
        sent[input.dtype] += (input.shape[0] - stays) * input[:1].numel() * input.element_size()
        return real(output, input, *args, **kwargs)

    dist.all_to_all_single = counting
    try:
        yield sent
    finally:
        dist.all_to_all_single = real
