"""Rows of a packed tensor taken at most once each, with a backward pass that copies: that of `index_select` has to add
row by row, which on CPU takes longer than all the copying.

Shape suffixes: N rows given · Q rows taken.
"""

from __future__ import annotations

from typing import Any

import torch


class _TakeOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_N: torch.Tensor, index_Q: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index_Q)
        ctx.shape = x_N.shape
        return x_N.index_select(0, index_Q)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (index_Q,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.shape).index_copy_(0, index_Q, grads[0]), None


def take_once(x_N: torch.Tensor, index_Q: torch.Tensor | None) -> torch.Tensor:
    """x[index] along the first axis, every row at most once; None for all. With an index that names a row twice the
    gradient would be wrong."""
    if index_Q is None:
        return x_N
    taken: torch.Tensor = _TakeOnce.apply(x_N, index_Q)  # type: ignore[no-untyped-call]
    return taken
