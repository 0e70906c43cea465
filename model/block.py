"""One decoder block (TokenFormer, arXiv 2604.13737, §4.3–4.5), weights shared by all kinds of token:

    A  = Attention(RMSNorm(X))
    I  = X + sigmoid(RMSNorm(X) W_g) ⊙ A          NLIR, Eq. 16–18
    X' = I + SwiGLU(RMSNorm(I))                   Eq. 19

Here in plain modules, in two halves with the attention between them; model/fused_block.py has the same halves with
backward passes of their own, which are what trains. The [open] gates (raw input, before the projection, bias) have the
plain halves only.

Shape suffixes: A tokens taken in · Q tokens put out · D width · H heads · h head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from model.attention import Layout, attend
from model.compute import Compute
from model.config import Model
from model.dropout import dropout_mask
from model.fused_block import NORM_EPS, AfterAttention, BeforeAttention
from model.rope import rotate

__all__ = ["NORM_EPS", "Block", "SwiGLU"]


class SwiGLU(nn.Module):
    """(silu(x W_1) ⊙ x W_2) W_3."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_and_up = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x_QD: torch.Tensor) -> torch.Tensor:
        """In x's dtype."""
        gate, up = _linear(self.gate_and_up, x_QD).chunk(2, dim=-1)
        return _linear(self.down, F.silu(gate) * up)


