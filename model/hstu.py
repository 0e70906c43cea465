"""HSTU, hierarchical sequential transduction units (arXiv 2402.17152), over TokenFormer's stream.

    U, V, Q, K = split(SiLU(f1(Norm(X))))          Eq. 1
    A V        = SiLU(Q Kᵀ + rab) V / n            Eq. 2: no softmax; n is a constant
    Y          = f2(Norm(A V) ⊙ U) + X             Eq. 3; there is no other feed-forward network
    rab        = learned bias of the relative position + learned bias of the bucketed logarithm of the time between

Static fields stand before the events as tokens of their own, actions follow their events or are part of them, and
candidates come last: model/stream.py, with the switches of TokenFormer's for it. Norm is LayerNorm. Fields and the
first <sep> have no time: their pairs share a bucket of their own.

Shape suffixes: N tokens of the stream · A tokens a layer takes in · Q tokens it puts out · b rows of one stretch · q,
t places per row of a stretch for queries and keys · S supervised positions · D width · H heads · h head width · K
tasks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from model.attention import Layout, Stretch, make_layouts
from model.config import Model
from model.examples import as_logits
from model.inputs import InputSpec, RankerInput
from model.mlp import fan_in_linear
from model.stream import Stream
from model.timeline import Timeline, chosen, rows_of
from model.tokens import StreamTokens
from model.tower import merges_actions, place_tokens, places_in

NORM_EPS = 1e-6
_BUCKET_WIDTH = 0.301


class Unit(nn.Module):
    """One layer. f1 is cut in two: what is asked of tokens put out (U, Q) and of tokens taken in (V, K)."""

    def __init__(self, config: Model, divisor: int) -> None:
        super().__init__()
        dim, own = config.dim, config.hstu
        self.num_heads, self.divisor = config.num_heads, divisor
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.gate_query = fan_in_linear(dim, 2 * dim)
        self.value_key = fan_in_linear(dim, 2 * dim)
        self.position_bias = nn.Parameter(nn.init.trunc_normal_(torch.empty(own.positions, self.num_heads), std=0.02))
        self.time_bias = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(1 + own.time_buckets, self.num_heads), std=0.02)
        )
        self.mixed_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.output = fan_in_linear(dim, dim)
        nn.init.trunc_normal_(self.output.weight, std=(dim * config.num_layers) ** -0.5)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_AD: torch.Tensor, layout: Layout, pairs: list[torch.Tensor]) -> torch.Tensor:
        """pairs: of each stretch, see `HSTU._pairs`."""
        normed_AD = self.norm(x_AD)
        value_AD, key_AD = F.silu(self.value_key(normed_AD)).chunk(2, dim=-1)
        gate_QD, query_QD = F.silu(self.gate_query(chosen(normed_AD, layout.queries_A))).chunk(2, dim=-1)
        query_QHh, key_AHh, value_AHh = (self._heads(x) for x in (query_QD, key_AD, value_AD))
        # Both biases in one table, so that a pair looks up one number a head.
        biases = (self.time_bias.T.unsqueeze(2) + self.position_bias.T.unsqueeze(1)).flatten(1).unbind()
        mixed_QD = torch.cat(
            [
                self._attend(stretch, query_QHh, key_AHh, value_AHh, _looked_up(biases, pair_bqt))
                for stretch, pair_bqt in zip(layout.stretches, pairs, strict=True)
            ]
        )
        out_QD: torch.Tensor = self.output(self.dropout(self.mixed_norm(mixed_QD) * gate_QD))
        return out_QD + chosen(x_AD, layout.queries_A)

    def _heads(self, x_AD: torch.Tensor) -> torch.Tensor:
        return x_AD.view(x_AD.shape[0], self.num_heads, x_AD.shape[1] // self.num_heads)

    def _attend(
        self,
        stretch: Stretch,
        query_QHh: torch.Tensor,
        key_AHh: torch.Tensor,
        value_AHh: torch.Tensor,
        bias_bHqt: torch.Tensor,
    ) -> torch.Tensor:
        """[Q of this stretch, D]."""
        query_bHqh = stretch.queries.pad(query_QHh).transpose(1, 2)
        key_bHht = stretch.keys.pad(key_AHh).permute(0, 2, 3, 1)
        value_bHth = stretch.keys.pad(value_AHh).transpose(1, 2)
        score_bHqt = query_bHqh @ key_bHht + bias_bHqt
        share_b1qt = stretch.visible_b1qt.to(score_bHqt.dtype) / self.divisor
        return stretch.queries.unpad((F.silu(score_bHqt) * share_b1qt @ value_bHth).transpose(1, 2).flatten(2))


def _looked_up(biases: tuple[torch.Tensor, ...], pair_bqt: torch.Tensor) -> torch.Tensor:
    """[b, H, q, t], by one index a head into a vector: the backward pass of an embedding of H numbers a pair took
    44 % of a step on CPU, this one takes 7 %."""
    places = pair_bqt.flatten()
    return torch.stack([bias.index_select(0, places).view(pair_bqt.shape) for bias in biases], dim=1)


class HSTU(nn.Module):
    """forward(RankerInput) → logits [S, K]."""

    def __init__(self, spec: InputSpec, config: Model) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        self.tokens = StreamTokens(
            spec, config.tokens, config.dim, time_gaps=config.time_gaps, merge_actions=merges_actions(spec, config)
        )
        divisor = config.hstu.divisor or longest_row(spec, self.tokens)
        self.units = nn.ModuleList(Unit(config, divisor) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.dim, eps=NORM_EPS)
        self.head = fan_in_linear(config.dim, len(spec.tasks))
        nn.init.trunc_normal_(self.head.weight, std=0.02)

    def forward(self, batch: RankerInput) -> torch.Tensor:
        with torch.no_grad():
            timeline, stream = place_tokens(self.spec, self.config, self.tokens, batch)
            _, _, top_Q, layouts = make_layouts(stream, [None] * len(self.units))
            facts_A3 = torch.stack([stream.index_N, *_times(self.spec, batch, timeline, stream)], dim=1)
        x_AD = self.tokens(batch, timeline).index_select(0, stream.source_N)
        pairs, before = [], None
        for unit, layout in zip(self.units, layouts, strict=True):
            facts_Q3 = chosen(facts_A3, layout.queries_A)
            if layout is not before:
                pairs = [self._pairs(stretch, facts_Q3, facts_A3) for stretch in layout.stretches]
            x_AD, facts_A3, before = unit(x_AD, layout, pairs), facts_Q3, layout
        logits_AK = self.head(self.final_norm(x_AD))
        return as_logits(logits_AK.index_select(0, places_in(top_Q, stream)))

    @torch.no_grad()
    def _pairs(self, stretch: Stretch, facts_Q3: torch.Tensor, facts_A3: torch.Tensor) -> torch.Tensor:
        """int64 [b, q, t] of every pair: bucket of the time between · positions + relative position. Bucket 0: one of
        the two has no time."""
        own = self.config.hstu
        index_bq1, time_bq1, timed_bq1 = stretch.queries.pad(facts_Q3, (0, 0, 0)).unsqueeze(2).unbind(-1)
        index_b1t, time_b1t, timed_b1t = stretch.keys.pad(facts_A3, (0, 0, 0)).unsqueeze(1).unbind(-1)
        position_bqt = (index_bq1 - index_b1t).clamp(0, own.positions - 1)
        seconds_bqt = (time_bq1 - time_b1t).double() / 1e6
        bucket_bqt = 1 + (seconds_bqt.clamp(min=1).log() / _BUCKET_WIDTH).long().clamp(max=own.time_buckets - 1)
        return bucket_bqt.where((timed_bq1 & timed_b1t).bool(), 0) * own.positions + position_bqt


def longest_row(spec: InputSpec, tokens: StreamTokens) -> int:
    """Tokens of a row whose histories are as long as they may be, before its candidates."""
    acts = dict(zip(tokens.events.histories, tokens.events.with_action_token, strict=True))
    return len(tokens.fields.groups) + 2 + sum(h.max_length * (1 + acts[h]) for h in spec.histories)


def _times(
    spec: InputSpec, batch: RankerInput, timeline: Timeline, stream: Stream
) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [N] each: microseconds (an action's are its event's, the second <sep>'s and a candidate's the request's),
    and 1 where there are any."""
    timed = [timeline.time_E, timeline.time_E.index_select(0, timeline.has_action_E.nonzero().squeeze(1))]
    if spec.supervision == "candidates":
        candidates = next(iter(batch.candidates.values())).shape[0]
        timed += [batch.time_R, batch.time_R.index_select(0, rows_of(batch.candidate_lengths_R, candidates))]
    time = torch.cat(timed)
    untimed = time.new_zeros(stream.source_N.shape[0] - time.shape[0])  # fields and first <sep>, which come first
    time_P, timed_P = torch.cat([untimed, time]), torch.cat([untimed, torch.ones_like(time)])
    return time_P.index_select(0, stream.source_N), timed_P.index_select(0, stream.source_N)


def build_hstu(spec: InputSpec, config: Model) -> HSTU:
    return HSTU(spec, config.model_copy(update={"kind": "hstu"}))
