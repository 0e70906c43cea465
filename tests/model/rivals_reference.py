"""DCN-V2, DIN and HSTU written straight from their equations, one row, one supervised position, one pair at a time, in
float64. They share with the product its parameters alone, read by name from the module's state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from model.config import Model
from model.inputs import InputSpec, RankerInput
from tests.model import reference
from tests.model.reference import Event, Parameters, Token

Groups = list[tuple[str, ...]]


def logits(spec: InputSpec, config: Model, groups: Groups, parameters: Parameters, batch: RankerInput) -> torch.Tensor:
    if config.kind == "hstu":
        return _hstu(spec, config, groups, parameters, batch)
    score = {"dcnv2": _dcnv2, "din": _din}[config.kind]
    return torch.stack(
        [score(config, parameters, example) for example in _examples(spec, config, groups, parameters, batch)]
    )


@dataclass
class Example:
    """One supervised position: its row's field tokens, its target, and what is known of each event behind it."""

    fields: list[torch.Tensor]
    target: torch.Tensor
    history: list[torch.Tensor]


def _examples(
    spec: InputSpec, config: Model, groups: Groups, parameters: Parameters, batch: RankerInput
) -> list[Example]:
    found: dict[int, Example] = {}
    for row in range(len(batch.time_R)):
        fields = [
            reference._linear(
                parameters, f"tokens.fields.projections.{g}", torch.cat([batch.static[name][row] for name in group])
            )
            for g, group in enumerate(groups)
        ]
        events = reference._row_events(spec, batch, row)
        states = [_state(spec, config, parameters, batch, row, events, t) for t in range(len(events))]

        def known(count: int, clock: int, events: list[Event] = events, states: list = states) -> list[torch.Tensor]:
            return [
                state + _action(spec, parameters, batch, event) if event.action_clock < clock else state
                for event, state in zip(events[:count], states[:count], strict=True)
            ]

        if spec.supervision == "candidates":
            start = int(batch.candidate_lengths_R[:row].sum())
            for place in range(start, start + int(batch.candidate_lengths_R[row])):
                target = _candidate(spec, config, parameters, batch, row, events, place)
                found[place] = Example(fields, target, known(len(events), int(batch.clock_R[row])))
        else:
            for t, event in enumerate(events):
                if spec.histories[event.history].name == spec.supervised_history:
                    found[event.place] = Example(fields, states[t], known(t, event.clock))
    return [found[place] for place in range(len(found))]


def _state(
    spec: InputSpec, config: Model, parameters: Parameters, batch: RankerInput, row: int, events: list[Event], t: int
) -> torch.Tensor:
    """An event without its action."""
    event = events[t]
    inputs = reference._values(spec.event, batch.histories[spec.histories[event.history].name].event, event.place)
    if config.time_gaps:
        inputs.append(reference._gap(event.time - events[t - 1].time if t else 0))
        if spec.supervision == "candidates":
            inputs.append(reference._gap(int(batch.time_R[row]) - event.time))
    vector = reference._linear(parameters, "tokens.events.projection", torch.cat(inputs))
    if len(spec.histories) > 1:
        ordered = sorted(range(len(spec.histories)), key=lambda h: spec.histories[h].name != spec.supervised_history)
        vector = vector + parameters["tokens.events.names"][ordered.index(event.history)]
    return vector


def _action(spec: InputSpec, parameters: Parameters, batch: RankerInput, event: Event) -> torch.Tensor:
    history = spec.histories[event.history]
    if not history.action:
        return torch.zeros_like(parameters["tokens.events.projection.bias"])
    values = torch.cat(reference._values(spec.action, batch.histories[history.name].action, event.place))
    return reference._linear(parameters, "tokens.events.action_projection", values)


def _candidate(
    spec: InputSpec,
    config: Model,
    parameters: Parameters,
    batch: RankerInput,
    row: int,
    events: list[Event],
    place: int,
) -> torch.Tensor:
    inputs = reference._values(spec.event, batch.candidates, place)
    if config.time_gaps:
        inputs += [reference._gap(int(batch.time_R[row]) - events[-1].time if events else 0), reference._gap(0)]
    return reference._linear(parameters, "tokens.events.projection", torch.cat(inputs))


def _mlp(parameters: Parameters, name: str, hidden: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
    """PReLU where the state has slopes, ReLU otherwise."""
    for layer in range(len(hidden)):
        x = reference._linear(parameters, f"{name}.linears.{layer}", x)
        x = _prelu(x, parameters.get(f"{name}.activations.{layer}.weight", torch.zeros_like(x)))
    return x


def _prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x, slope * x)


