"""Rows in another order, each once: its gradient is a gather as well."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def permuted(rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """rows[order], rows [n, D], order int64 [n], a permutation."""
    result: torch.Tensor = _Permuted.apply(rows, order)  # type: ignore[no-untyped-call]
    return result


class _Permuted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(order)
        return rows.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (order,) = ctx.saved_tensors
        return grads.index_select(0, torch.ops.fbgemm.invert_permute(order)), None
