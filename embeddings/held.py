"""What one process holds of the model's state, as checkpoints see it: no TorchRec, no process group, only boxes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LocalChunk:
    """A box of a whole tensor. offsets: of its first element. tensor: the very memory, or a copy where `Held` says
    so."""

    offsets: tuple[int, ...]
    tensor: torch.Tensor

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)


@dataclass(frozen=True)
class Held:
    """A whole tensor over all ranks, and the boxes of it that this process holds.

    size: of the whole. replicated: every rank holds all of it, the same. is_copy: the chunks are copies: a load into
    them has to be taken over by their owner.
    """

    size: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[LocalChunk, ...]
    replicated: bool = False
    is_copy: bool = False

    @property
    def bytes(self) -> int:
        """Of the whole."""
        return math.prod(self.size) * self.dtype.itemsize


def whole(tensor: torch.Tensor, is_copy: bool = False) -> Held:
    """A tensor that every rank has."""
    chunk = LocalChunk((0,) * tensor.dim(), tensor)
    return Held(tuple(tensor.shape), tensor.dtype, (chunk,), replicated=True, is_copy=is_copy)
