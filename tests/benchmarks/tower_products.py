"""How long the machine takes for a tower's matrix products alone: same shapes, same dtype, operands ready."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from trainer.flops import Pairs, Product, Work

_ROUNDS = 5


def seconds_of_products(work: Work, rows: int, heads: int, dtype: torch.dtype = torch.float32) -> float:
    """Forward and backward: of each product the one itself and the two of its gradients. Of attention the rate of
    batched products [queries, width] × [width, keys] of an average row and head, for the visible pairs alone."""
    products = sum(_product(part, dtype) * part.times for part in work.products if part.rows)
    return products + sum(_attention(part, rows, heads, dtype) for part in work.attention if part.pairs)


def _product(part: Product, dtype: torch.dtype) -> float:
    x_MK, w_KN = (
        torch.randn(int(part.rows), part.inner, dtype=dtype),
        torch.randn(part.inner, part.columns, dtype=dtype),
    )
    grad_MN = torch.randn(int(part.rows), part.columns, dtype=dtype)
    return sum(
        _median(lambda a=a, b=b: torch.mm(a, b)) for a, b in ((x_MK, w_KN), (grad_MN, w_KN.T), (x_MK.T, grad_MN))
    )


def _attention(part: Pairs, rows: int, heads: int, dtype: torch.dtype) -> float:
    queries, keys = max(1, round(part.queries / rows)), max(1, round(part.keys / rows))
    width = part.width // heads
    q, k = (torch.randn(rows * heads, count, width, dtype=dtype) for count in (queries, keys))
    share = torch.randn(rows * heads, queries, keys, dtype=dtype)
    forward = _median(lambda: torch.bmm(q, k.mT)) + _median(lambda: torch.bmm(share, k))
    backward = 2 * forward  # of each product two of like shapes
    return (forward + backward) * part.pairs / (rows * queries * keys)


def _median(call: Callable[[], object]) -> float:
    call()
    taken = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return median(taken)
