"""One decoder block (TokenFormer, arXiv 2604.13737, §4.3–4.5), weights shared by all kinds of token:

    A  = Attention(RMSNorm(X))
    I  = X + sigmoid(RMSNorm(X) W_g) ⊙ A          NLIR, Eq. 16–18
    X' = I + SwiGLU(RMSNorm(I))                   Eq. 19

Shape suffixes: A tokens taken in · Q tokens put out · D width · H heads · h head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from model.attention import Layout, attend
from model.config import Model
from model.rope import rotate

NORM_EPS = 1e-6


class SwiGLU(nn.Module):
    """(silu(x W_1) ⊙ x W_2) W_3."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_and_up = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x_QD: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_and_up(x_QD).chunk(2, dim=-1)
        out_QD: torch.Tensor = self.down(F.silu(gate) * up)
        return out_QD


class Block(nn.Module):
    """Takes in A packed tokens, puts out those Q of them that the layout's queries name."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.dim // config.num_heads
        self.gate_on_raw = config.gate_input == "raw"
        self.gate_before = config.gate_place == "before"
        self.attention_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.query = nn.Linear(config.dim, config.dim, bias=False)
        self.key_value = nn.Linear(config.dim, 2 * config.dim, bias=False)
        self.output = nn.Linear(config.dim, config.dim, bias=False)
        self.gate = nn.Linear(config.dim, config.dim, bias=config.gate_bias) if config.gated else None
        self.ffn_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.ffn = SwiGLU(config.dim, config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)
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
        normed_AD = self.attention_norm(x_AD)
        x_QD, normed_QD = x_AD, normed_AD
        if layout.queries_A is not None:
            x_QD, normed_QD = x_AD.index_select(0, layout.queries_A), normed_AD.index_select(0, layout.queries_A)
        key_AD, value_AD = self.key_value(normed_AD).chunk(2, dim=-1)
        mixed_QD = attend(
            rotate(self._heads(self.query(normed_QD)), rotation_Q),
            rotate(self._heads(key_AD), rotation_A),
            self._heads(value_AD),
            layout,
        )
        x_QD = x_QD + self.dropout(self._gated_output(mixed_QD, x_QD if self.gate_on_raw else normed_QD))
        out_QD: torch.Tensor = x_QD + self.dropout(self.ffn(self.ffn_norm(x_QD)))
        return out_QD

    def _heads(self, x_AD: torch.Tensor) -> torch.Tensor:
        return x_AD.view(x_AD.shape[0], self.num_heads, self.head_dim)

    def _gated_output(self, mixed_QD: torch.Tensor, gate_input_QD: torch.Tensor) -> torch.Tensor:
        out_QD: torch.Tensor
        if self.gate is None:
            out_QD = self.output(mixed_QD)
            return out_QD
        gate_QD = torch.sigmoid(self.gate(gate_input_QD))
        out_QD = self.output(gate_QD * mixed_QD) if self.gate_before else gate_QD * self.output(mixed_QD)
        return out_QD