class Block(nn.Module):
    """Takes in A packed tokens, puts out those Q of them that the layout's queries name."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.compute = Compute()
        self.num_heads = config.num_heads
        self.gate_on_raw = config.gate_input == "raw"
        self.gate_before = config.gate_place == "before"
        self.attention_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.query = nn.Linear(config.dim, config.dim, bias=False)
        self.key_value = nn.Linear(config.dim, 2 * config.dim, bias=False)
        self.output = nn.Linear(config.dim, config.dim, bias=False)
        self.gate = nn.Linear(config.dim, config.dim, bias=config.gate_bias) if config.gated else None
        self.ffn_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.ffn = SwiGLU(config.dim, config.hidden_dim)
        self.dropout = config.dropout
        self.has_fused = self.gate is None or not (self.gate_on_raw or self.gate_before or config.gate_bias)
        self._initialise(config.num_layers)

    def _initialise(self, num_layers: int) -> None:
        """Variance-preserving; what is added to the residual stream is scaled down by √(2 · layers), so that depth
        does not swell it."""
        for linear in (self.query, self.key_value, self.ffn.gate_and_up, *([self.gate] if self.gate else [])):
            nn.init.trunc_normal_(linear.weight, std=linear.in_features**-0.5)
        for linear in (self.output, self.ffn.down):
            nn.init.trunc_normal_(linear.weight, std=(linear.in_features * 2 * num_layers) ** -0.5)
        if self.gate is not None and self.gate.bias is not None:
            nn.init.zeros_(self.gate.bias)

    def forward(
        self, x_AD: torch.Tensor, layout: Layout, rotation_A: torch.Tensor, rotation_Q: torch.Tensor
    ) -> torch.Tensor:
        """In x's dtype, whatever the products are computed in."""
        inside = self._compiled if self.compute.compiled else self._fused if self._is_fused else self._plain
        if self.compute.checkpoint and torch.is_grad_enabled():
            # Generators are put back for the second time: dropout drops the same.
            again: torch.Tensor = checkpoint(inside, x_AD, layout, rotation_A, rotation_Q, use_reentrant=False)
            return again
        return inside(x_AD, layout, rotation_A, rotation_Q)

    @property
    def _is_fused(self) -> bool:
        return self.compute.fused and self.has_fused

    def _fused(
        self, x_AD: torch.Tensor, layout: Layout, rotation_A: torch.Tensor, rotation_Q: torch.Tensor
    ) -> torch.Tensor:
        x_QD, query_QHh, key_AHh, value_AHh, gate_QD = BeforeAttention.apply(  # type: ignore[no-untyped-call]
            *(x_AD, self.attention_norm.weight, self.query.weight, self.key_value.weight),
            None if self.gate is None else self.gate.weight,
            *(rotation_A, rotation_Q, layout.queries_A, self.num_heads, self._dtype(x_AD)),
        )
        mixed_QD = attend(query_QHh, key_AHh, value_AHh, layout)
        out_QD: torch.Tensor = AfterAttention.apply(  # type: ignore[no-untyped-call]
            *(x_QD, mixed_QD, gate_QD, self.output.weight, self.ffn_norm.weight),
            *(self.ffn.gate_and_up.weight, self.ffn.down.weight, *self._masks(x_QD)),
        )
        return out_QD

    def _plain(
        self, x_AD: torch.Tensor, layout: Layout, rotation_A: torch.Tensor, rotation_Q: torch.Tensor
    ) -> torch.Tensor:
        return self._halves(self.before_attention, self.after_attention, x_AD, layout, rotation_A, rotation_Q)

    def _compiled(
        self, x_AD: torch.Tensor, layout: Layout, rotation_A: torch.Tensor, rotation_Q: torch.Tensor
    ) -> torch.Tensor:
        """Attention stays outside: how many stretches of rows there are is no matter of shapes alone."""
        before, after = _compiled_halves()
        return self._halves(
            lambda *given: before(self, *given),
            lambda *given: after(self, *given),
            *(x_AD, layout, rotation_A, rotation_Q),
        )

    def _halves(
        self,
        before: Callable[..., Any],
        after: Callable[..., torch.Tensor],
        x_AD: torch.Tensor,
        layout: Layout,
        rotation_A: torch.Tensor,
        rotation_Q: torch.Tensor,
    ) -> torch.Tensor:
        dtype = self._dtype(x_AD)
        x_QD, query_QHh, key_AHh, value_AHh, gate_QD = before(x_AD, layout.queries_A, dtype)
        mixed_QD = attend(rotate(query_QHh, rotation_Q), rotate(key_AHh, rotation_A), value_AHh, layout)
        return after(x_QD, mixed_QD, gate_QD, *self._masks(x_QD))

    def before_attention(
        self, x_AD: torch.Tensor, queries_A: torch.Tensor | None, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """x_QD; queries, keys and values, not turned yet; the gate before its sigmoid."""
        normed_AD = self.attention_norm(x_AD).to(dtype)
        x_QD, normed_QD = x_AD, normed_AD
        if queries_A is not None:
            x_QD, normed_QD = x_AD.index_select(0, queries_A), normed_AD.index_select(0, queries_A)
        key_AD, value_AD = _linear(self.key_value, normed_AD).chunk(2, dim=-1)
        gate_QD = None
        if self.gate is not None:
            gate_QD = _linear(self.gate, x_QD.to(dtype) if self.gate_on_raw else normed_QD)
        query_QD = _linear(self.query, normed_QD)
        return x_QD, self._heads(query_QD), self._heads(key_AD), self._heads(value_AD), gate_QD

    def after_attention(
        self,
        x_QD: torch.Tensor,
        mixed_QD: torch.Tensor,
        gate_QD: torch.Tensor | None,
        mixed_mask_QD: torch.Tensor | None,
        ffn_mask_QD: torch.Tensor | None,
    ) -> torch.Tensor:
        """The block's output."""
        if gate_QD is None:
            added_QD = _linear(self.output, mixed_QD)
        elif self.gate_before:
            added_QD = _linear(self.output, torch.sigmoid(gate_QD) * mixed_QD)
        else:
            added_QD = torch.sigmoid(gate_QD) * _linear(self.output, mixed_QD)
        x_QD = x_QD + (added_QD if mixed_mask_QD is None else added_QD * mixed_mask_QD)
        added_QD = self.ffn(self.ffn_norm(x_QD).to(mixed_QD.dtype))
        out_QD: torch.Tensor = x_QD + (added_QD if ffn_mask_QD is None else added_QD * ffn_mask_QD)
        return out_QD

    def _dtype(self, x_AD: torch.Tensor) -> torch.dtype:
        """Of the products. A float64 module is for checks, and stays what it is."""
        return x_AD.dtype if self.compute.dtype is None or x_AD.dtype == torch.float64 else self.compute.dtype

    def _masks(self, x_QD: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        probability = self.dropout if self.training else 0.0
        dtype = self._dtype(x_QD)
        return dropout_mask(x_QD, probability, dtype), dropout_mask(x_QD, probability, dtype)

    def _heads(self, x_AD: torch.Tensor) -> torch.Tensor:
        return x_AD.view(x_AD.shape[0], self.num_heads, x_AD.shape[1] // self.num_heads)


def _linear(linear: nn.Linear, x_AD: torch.Tensor) -> torch.Tensor:
    """In x's dtype; the gradient of the weight comes back in the weight's."""
    bias = None if linear.bias is None else linear.bias.to(x_AD.dtype)
    return F.linear(x_AD, linear.weight.to(x_AD.dtype), bias)


@lru_cache(maxsize=1)
def _compiled_halves() -> tuple[Callable[..., Any], Callable[..., torch.Tensor]]:
    """One graph each for all layers and numbers of tokens. Compiled when first called."""
    return torch.compile(Block.before_attention, dynamic=True), torch.compile(Block.after_attention, dynamic=True)
