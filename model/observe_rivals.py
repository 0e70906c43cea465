"""The tokens of rankers that are no StreamTower, layer by layer, as their layers hand them on.

Their attention is not looked at: HSTU's is no softmax, so its shares do not sum to one; OneTrans' and HyFormer's keys
are of several sets.

Shape suffixes: N, A tokens of histories · C candidates · T tokens of a candidate · M field tokens · D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from model.hstu import HSTU
from model.hyformer import HyFormer
from model.inputs import RankerInput
from model.observed import Layer, stream_kinds, tokens_of_kinds
from model.onetrans import MixedTokens, OneTrans
from model.timeline import chosen
from model.tower import place_tokens


def _calls(ranker: nn.Module, layers: Iterable[nn.Module], batch: RankerInput) -> list[tuple[tuple[Any, ...], Any]]:
    """(arguments, result) of each layer, of one forward pass."""
    calls: list[tuple[tuple[Any, ...], Any]] = []

    def keep(layer: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        calls.append((arguments, result))

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        ranker(batch)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def observe_hstu(ranker: HSTU, batch: RankerInput) -> list[Layer]:
    """The top layer is computed once more, as the one below it for all tokens: in the ranker it is left to the
    supervised ones. Where it is the only layer, the embedding output is all there is to see."""
    timeline, stream = place_tokens(ranker.spec, ranker.config, ranker.tokens, batch)
    kind_N = stream_kinds(batch, timeline, stream, has_candidates=ranker.tokens.has_candidates)
    calls = _calls(ranker, ranker.units, batch)
    outputs = [arguments[0] for arguments, _ in calls]
    if len(calls) > 1:
        outputs.append(ranker.units[-1](outputs[-1], *calls[0][0][1:]))
    acts = any(ranker.tokens.events.with_action_token)
    return [
        Layer(tokens_of_kinds(x_ND, kind_N, stream, acts=acts, has_candidates=ranker.tokens.has_candidates))
        for x_ND in outputs
    ]


def observe_onetrans(ranker: OneTrans, batch: RankerInput) -> list[Layer]:
    """Behaviours are there as far up as the pyramid keeps them."""
    timeline, places = ranker._places(batch)
    acts = any(ranker.tokens.events.with_action_token)
    is_state_A = places.stream.source_N < timeline.row_E.shape[0]
    calls = _calls(ranker, ranker.blocks, batch)
    layers = []
    for level, x in enumerate([calls[0][0][0], *(result for _, result in calls)]):
        assert isinstance(x, MixedTokens)
        if level:
            is_state_A = chosen(is_state_A, places.layers[level - 1].kept_A)
        tokens = {"sequence": x.shared_AD[is_state_A], "candidate": x.candidates_CD}
        if acts:
            tokens["action"] = x.shared_AD[~is_state_A]
        if x.fields_GMD.shape[1]:
            tokens["field"] = x.fields_GMD.flatten(0, 1)
        layers.append(Layer(tokens))
    return layers


def observe_hyformer(ranker: HyFormer, batch: RankerInput) -> list[Layer]:
    """`sequence`: what the encoders put out, of all histories. Fields are there once a candidate."""
    calls = _calls(ranker, ranker.layers, batch)
    first = calls[0][0]
    queries = len(ranker.spec.histories) * ranker.config.hyformer.queries
    layers = []
    for encoded, x_CTD in [(first[0], first[2]), *(result for _, result in calls)]:
        tokens = {"sequence": torch.cat([x_CTD.flatten(0, 1)[:0], *encoded]), "candidate": x_CTD[:, -1]}
        if x_CTD.shape[1] > queries + 1:
            tokens["field"] = x_CTD[:, queries:-1].flatten(0, 1)
        layers.append(Layer(tokens))
    return layers
