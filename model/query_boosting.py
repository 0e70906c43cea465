"""HyFormer's query boosting (arXiv 2601.12681v2), which is RankMixer's block (arXiv 2507.15551): parameter-free token
mixing, then an FFN of its own for every token.

Shape suffixes: C candidates · T tokens (queries, fields and the candidate) · D width · w width of a slice, ⌈D / T⌉ · F
hidden width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from model.block import NORM_EPS
from model.config import Model


def slices(dim: int, tokens: int) -> list[tuple[int, int]]:
    """First and end of the T slices of a token, as even as can be: D / T wide each where T divides D."""
    borders = [dim * i // tokens for i in range(tokens + 1)]
    return list(pairwise(borders))


class TokenMixing(nn.Module):
    """[C, T, D] → [C, T, T · w]: the h-th mixed token is the concatenation of all tokens' h-th slices. Where T does not
    divide D, slices are a column apart in width and the narrow ones end with a zero."""

    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        width = -(-dim // tokens)
        columns = [[*range(first, end), *[dim] * (width - end + first)] for first, end in slices(dim, tokens)]
        self.tokens, self.width, self.even = tokens, width, dim % tokens == 0
        self.columns: torch.Tensor
        self.register_buffer("columns", torch.tensor(columns).flatten(), persistent=False)

    def forward(self, x_CTD: torch.Tensor) -> torch.Tensor:
        if not self.even:
            x_CTD = F.pad(x_CTD, (0, 1)).index_select(2, self.columns)
        return x_CTD.view(x_CTD.shape[0], self.tokens, self.tokens, self.width).transpose(1, 2).flatten(2)


class PerTokenFFN(nn.Module):
    """W²_t GELU(W¹_t x + b¹_t) + b²_t for each token t."""

    def __init__(self, tokens: int, dim_in: int, dim: int, hidden_dim: int, num_layers: int) -> None:
        super().__init__()
        self.up_TDF = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens, dim_in, hidden_dim), std=dim_in**-0.5))
        self.up_bias_T1F = nn.Parameter(torch.zeros(tokens, 1, hidden_dim))
        down = torch.empty(tokens, hidden_dim, dim)
        self.down_TFD = nn.Parameter(nn.init.trunc_normal_(down, std=(hidden_dim * num_layers) ** -0.5))
        self.down_bias_T1D = nn.Parameter(torch.zeros(tokens, 1, dim))

    def forward(self, x_CTD: torch.Tensor) -> torch.Tensor:
        hidden_TCF = F.gelu(torch.baddbmm(self.up_bias_T1F, x_CTD.transpose(0, 1), self.up_TDF))
        return torch.baddbmm(self.down_bias_T1D, hidden_TCF, self.down_TFD).transpose(0, 1)


class QueryBoosting(nn.Module):
    """X + PerTokenFFN(mixed RMSNorm(X)). The residual is of the unmixed tokens."""

    def __init__(self, config: Model, tokens: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.mixing = TokenMixing(config.dim, tokens)
        mixed_dim = tokens * self.mixing.width
        self.ffn = PerTokenFFN(tokens, mixed_dim, config.dim, config.hidden_dim, config.num_layers)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_CTD: torch.Tensor) -> torch.Tensor:
        out_CTD: torch.Tensor = x_CTD + self.dropout(self.ffn(self.mixing(self.norm(x_CTD))))
        return out_CTD
