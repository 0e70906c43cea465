"""A ranker's tokens layer by layer, and where its attention goes: for diagnosis, on a sample of rows.

The tower is written here once more, plainly and apart from its fast path: every layer is computed for all tokens,
without the dependency cone, which leaves out most of what is looked at here, and attention is an explicit softmax, a
row at a time. Weights, stream and mask rule are the tower's own, and so are the logits that its top layer gives
(tests/model/test_collapse.py).

Shape suffixes: N tokens of the packed stream · L tokens of one row, as queries and keys · K KEYS · D width · H heads ·
h head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from model.block import Block
from model.hstu import HSTU
from model.hyformer import HyFormer
from model.inputs import RankerInput
from model.mask import sight, visible
from model.observe_rivals import observe_hstu, observe_hyformer, observe_onetrans
from model.observed import ACTION, CANDIDATE, FIELD, SEP, STATE, Layer, stream_kinds, tokens_of_kinds
from model.onetrans import OneTrans
from model.rope import rotate
from model.tower import StreamTower, place_tokens

_KEY_KINDS = ((FIELD,), (SEP,), (STATE, ACTION), (CANDIDATE,))  # of KEYS, but for `self`


def can_observe(ranker: nn.Module) -> bool:
    """Whether it has layers of tokens to look at."""
    return any(isinstance(ranker, kind) for kind in _OBSERVERS)


@torch.no_grad()
def observe(ranker: nn.Module, batch: RankerInput) -> list[Layer]:
    """Layer 0 (the embedding output), then every layer, bottom up. The ranker is in evaluation mode and one that
    `can_observe`; the batch has a row at least."""
    return next(look for kind, look in _OBSERVERS.items() if isinstance(ranker, kind))(ranker, batch)


def observe_tower(tower: StreamTower, batch: RankerInput) -> list[Layer]:
    timeline, stream = place_tokens(tower.spec, tower.config, tower.tokens, batch)
    has_candidates, acts = tower.tokens.has_candidates, any(tower.tokens.events.with_action_token)
    kind_N = stream_kinds(batch, timeline, stream, has_candidates=has_candidates)
    counts = torch.bincount(stream.row_N, minlength=stream.num_rows).tolist()  # every row has its <sep> at least

    def of_queries(shares_NK: torch.Tensor) -> dict[str, torch.Tensor]:
        kinds = {"sequence": STATE} | ({"candidate": CANDIDATE} if has_candidates else {})
        return {name: shares_NK[kind_N == kind] for name, kind in kinds.items()}

    x_ND = tower.tokens(batch, timeline).index_select(0, stream.source_N)
    rotation_N = tower._rotation(stream, x_ND.dtype)
    layers = [Layer(tokens_of_kinds(x_ND, kind_N, stream, acts=acts, has_candidates=has_candidates))]
    for block, window in zip(tower.blocks, tower.config.layer_windows, strict=True):
        assert isinstance(block, Block)
        seen = [visible(part_L5, part_L5) for part_L5 in torch.split(sight(stream, window), counts)]
        x_ND, shares_NK = _plain_block(block, x_ND, rotation_N, seen, kind_N)
        even_NK = _shares_of_keys([seen_LL / seen_LL.sum(dim=1, keepdim=True) for seen_LL in seen], kind_N)
        tokens = tokens_of_kinds(x_ND, kind_N, stream, acts=acts, has_candidates=has_candidates)
        layers.append(Layer(tokens, of_queries(shares_NK), of_queries(even_NK)))
    return layers


def _plain_block(
    block: Block, x_ND: torch.Tensor, rotation_N: torch.Tensor, seen: list[torch.Tensor], kind_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the block puts out for all tokens, and where each looked. seen: bool [L, L] of each row, in packed order."""
    counts = [seen_LL.shape[0] for seen_LL in seen]
    _, query_NHh, key_NHh, value_NHh, gate_ND = block.before_attention(x_ND, None, x_ND.dtype)
    query_NHh, key_NHh = rotate(query_NHh, rotation_N), rotate(key_NHh, rotation_N)
    mixed, weights = [], []
    for query_LHh, key_LHh, value_LHh, seen_LL in zip(
        *(torch.split(part, counts) for part in (query_NHh, key_NHh, value_NHh)), seen, strict=True
    ):
        scores_HLL = query_LHh.transpose(0, 1) @ key_LHh.permute(1, 2, 0) * query_NHh.shape[-1] ** -0.5
        weights_HLL = scores_HLL.masked_fill(~seen_LL, -torch.inf).softmax(dim=-1)
        mixed.append((weights_HLL @ value_LHh.transpose(0, 1)).transpose(0, 1).flatten(1))
        weights.append(weights_HLL.mean(dim=0))
    x_ND = block.after_attention(x_ND, torch.cat(mixed), gate_ND, None, None)
    return x_ND, _shares_of_keys(weights, kind_N)


def _shares_of_keys(weights: list[torch.Tensor], kind_N: torch.Tensor) -> torch.Tensor:
    """[N, K] from [L, L] of each row."""
    shares = []
    for weights_LL, kind_L in zip(weights, torch.split(kind_N, [w.shape[0] for w in weights]), strict=True):
        is_of_LK = torch.stack([torch.isin(kind_L, kind_L.new_tensor(kinds)) for kinds in _KEY_KINDS], dim=1)
        self_L1 = weights_LL.diagonal().unsqueeze(1)
        others_LK = weights_LL @ is_of_LK.to(weights_LL.dtype) - self_L1 * is_of_LK
        shares.append(torch.cat([others_LK, self_L1], dim=1))
    return torch.cat(shares)


_OBSERVERS: dict[type[nn.Module], Callable[[Any, RankerInput], list[Layer]]] = {
    StreamTower: observe_tower,
    HSTU: observe_hstu,
    OneTrans: observe_onetrans,
    HyFormer: observe_hyformer,
}
