"""TokenFormer written straight from the equations (spec: arXiv 2604.13737), one row at a time, one query–key pair at
a time, in float64.

It shares with the product its parameters alone, read by name from the module's state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from model.config import Model
from model.inputs import FieldSpec, HistoryInput, InputSpec, RankerInput

Parameters = dict[str, torch.Tensor]


@dataclass
class Token:
    """kind: "F", "sep", "s", "a" or "V". stream: place windows are counted in. rope: position. clock, time: of the
    event or request; fields and the first <sep> have no time."""

    kind: str
    vector: torch.Tensor
    stream: int
    rope: int
    clock: int = 0
    action_clock: int = 0
    supervised: int = -1
    time: int | None = None


@dataclass
class Event:
    history: int
    place: int
    time: int
    clock: int
    action_clock: int


def logits(
    spec: InputSpec, config: Model, groups: list[tuple[str, ...]], parameters: Parameters, batch: RankerInput
) -> torch.Tensor:
    total = sum(len(value) for value in list(batch.candidates.values())[:1])
    if spec.supervision == "history":
        total = len(batch.histories[spec.supervised_history].time_E)
    rows: list[torch.Tensor | None] = [None] * total
    for row in range(len(batch.time_R)):
        tokens = _tokens(spec, config, groups, parameters, batch, row=row)
        hidden = torch.stack([token.vector for token in tokens])
        for layer in range(config.num_layers):
            hidden = _block(config, parameters, layer, tokens, hidden)
        for token, vector in zip(tokens, hidden, strict=True):
            if token.supervised >= 0:
                final = _rms(vector, parameters["final_norm.weight"])
                rows[token.supervised] = parameters["head.weight"] @ final + parameters["head.bias"]
    done = [row for row in rows if row is not None]
    assert len(done) == total
    return torch.stack(done)


def _linear(parameters: Parameters, name: str, x: torch.Tensor) -> torch.Tensor:
    return parameters[name + ".weight"] @ x + parameters[name + ".bias"]


def _values(fields: tuple[FieldSpec, ...], values: dict[str, torch.Tensor], place: int) -> list[torch.Tensor]:
    return [values[f.name][place] if f.name in values else torch.zeros(f.width, dtype=torch.float64) for f in fields]


def _gap(microseconds: int) -> torch.Tensor:
    return torch.tensor([math.log(1 + max(0, microseconds) / 1e6) / math.log(86_401)], dtype=torch.float64)


def _row_events(spec: InputSpec, batch: RankerInput, row: int) -> list[Event]:
    """Ordered by time, then clock, then the supervised history first, then in the spec's order of histories, then as
    given."""
    events = []
    for number, history_spec in enumerate(spec.histories):
        history = batch.histories[history_spec.name]
        start = int(history.lengths_R[:row].sum())
        for place in range(start, start + int(history.lengths_R[row])):
            times = (history.time_E, history.clock_E, history.action_clock_E)
            events.append(Event(number, place, *(int(value[place]) for value in times)))
    return sorted(
        events,
        key=lambda e: (e.time, e.clock, spec.histories[e.history].name != spec.supervised_history, e.history, e.place),
    )


def _tokens(
    spec: InputSpec,
    config: Model,
    groups: list[tuple[str, ...]],
    parameters: Parameters,
    batch: RankerInput,
    *,
    row: int,
) -> list[Token]:
    tokens: list[Token] = []

    def add(
        kind: str,
        vector: torch.Tensor,
        rope: int,
        *,
        clock: int = 0,
        action_clock: int = 0,
        supervised: int = -1,
        time: int | None = None,
    ) -> None:
        tokens.append(Token(kind, vector, len(tokens), rope, clock, action_clock, supervised, time))

    for number, group in enumerate(groups):
        add(
            "F",
            _linear(
                parameters, f"tokens.fields.projections.{number}", torch.cat([batch.static[n][row] for n in group])
            ),
            0,
        )
    add("sep", parameters["tokens.sep"], 0)
    merged = config.action_tokens == "merged" or (config.action_tokens == "auto" and spec.supervision == "candidates")
    ordered = sorted(range(len(spec.histories)), key=lambda h: spec.histories[h].name != spec.supervised_history)
    request_time, request_clock = int(batch.time_R[row]), int(batch.clock_R[row])
    events = _row_events(spec, batch, row)
    for t, event in enumerate(events, start=1):
        history_spec = spec.histories[event.history]
        history: HistoryInput = batch.histories[history_spec.name]
        inputs = _values(spec.event, history.event, event.place)
        if config.time_gaps:
            inputs.append(_gap(event.time - events[t - 2].time if t > 1 else 0))
            if spec.supervision == "candidates":
                inputs.append(_gap(request_time - event.time))
        vector = _linear(parameters, "tokens.events.projection", torch.cat(inputs))
        if len(spec.histories) > 1:
            vector = vector + parameters["tokens.events.names"][ordered.index(event.history)]
        action = None
        if history_spec.action:
            values = torch.cat(_values(spec.action, history.action, event.place))
            action = _linear(parameters, "tokens.events.action_projection", values)
        if action is not None and merged and event.action_clock < request_clock:
            vector = vector + action
        is_supervised = spec.supervision == "history" and history_spec.name == spec.supervised_history
        add("s", vector, t, clock=event.clock, supervised=event.place if is_supervised else -1, time=event.time)
        if action is not None and not merged:
            add("a", action, t, clock=event.clock, action_clock=event.action_clock, time=event.time)
    if spec.supervision == "candidates":
        add("sep", parameters["tokens.sep"], len(events) + 1, clock=request_clock, time=request_time)
        after = len(tokens)
        start = int(batch.candidate_lengths_R[:row].sum())
        for place in range(start, start + int(batch.candidate_lengths_R[row])):
            inputs = _values(spec.event, batch.candidates, place)
            if config.time_gaps:
                inputs += [_gap(request_time - events[-1].time if events else 0), _gap(0)]
            vector = _linear(parameters, "tokens.events.projection", torch.cat(inputs))
            add("V", vector, len(events) + 1, clock=request_clock, supervised=place, time=request_time)
            if config.candidates_see == "history":
                tokens[-1].stream = after
    return tokens


def sees(config: Model, window: int | None, tokens: list[Token], i: int, j: int) -> bool:
    """May query i look at key j? Word by word from the spec."""
    return i == j or (
        _in_order(config, tokens[i], tokens[j], i, j)
        and (window is None or _in_window(window, tokens[i], tokens[j]))
        and (tokens[j].kind != "a" or _known(tokens[i], tokens[j]))
    )


def _in_order(config: Model, query: Token, key: Token, i: int, j: int) -> bool:
    if query.kind == "V" and key.kind == "V" and config.candidates_see == "history":
        return False
    both_fields = query.kind == "F" and key.kind == "F"
    return j < i or (both_fields and config.field_attention == "bidirectional")


def _in_window(window: int, query: Token, key: Token) -> bool:
    return query.stream - key.stream < window and not (key.kind == "F" and query.kind != "F")


def _known(query: Token, key: Token) -> bool:
    if query.kind == "a":
        return key.action_clock <= query.action_clock
    return key.action_clock < query.clock


def _rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean() + 1e-6) * weight


def _turned(config: Model, x: torch.Tensor, token: Token) -> torch.Tensor:
    """RoPE in every head."""
    return torch.cat([_rope(head, token.rope, config.rope_base) for head in x.chunk(config.num_heads)])


def _rope(x: torch.Tensor, position: int, base: float) -> torch.Tensor:
    turned = []
    for i in range(0, len(x), 2):
        angle = position * base ** (-i / len(x))
        turned.append(x[i] * math.cos(angle) - x[i + 1] * math.sin(angle))
        turned.append(x[i] * math.sin(angle) + x[i + 1] * math.cos(angle))
    return torch.stack(turned)


def _window(config: Model, layer: int) -> int | None:
    if config.kind == "transformer" or layer < config.full_layers:
        return None
    return config.windows[min(layer - config.full_layers, len(config.windows) - 1)]


def _block(config: Model, parameters: Parameters, layer: int, tokens: list[Token], x: torch.Tensor) -> torch.Tensor:
    def weight(name: str) -> torch.Tensor:
        return parameters[f"blocks.{layer}.{name}.weight"]

    dim, width = config.dim, config.dim // config.num_heads
    normed = [_rms(row, weight("attention_norm")) for row in x]
    queries = [_turned(config, weight("query") @ row, token) for row, token in zip(normed, tokens, strict=True)]
    keys = [_turned(config, weight("key_value")[:dim] @ row, token) for row, token in zip(normed, tokens, strict=True)]
    values = [weight("key_value")[dim:] @ row for row in normed]
    out = []
    for i in range(len(tokens)):
        seen = [j for j in range(len(tokens)) if sees(config, _window(config, layer), tokens, i, j)]
        heads = []
        for head in range(config.num_heads):
            part = slice(head * width, (head + 1) * width)
            scores = [queries[i][part] @ keys[j][part] / math.sqrt(width) for j in seen]
            shares = torch.softmax(torch.stack(scores), 0)
            heads.append(sum(share * values[j][part] for share, j in zip(shares, seen, strict=True)))
        out.append(_finish(config, parameters, layer, x=x[i], normed=normed[i], mixed=torch.cat(heads)))
    return torch.stack(out)


def _finish(
    config: Model, parameters: Parameters, layer: int, *, x: torch.Tensor, normed: torch.Tensor, mixed: torch.Tensor
) -> torch.Tensor:
    """Gate, residual, SwiGLU of one token."""
    prefix = f"blocks.{layer}."
    output = parameters[prefix + "output.weight"]
    if config.gate and config.kind == "tokenformer":
        score = parameters[prefix + "gate.weight"] @ (x if config.gate_input == "raw" else normed)
        if config.gate_bias:
            score = score + parameters[prefix + "gate.bias"]
        gate = 1 / (1 + torch.exp(-score))
        attended = output @ (gate * mixed) if config.gate_place == "before" else gate * (output @ mixed)
    else:
        attended = output @ mixed
    middle = x + attended
    inner = _rms(middle, parameters[prefix + "ffn_norm.weight"])
    both = parameters[prefix + "ffn.gate_and_up.weight"] @ inner
    left, right = both[: len(both) // 2], both[len(both) // 2 :]
    return middle + parameters[prefix + "ffn.down.weight"] @ (left / (1 + torch.exp(-left)) * right)
