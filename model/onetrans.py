"""OneTrans (arXiv 2510.26104v3, ByteDance): one causal Transformer over [S-tokens; NS-tokens].

    Z = MixedMHA(RMSNorm(X)) + X          Eq. 4, 11–12: Q, K, V weights shared by the S-tokens, own ones per NS-token
    X' = MixedFFN(RMSNorm(Z)) + Z         Eq. 5, 13: W² φ(W¹ x), shared and own likewise

Pyramid (Eq. 14): keys and values of all tokens a layer takes in, queries of the newest alone; only those are put out.
Group-wise tokens (Eq. 6: model.tokens' field tokens, then the candidate), histories merged by time with a vector each.
The S-side runs once a row, whatever the number of candidates. Which token sees which: onetrans_places.py.

Not stated, and chosen here: φ is GELU, without biases; the output projection and the norms are shared by all tokens;
RoPE with TokenFormer's positions (a behaviour t, an NS-token one more than the last behaviour before it); the head
reads the mean of the NS-tokens after a last norm; actions as in TokenFormer, merged or in tokens of their own.

With `history` supervision there is no pyramid: which S-tokens are newest depends on the event that asks, and so would
the S-side. Fields are computed for each supervised event anew, so few field tokens keep it affordable.

Shape suffixes: A, Q S-tokens a layer takes in and puts out · G asks · M field tokens · C candidates · n NS-tokens of an
ask (M + candidates) · b, a, s as in onetrans_places.py · D width · H heads · h head width · S, K as in inputs.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from model.attention import attend
from model.block import NORM_EPS
from model.config import Model
from model.head import task_head
from model.inputs import InputSpec, RankerInput
from model.onetrans_places import Asks, LayerPlaces, OneTransPlaces, OwnStretch, kept_tokens, onetrans_places
from model.rope import rotate, rotation
from model.timeline import Timeline, chosen, merge
from model.tokens import RequestTokens
from model.tower import merges_actions


@dataclass
class MixedTokens:
    """shared_AD: S-tokens. fields_GMD, candidates_CD: NS-tokens."""

    shared_AD: torch.Tensor
    fields_GMD: torch.Tensor
    candidates_CD: torch.Tensor

    def norm(self, norm: nn.RMSNorm) -> MixedTokens:
        return MixedTokens(norm(self.shared_AD), norm(self.fields_GMD), norm(self.candidates_CD))


@dataclass(frozen=True)
class Rotations:
    """For RoPE: of S-tokens, of an ask's NS-tokens, of candidates. Complex [..., 1, h / 2]."""

    shared_A: torch.Tensor
    fields_GM: torch.Tensor
    candidates_C: torch.Tensor


