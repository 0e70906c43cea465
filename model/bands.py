"""Sliding windows in O(tokens · window): packed tokens are cut into blocks regardless of rows, and each block's queries
meet the keys of their own block and those a window before it.

Nothing is padded but the last block. Which key a query sees is still the rule of mask.py; rows are told apart by it,
too.

Shape suffixes: A tokens a layer takes in · Q tokens it puts out · n blocks · s places of a block · r places before it
that its queries reach · t = r + s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_ROW = 2**40  # more places than a row has


class _Overlapping(torch.autograd.Function):
    """[A, …] → [n, t, …]: block i holds places i · s − r … (i + 1) · s − 1, zeros outside. The backward pass adds the
    pieces of the blocks in order: deterministic, and no row by row."""

    @staticmethod
    def forward(ctx: Any, x_A: torch.Tensor, block: int, reach: int) -> torch.Tensor:
        ctx.total, ctx.band = x_A.shape[0], Band(block, reach)
        return overlapping(x_A, block, reach, x_A.new_zeros(()))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.band.add_up(grads[0], ctx.total), None, None


def overlapping(x_A: torch.Tensor, block: int, reach: int, fill: torch.Tensor) -> torch.Tensor:
    """As in `_Overlapping`, `fill` outside; a view of one padded copy."""
    count, rest = max(1, -(-x_A.shape[0] // block)), x_A.shape[1:]
    whole = torch.cat(
        [
            fill.expand(reach, *rest),
            x_A,
            fill.expand(count * block - x_A.shape[0], *rest),
        ]
    )
    stride = whole.stride()
    return whole.as_strided((count, reach + block, *rest), (block * stride[0], *stride))


@dataclass(frozen=True)
class Band:
    """Keys of a sliding layer, as `attention.Padding` is for rows."""

    block: int
    reach: int

    @property
    def width(self) -> int:
        """Keys to a block of queries."""
        return self.block + self.reach

    def places(self, blocks: int, total: int, device: torch.device) -> torch.Tensor:
        """int64 [n, t]: which of the packed tokens stands at each place, −1 for none."""
        first_n = torch.arange(0, blocks * self.block, self.block, device=device) - self.reach
        place_nt = first_n.unsqueeze(1) + torch.arange(self.width, device=device)
        return place_nt.where(place_nt < total, -1).clamp_(min=-1)

    def add_up(self, x_ntD: torch.Tensor, total: int) -> torch.Tensor:
        """[n, t, …] → [A, …]: the sum of what stands at a token's places, block after block: deterministic, and not row
        by row."""
        blocks, rest = x_ntD.shape[0], x_ntD.shape[2:]
        steps = -(-self.reach // self.block)
        whole = x_ntD.new_zeros(((blocks + steps) * self.block, *rest))
        for first in range(0, self.width, self.block):
            width = min(self.block, self.width - first)
            part = whole[first : first + blocks * self.block].view(blocks, self.block, *rest)
            part[:, :width] += x_ntD[:, first : first + width]
        return whole[self.reach : self.reach + total]

    def pad(self, x_A: torch.Tensor, fill: tuple[int, ...] = (0,)) -> torch.Tensor:
        """[A, …] → [n, t, …], `fill` where no token is; other fills than 0 are for integers, which have no gradient."""
        if fill != (0,):
            return overlapping(x_A, self.block, self.reach, x_A.new_tensor(fill))
        padded: torch.Tensor = _Overlapping.apply(x_A, self.block, self.reach)  # type: ignore[no-untyped-call]
        return padded


def band_of(sight_Q5: torch.Tensor) -> Band:
    """As wide as the farthest look back asks for. One wait for the device.

    A query looks back order − first places at most: the window, and for an isolated candidate its place among them.
    """
    reach = int((sight_Q5[:, 0] - sight_Q5[:, 1].clamp(min=0)).amax()) if sight_Q5.shape[0] else 0
    block = 16 * -(-max(1, reach) // 16)
    return Band(block, block)


def apart(sight_N5: torch.Tensor, row_N: torch.Tensor) -> torch.Tensor:
    """The same sights with places counted over all rows, so that no token sees another row."""
    shift_N = row_N * _ROW
    order, first, last, *of_clocks = sight_N5.unbind(1)
    return torch.stack([order + shift_N, first.clamp(min=0) + shift_N, last + shift_N, *of_clocks], dim=1)
