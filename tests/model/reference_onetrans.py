"""OneTrans written straight from the equations (arXiv 2510.26104v3, Eq. 3–5 and 11–14), one candidate at a time, one
query–key pair at a time, in float64. A supervised event is scored as the candidate of a row that ends before it.

It shares with the product its parameters alone, read by name, and with reference.py the embedding of tokens.
"""

from __future__ import annotations

import math

import torch

from model.config import Model
from model.inputs import InputSpec, RankerInput
from tests.model import reference
from tests.model.reference import Parameters, Token


def logits(
    spec: InputSpec, config: Model, groups: list[tuple[str, ...]], parameters: Parameters, batch: RankerInput
) -> torch.Tensor:
    scored: dict[int, torch.Tensor] = {}
    without_sep = parameters | {"tokens.sep": torch.zeros(config.dim, dtype=torch.float64)}
    for row in range(len(batch.time_R)):
        tokens = reference._tokens(spec, config, groups, without_sep, batch, row=row)
        fields = [token for token in tokens if token.kind == "F"]
        for place, token in enumerate(tokens):
            if token.supervised < 0:
                continue
            shared = [before for before in tokens[:place] if before.kind in "sa"]
            own = [Token("F", field.vector, 0, token.rope, token.clock) for field in fields]
            own.append(Token("V", token.vector, 0, token.rope, token.clock))
            scored[token.supervised] = _score(spec, config, parameters, shared, own)
    return torch.stack([scored[place] for place in range(len(scored))])


def _score(
    spec: InputSpec, config: Model, parameters: Parameters, shared: list[Token], own: list[Token]
) -> torch.Tensor:
    tokens = [*shared, *own]
    x = [token.vector for token in tokens]
    for layer in range(config.num_layers):
        tokens, x = _layer(config, parameters, layer, tokens, x, num_own=len(own), put_out=_kept(spec, config, layer))
    states = [rms(vector, parameters["final_norm.weight"]) for vector in x[-len(own) :]]
    mean = sum(states[1:], states[0]) / len(states)
    return parameters["head.weight"] @ mean + parameters["head.bias"]


def _kept(spec: InputSpec, config: Model, layer: int) -> int:
    """S-tokens that a layer (from 0) puts out."""
    if layer == config.num_layers - 1:
        return 0
    if spec.supervision == "history":
        return 10**9
    if config.onetrans.kept:
        return config.onetrans.kept[min(layer, len(config.onetrans.kept) - 1)]
    longest = sum(h.max_length * (2 if h.action and config.action_tokens == "separate" else 1) for h in spec.histories)
    return math.ceil(longest * (config.num_layers - 1 - layer) / config.num_layers)


def _layer(
    config: Model,
    parameters: Parameters,
    layer: int,
    tokens: list[Token],
    x: list[torch.Tensor],
    *,
    num_own: int,
    put_out: int,
) -> tuple[list[Token], list[torch.Tensor]]:
    def weight(name: str) -> torch.Tensor:
        return parameters[f"blocks.{layer}.{name}.weight"]

    num_shared, dim = len(tokens) - num_own, config.dim
    normed = [rms(vector, weight("attention_norm")) for vector in x]

    def projected(i: int, which: int) -> torch.Tensor:
        """W_i^Q, W_i^K or W_i^V times x_i."""
        if i >= num_shared:
            return normed[i] @ weight("own_query_key_value")[i - num_shared][:, which * dim : (which + 1) * dim]
        if which == 0:
            return weight("shared_query") @ normed[i]
        return weight("shared_key_value")[(which - 1) * dim : which * dim] @ normed[i]

    keys = [turned(config, projected(i, 1), token.rope) for i, token in enumerate(tokens)]
    values = [projected(i, 2) for i in range(len(tokens))]
    tail = range(max(0, num_shared - put_out), len(tokens))
    out = []
    for i in tail:
        query = turned(config, projected(i, 0), tokens[i].rope)
        seen = [j for j in range(i + 1) if j == i or tokens[j].kind != "a" or reference._known(tokens[i], tokens[j])]
        looked_at = torch.stack([keys[j] for j in seen]), torch.stack([values[j] for j in seen])
        z = x[i] + weight("output") @ attended(config, query, *looked_at)
        inner = rms(z, weight("ffn_norm"))
        if i < num_shared:
            out.append(z + weight("shared_down") @ gelu(weight("shared_up") @ inner))
        else:
            own = i - num_shared
            out.append(z + gelu(inner @ weight("own_up")[own]) @ weight("own_down")[own])
    return [tokens[i] for i in tail], out


def attended(config: Model, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Of one query [D] over keys and values [t, D], head by head."""
    heads = []
    for of_query, of_keys, of_values in zip(
        query.chunk(config.num_heads), keys.chunk(config.num_heads, 1), values.chunk(config.num_heads, 1), strict=True
    ):
        heads.append(torch.softmax(of_keys @ of_query / math.sqrt(len(of_query)), 0) @ of_values)
    return torch.cat(heads)


def turned(config: Model, x: torch.Tensor, position: int) -> torch.Tensor:
    """RoPE in every head: pair i by position · base^(−2i / h)."""
    width = config.dim // config.num_heads
    angles = torch.tensor(
        [position * config.rope_base ** (-i / width) for i in range(0, width, 2)] * config.num_heads,
        dtype=torch.float64,
    )
    cos, sin = torch.cos(angles), torch.sin(angles)
    even, odd = x[0::2], x[1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], 1).flatten()


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean() + 1e-6) * weight


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2
