"""The multi-layer perceptron of the rankers that are not Transformers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn


def fan_in_linear(width: int, out: int, *, bias: bool = True) -> nn.Linear:
    """Variance-preserving, bias 0."""
    linear = nn.Linear(width, out, bias=bias)
    nn.init.trunc_normal_(linear.weight, std=width**-0.5)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


class MLP(nn.Module):
    """[N, width] → [N, out]: linear, activation and dropout, once for each of `hidden`. Without hidden layers it hands
    its input on. `activation` is called with the layer's width."""

    def __init__(
        self, width: int, hidden: tuple[int, ...], activation: Callable[[int], nn.Module], dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths = (width, *hidden)
        self.out = widths[-1]
        self.linears = nn.ModuleList(fan_in_linear(a, b) for a, b in pairwise(widths))
        self.activations = nn.ModuleList(activation(b) for b in hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for linear, activation in zip(self.linears, self.activations, strict=True):
            x = self.dropout(activation(linear(x)))
        return x