def _dcnv2(config: Model, parameters: Parameters, example: Example) -> torch.Tensor:
    mean = torch.zeros_like(example.target)
    for event in example.history:
        mean = mean + event / len(example.history)
    x0 = torch.cat([*example.fields, example.target, mean])
    x = x0
    for layer in range(config.dcnv2.cross_layers):
        matrix = parameters[f"crosses.{layer}.linear.weight"]
        if config.dcnv2.rank:
            matrix = matrix @ parameters[f"crosses.{layer}.down.weight"]
        x = x0 * (matrix @ x + parameters[f"crosses.{layer}.linear.bias"]) + x
    deep = _mlp(parameters, "deep", config.dcnv2.hidden, x0)
    return reference._linear(parameters, "head", torch.cat([x, deep]))


def _din(config: Model, parameters: Parameters, example: Example) -> torch.Tensor:
    target, interest = example.target, torch.zeros_like(example.target)
    for event in example.history:
        both = torch.cat([event, target, event - target, event * target])
        hidden = reference._linear(parameters, "attention.first", both)
        hidden = _prelu(hidden, parameters["attention.activation.weight"])
        hidden = _mlp(parameters, "attention.rest", config.din.attention_hidden[1:], hidden)
        interest = interest + reference._linear(parameters, "attention.weight", hidden) * event
    hidden = _mlp(parameters, "mlp", config.din.hidden, torch.cat([*example.fields, interest, target]))
    return reference._linear(parameters, "head", hidden)


def _hstu(spec: InputSpec, config: Model, groups: Groups, parameters: Parameters, batch: RankerInput) -> torch.Tensor:
    found: dict[int, torch.Tensor] = {}
    merged = config.action_tokens == "merged" or (config.action_tokens == "auto" and spec.supervision == "candidates")
    longest = sum(h.max_length * (2 if h.action and not merged else 1) for h in spec.histories)
    divisor = config.hstu.divisor or len(groups) + longest + 2
    for row in range(len(batch.time_R)):
        tokens = reference._tokens(spec, config, groups, parameters, batch, row=row)
        hidden = torch.stack([token.vector for token in tokens])
        for layer in range(config.num_layers):
            hidden = _unit(config, parameters, f"units.{layer}", divisor, tokens, hidden)
        for token, vector in zip(tokens, hidden, strict=True):
            if token.supervised >= 0:
                final = _layer_norm(parameters, "final_norm", vector)
                found[token.supervised] = reference._linear(parameters, "head", final)
    return torch.stack([found[place] for place in range(len(found))])


def _layer_norm(parameters: Parameters, name: str, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean()
    scaled = centred / torch.sqrt((centred * centred).mean() + 1e-6)
    return scaled * parameters[name + ".weight"] + parameters[name + ".bias"]


def _silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def _unit(
    config: Model, parameters: Parameters, name: str, divisor: int, tokens: list[Token], x: torch.Tensor
) -> torch.Tensor:
    normed = [_layer_norm(parameters, f"{name}.norm", row) for row in x]
    gate_query = [_silu(reference._linear(parameters, f"{name}.gate_query", row)) for row in normed]
    value_key = [_silu(reference._linear(parameters, f"{name}.value_key", row)) for row in normed]
    dim, width = config.dim, config.dim // config.num_heads
    out = []
    for i in range(len(tokens)):
        heads = []
        for head in range(config.num_heads):
            part, key = slice(head * width, (head + 1) * width), slice(dim + head * width, dim + (head + 1) * width)
            mixed = torch.zeros(width, dtype=torch.float64)
            for j in range(len(tokens)):
                if reference.sees(config, None, tokens, i, j):
                    bias = _bias(config, parameters, name, tokens[i], tokens[j], head)
                    mixed = mixed + _silu(gate_query[i][key] @ value_key[j][key] + bias) / divisor * value_key[j][part]
            heads.append(mixed)
        normed_mix = _layer_norm(parameters, f"{name}.mixed_norm", torch.cat(heads))
        out.append(reference._linear(parameters, f"{name}.output", normed_mix * gate_query[i][:dim]) + x[i])
    return torch.stack(out)


def _bias(config: Model, parameters: Parameters, name: str, query: Token, key: Token, head: int) -> torch.Tensor:
    own = config.hstu
    distance = min(max(query.stream - key.stream, 0), own.positions - 1)
    bucket = 0
    if query.time is not None and key.time is not None:
        seconds = max(1.0, (query.time - key.time) / 1e6)
        bucket = 1 + min(math.floor(math.log(seconds) / 0.301), own.time_buckets - 1)
    return parameters[f"{name}.position_bias"][distance, head] + parameters[f"{name}.time_bias"][bucket, head]