class OwnLinear(nn.Module):
    """A matrix for every NS-token: fields in their order, then the candidate. weight: [M + 1, in, out]."""

    def __init__(self, tokens: int, width_in: int, width_out: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens, width_in, width_out), std=std))

    def forward(self, fields_GMD: torch.Tensor, candidates_CD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """→ [G, M, out], [C, out]."""
        fields = torch.bmm(fields_GMD.transpose(0, 1), self.weight[:-1]).transpose(0, 1)
        return fields, candidates_CD @ self.weight[-1]


class OneTransBlock(nn.Module):
    """One layer. The top one puts out no S-token, so it has no weights for their queries and FFN."""

    def __init__(self, config: Model, num_own: int, *, top: bool) -> None:
        super().__init__()
        dim, hidden = config.dim, config.hidden_dim
        inner, outer = dim**-0.5, (2 * config.num_layers) ** -0.5
        self.num_heads, self.head_dim = config.num_heads, dim // config.num_heads
        self.attention_norm = nn.RMSNorm(dim, eps=NORM_EPS)
        self.shared_query = None if top else _linear(dim, dim, inner)
        self.shared_key_value = _linear(dim, 2 * dim, inner)
        self.own_query_key_value = OwnLinear(num_own, dim, 3 * dim, inner)
        self.output = _linear(dim, dim, outer * dim**-0.5)
        self.ffn_norm = nn.RMSNorm(dim, eps=NORM_EPS)
        self.shared_up = None if top else _linear(dim, hidden, inner)
        self.shared_down = None if top else _linear(hidden, dim, outer * hidden**-0.5)
        self.own_up = OwnLinear(num_own, dim, hidden, inner)
        self.own_down = OwnLinear(num_own, hidden, dim, outer * hidden**-0.5)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: MixedTokens, places: LayerPlaces, turns: Rotations) -> MixedTokens:
        mixed = self._attention(x.norm(self.attention_norm), places, turns)
        z = MixedTokens(
            chosen(x.shared_AD, places.kept_A) + self.dropout(self.output(mixed.shared_AD)),
            x.fields_GMD + self.dropout(self.output(mixed.fields_GMD)),
            x.candidates_CD + self.dropout(self.output(mixed.candidates_CD)),
        )
        normed = z.norm(self.ffn_norm)
        fields_GMD, candidates_CD = self.own_up(normed.fields_GMD, normed.candidates_CD)
        fields_GMD, candidates_CD = self.own_down(F.gelu(fields_GMD), F.gelu(candidates_CD))
        shared_QD = z.shared_AD
        if self.shared_up is not None and self.shared_down is not None:
            shared_QD = shared_QD + self.dropout(self.shared_down(F.gelu(self.shared_up(normed.shared_AD))))
        return MixedTokens(
            shared_QD, z.fields_GMD + self.dropout(fields_GMD), z.candidates_CD + self.dropout(candidates_CD)
        )

    def _attention(self, normed: MixedTokens, places: LayerPlaces, turns: Rotations) -> MixedTokens:
        key_AD, value_AD = self.shared_key_value(normed.shared_AD).chunk(2, dim=-1)
        key_AHh, value_AHh = rotate(self._heads(key_AD), turns.shared_A), self._heads(value_AD)
        shared_QD = chosen(normed.shared_AD, places.kept_A)
        if self.shared_query is not None and places.shared is not None:
            query_QHh = rotate(self._heads(self.shared_query(shared_QD)), chosen(turns.shared_A, places.kept_A))
            shared_QD = attend(query_QHh, key_AHh, value_AHh, places.shared)
        of_fields, of_candidates = self.own_query_key_value(normed.fields_GMD, normed.candidates_CD)
        own = [
            (self._heads(fields), self._heads(candidates))
            for fields, candidates in zip(of_fields.chunk(3, dim=-1), of_candidates.chunk(3, dim=-1), strict=True)
        ]
        own[:2] = [(rotate(f, turns.fields_GM), rotate(c, turns.candidates_C)) for f, c in own[:2]]
        fields, candidates = [], []
        for stretch in places.own:
            of_f, of_c = _attend_own(own, key_AHh, value_AHh, stretch)
            fields.append(of_f)
            candidates.append(of_c)
        return MixedTokens(shared_QD, torch.cat(fields), torch.cat(candidates))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] → [..., H, h]."""
        return x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)


def _linear(width_in: int, width_out: int, std: float) -> nn.Linear:
    linear = nn.Linear(width_in, width_out, bias=False)
    nn.init.trunc_normal_(linear.weight, std=std)
    return linear


def _attend_own(
    own: list[tuple[torch.Tensor, torch.Tensor]], key_AHh: torch.Tensor, value_AHh: torch.Tensor, stretch: OwnStretch
) -> tuple[torch.Tensor, torch.Tensor]:
    """One softmax over a row's S-tokens and the NS-tokens of the same ask, written as matrix products: so the NS-tokens
    of another ask are never in the way. own: queries, keys, values of fields and of candidates. → those of the
    stretch: [g, M, D], [c, D]."""
    asks, num_fields = stretch.asks.width, own[0][0].shape[1]

    def padded(fields_GMHh: torch.Tensor, candidates_CHh: torch.Tensor) -> torch.Tensor:
        """[b, H, a, n, h]."""
        fields, candidates = stretch.asks.pad(fields_GMHh), stretch.candidates.pad(candidates_CHh)
        candidates = candidates.reshape(fields.shape[0], asks, -1, *candidates.shape[2:])
        return torch.cat([fields, candidates], dim=2).permute(0, 3, 1, 2, 4)

    query_bHanh, own_key_bHanh, own_value_bHanh = (padded(*part) for part in own)
    key_bHsh = stretch.keys.pad(key_AHh).transpose(1, 2)
    value_bHsh = stretch.keys.pad(value_AHh).transpose(1, 2)
    query_bHanh = query_bHanh * query_bHanh.shape[-1] ** -0.5
    by_ask = query_bHanh.shape[:4]
    to_shared = (query_bHanh.flatten(2, 3) @ key_bHsh.transpose(2, 3)).view(*by_ask, -1)
    to_shared = to_shared.masked_fill(~stretch.seen_b1a1s, -torch.inf)
    to_own = (query_bHanh @ own_key_bHanh.transpose(3, 4)).masked_fill(~stretch.own_nn, -torch.inf)
    shares = torch.softmax(torch.cat([to_shared, to_own], dim=-1), dim=-1)
    of_shared, of_own = shares[..., : key_bHsh.shape[2]], shares[..., key_bHsh.shape[2] :]
    mixed = (of_shared.flatten(2, 3) @ value_bHsh).view(*by_ask, -1) + of_own @ own_value_bHanh
    mixed_banD = mixed.permute(0, 2, 3, 1, 4).flatten(3)
    return stretch.asks.unpad(mixed_banD[:, :, :num_fields]), stretch.candidates.unpad(
        mixed_banD[:, :, num_fields:].flatten(1, 2)
    )


class OneTrans(nn.Module):
    """Keys of `[model]` it does not read: see model.config.Model."""

    def __init__(self, spec: InputSpec, config: Model) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        self.tokens = RequestTokens(
            spec, config.tokens, config.dim, time_gaps=config.time_gaps, merge_actions=merges_actions(spec, config)
        )
        events = self.tokens.events
        longest = sum(
            history.max_length * (2 if acts else 1)
            for history, acts in zip(events.histories, events.with_action_token, strict=True)
        )
        self.kept = kept_tokens(spec, config, longest)
        num_own = len(self.tokens.fields.groups) + 1
        self.blocks = nn.ModuleList(
            OneTransBlock(config, num_own, top=level == config.num_layers) for level in range(1, config.num_layers + 1)
        )
        self.final_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.head = task_head(config.dim, len(spec.tasks))

    def forward(self, batch: RankerInput) -> torch.Tensor:
        """Logits [S, K], float32 (float64 for a float64 module), in the order of the candidates or of the supervised
        history's events."""
        with torch.no_grad():
            timeline, places = self._places(batch)
        x = self._tokens(batch, timeline, places)
        turns = self._rotations(places, x.candidates_CD.dtype)
        for block, layer in zip(self.blocks, places.layers, strict=True):
            x = block(x, layer, turns)
            turns = Rotations(chosen(turns.shared_A, layer.kept_A), turns.fields_GM, turns.candidates_C)
        x = x.norm(self.final_norm)
        mean_CD = x.fields_GMD.sum(dim=1).index_select(0, places.asks.ask_C) + x.candidates_CD
        logits_CK = self.head(mean_CD / (x.fields_GMD.shape[1] + 1))
        logits_SK: torch.Tensor = logits_CK.index_select(0, places.asks.source_C.argsort())
        return logits_SK if logits_SK.dtype == torch.float64 else logits_SK.float()

    def _places(self, batch: RankerInput) -> tuple[Timeline, OneTransPlaces]:
        events = self.tokens.events
        histories = [batch.histories[history.name] for history in events.histories]
        timeline = merge(histories, events.with_action_token, batch)
        if self.spec.supervision == "candidates":
            num_supervised = next(iter(batch.candidates.values())).shape[0]
        else:
            num_supervised = histories[0].time_E.shape[0]
        num_fields = len(self.tokens.fields.groups)
        places = onetrans_places(self.spec, batch, timeline, num_fields, self.kept, num_supervised=num_supervised)
        return timeline, places

    def _tokens(self, batch: RankerInput, timeline: Timeline, places: OneTransPlaces) -> MixedTokens:
        asks: Asks = places.asks
        fields_RMD = self.tokens.fields(batch, self.head.weight.dtype)
        states, actions = self.tokens.events.events(batch, timeline)
        asking_SD = states[0] if self.spec.supervision == "history" else self.tokens.events.candidates(batch, timeline)
        none = asking_SD.new_empty(0, asking_SD.shape[1])
        return MixedTokens(
            torch.cat([none, *states, *actions]).index_select(0, places.stream.source_N),
            fields_RMD.index_select(0, asks.static_G),
            asking_SD.index_select(0, asks.source_C),
        )

    def _rotations(self, places: OneTransPlaces, dtype: torch.dtype) -> Rotations:
        def of(position: torch.Tensor) -> torch.Tensor:
            return rotation(position, self.config.dim // self.config.num_heads, self.config.rope_base, dtype)

        of_G = of(places.asks.position_G)
        return Rotations(of(places.stream.position_N), of_G.unsqueeze(1), of_G.index_select(0, places.asks.ask_C))


def build_onetrans(spec: InputSpec, config: Model) -> OneTrans:
    return OneTrans(spec, config)
