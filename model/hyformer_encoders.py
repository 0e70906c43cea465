"""HyFormer's parts that look at a history (arXiv 2601.12681v2): its three sequence encoders, and query decoding.

Neither sees the candidate, so they run once a request. All events of a request's history lie before it, so the encoders
need no causal mask. Weights are of one history and one layer. Pre-norm, RoPE by place in the history.

Shape suffixes: A events · Q what looks at them (recent events, or queries) · D width · H heads · h head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from model.attention import Layout, attend
from model.block import NORM_EPS, Block, SwiGLU
from model.config import Model
from model.rope import rotate
from model.timeline import chosen


@dataclass(frozen=True)
class HistoryPlaces:
    """Of one history, rows in the batch's order of work. recent_A: the events that encoder "recent" carries on (index
    into all), None for all. encode: of the events put out over all. decode: of the queries over the events put out.
    turns_A, turns_Q: for RoPE, of all events and of the queries."""

    recent_A: torch.Tensor | None
    encode: Layout | None
    decode: Layout
    turns_A: torch.Tensor
    turns_Q: torch.Tensor


class CrossAttention(nn.Module):
    """Q + softmax(q kᵀ / √h) v W_o, q of RMSNorm(Q), k and v of RMSNorm(X)."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads, self.head_dim = config.num_heads, dim // config.num_heads
        self.query_norm = nn.RMSNorm(dim, eps=NORM_EPS)
        self.key_norm = nn.RMSNorm(dim, eps=NORM_EPS)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        for linear in (self.query, self.key_value):
            nn.init.trunc_normal_(linear.weight, std=dim**-0.5)
        nn.init.trunc_normal_(self.output.weight, std=(dim * 2 * config.num_layers) ** -0.5)

    def forward(
        self, q_QD: torch.Tensor, x_AD: torch.Tensor, layout: Layout, turns_Q: torch.Tensor, turns_A: torch.Tensor
    ) -> torch.Tensor:
        key_AD, value_AD = self.key_value(self.key_norm(x_AD)).chunk(2, dim=-1)
        mixed_QD = attend(
            rotate(self._heads(self.query(self.query_norm(q_QD))), turns_Q),
            rotate(self._heads(key_AD), turns_A),
            self._heads(value_AD),
            layout,
        )
        out_QD: torch.Tensor = q_QD + self.dropout(self.output(mixed_QD))
        return out_QD

    def _heads(self, x_AD: torch.Tensor) -> torch.Tensor:
        return x_AD.view(x_AD.shape[0], self.num_heads, self.head_dim)


class SwiGLUEncoder(nn.Module):
    """X + SwiGLU(RMSNorm(X)): no event sees another."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.ffn = SwiGLU(config.dim, config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.trunc_normal_(self.ffn.gate_and_up.weight, std=config.dim**-0.5)
        nn.init.trunc_normal_(self.ffn.down.weight, std=(config.hidden_dim * 2 * config.num_layers) ** -0.5)

    def forward(self, x_AD: torch.Tensor) -> torch.Tensor:
        out_AD: torch.Tensor = x_AD + self.dropout(self.ffn(self.norm(x_AD)))
        return out_AD


class Encoder(nn.Module):
    """One layer's encoding of one history: H_l from H_{l−1}.

    full:   a Transformer layer, TokenFormer's without gate and mask.
    recent: the newest events, as the layer below left them, look at the whole history as it was embedded (LONGER, arXiv
            2505.04421: O(recent · all)); then a SwiGLU. What the layer above reads, and the queries, is the newest.
    swiglu: a SwiGLU of each event.
    """

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.kind = config.hyformer.encoder
        self.block = Block(config) if self.kind == "full" else None
        self.over_all = CrossAttention(config) if self.kind == "recent" else None
        self.ffn = None if self.kind == "full" else SwiGLUEncoder(config)

    def forward(self, h_AD: torch.Tensor, embedded_AD: torch.Tensor, places: HistoryPlaces) -> torch.Tensor:
        """h_AD: of the events carried on. embedded_AD: of all."""
        if self.block is not None and places.encode is not None:
            h_AD = self.block(h_AD, places.encode, places.turns_A, places.turns_A)
        if self.over_all is not None and places.encode is not None:
            turns_recent = chosen(places.turns_A, places.recent_A)
            h_AD = self.over_all(h_AD, embedded_AD, places.encode, turns_recent, places.turns_A)
        return h_AD if self.ffn is None else self.ffn(h_AD)


class HistoryLayer(nn.Module):
    """Sequence encoding, then query decoding: K_l = H_l W^K_l, V_l = H_l W^V_l, Q~_l = CrossAttn(Q_l, K_l, V_l)."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = CrossAttention(config)

    def forward(
        self, h_AD: torch.Tensor, embedded_AD: torch.Tensor, queries_QD: torch.Tensor, places: HistoryPlaces
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """→ H_l, Q~_l."""
        h_AD = self.encoder(h_AD, embedded_AD, places)
        turns_A = chosen(places.turns_A, places.recent_A)
        return h_AD, self.decoder(queries_QD, h_AD, places.decode, places.turns_Q, turns_A)
