"""HyFormer written straight from the equations (arXiv 2601.12681v2), one candidate at a time, one query at a
time, in float64.

It shares with the product its parameters alone, read by name.
"""

from __future__ import annotations

import math

import torch

from model.config import Model
from model.inputs import HistorySpec, InputSpec, RankerInput
from tests.model import reference
from tests.model.reference import Parameters
from tests.model.reference_onetrans import attended, gelu, rms, turned

Vectors = list[torch.Tensor]


def logits(
    spec: InputSpec, config: Model, groups: list[tuple[str, ...]], parameters: Parameters, batch: RankerInput
) -> torch.Tensor:
    scores = []
    for row in range(len(batch.time_R)):
        fields = [
            reference._linear(
                parameters, f"tokens.fields.projections.{number}", torch.cat([batch.static[n][row] for n in group])
            )
            for number, group in enumerate(groups)
        ]
        sequences = [_events(spec, config, parameters, batch, history, row) for history in spec.histories]
        first = int(batch.candidate_lengths_R[:row].sum())
        for place in range(first, first + int(batch.candidate_lengths_R[row])):
            candidate = _candidate(spec, config, parameters, batch, row, place)
            scores.append(_score(spec, config, parameters, sequences, [*fields, candidate]))
    return torch.stack(scores)


def _events(
    spec: InputSpec, config: Model, parameters: Parameters, batch: RankerInput, history: HistorySpec, row: int
) -> Vectors:
    given = batch.histories[history.name]
    first, vectors = int(given.lengths_R[:row].sum()), []
    for place in range(first, first + int(given.lengths_R[row])):
        inputs = reference._values(spec.event, given.event, place)
        if config.time_gaps:
            time, before = int(given.time_E[place]), int(given.time_E[max(first, place - 1)])
            inputs += [reference._gap(time - before), reference._gap(int(batch.time_R[row]) - time)]
        vector = reference._linear(parameters, "tokens.events.projection", torch.cat(inputs))
        if len(spec.histories) > 1:
            vector = vector + parameters["tokens.events.names"][spec.histories.index(history)]
        if history.action and int(given.action_clock_E[place]) < int(batch.clock_R[row]):
            action = torch.cat(reference._values(spec.action, given.action, place))
            vector = vector + reference._linear(parameters, "tokens.events.action_projection", action)
        vectors.append(vector)
    return vectors


def _candidate(
    spec: InputSpec, config: Model, parameters: Parameters, batch: RankerInput, row: int, place: int
) -> torch.Tensor:
    inputs = reference._values(spec.event, batch.candidates, place)
    if config.time_gaps:
        request, times = int(batch.time_R[row]), []
        for history in batch.histories.values():
            first = int(history.lengths_R[:row].sum())
            times += history.time_E[first : first + int(history.lengths_R[row])].tolist()
        inputs += [reference._gap(request - max(times) if times else 0), reference._gap(0)]
    return reference._linear(parameters, "tokens.events.projection", torch.cat(inputs))


def _score(
    spec: InputSpec, config: Model, parameters: Parameters, sequences: list[Vectors], fields: Vectors
) -> torch.Tensor:
    """sequences: embedded events of each history. fields: F_1 … F_M, the candidate last."""
    queries = [
        _generate(config, parameters, f"generation.of_{history.name}", fields, events)
        for history, events in zip(spec.histories, sequences, strict=True)
    ]
    encoded = [
        events[-config.hyformer.recent :] if config.hyformer.encoder == "recent" else events for events in sequences
    ]
    for layer in range(config.num_layers):
        for number, history in enumerate(spec.histories):
            prefix = f"layers.{layer}.histories.of_{history.name}."
            encoded[number] = _encode(config, parameters, prefix + "encoder.", encoded[number], sequences[number])
            length, newest = len(sequences[number]), len(encoded[number])
            places = [length - newest + 1 + i for i in range(newest)]
            queries[number] = [
                _cross(config, parameters, prefix + "decoder.", query, length + 1, encoded[number], places)
                for query in queries[number]
            ]
        tokens = [token for of_one in queries for token in of_one] + fields
        tokens = _boost(parameters, f"layers.{layer}.boosting.", tokens)
        count = config.hyformer.queries
        queries = [tokens[number * count : (number + 1) * count] for number in range(len(spec.histories))]
        fields = tokens[len(spec.histories) * count :]
    final = [rms(token, parameters["final_norm.weight"]) for token in tokens]
    mean = sum(final[1:], final[0]) / len(final)
    return parameters["head.weight"] @ mean + parameters["head.bias"]


def _generate(config: Model, parameters: Parameters, prefix: str, fields: Vectors, events: Vectors) -> Vectors:
    """FFN_i(GI), GI = concat(F_1 … F_M, meanpool(seq)); the candidate is F_M."""
    pooled = sum(events[1:], events[0]) / len(events) if events else torch.zeros(config.dim, dtype=torch.float64)
    found, dim = [], config.dim
    for i in range(config.hyformer.queries):
        part = slice(i * dim, (i + 1) * dim)
        of_request, of_candidate = (parameters[f"{prefix}.{name}.weight"][part] for name in ("request", "candidate"))
        # In the equation's order: statics, candidate, pooled history.
        weight = torch.cat([of_request[:, :-dim], of_candidate, of_request[:, -dim:]], dim=1)
        hidden = weight @ torch.cat([*fields, pooled]) + parameters[f"{prefix}.request.bias"][part]
        found.append(gelu(hidden) @ parameters[f"{prefix}.out_NDD"][i] + parameters[f"{prefix}.out_bias_N1D"][i, 0])
    return found


def _swiglu(parameters: Parameters, name: str, x: torch.Tensor) -> torch.Tensor:
    both = parameters[f"{name}.gate_and_up.weight"] @ x
    gate, up = both[: len(both) // 2], both[len(both) // 2 :]
    return parameters[f"{name}.down.weight"] @ (gate / (1 + torch.exp(-gate)) * up)


def _encode(config: Model, parameters: Parameters, prefix: str, h: Vectors, embedded: Vectors) -> Vectors:
    length = len(embedded)
    if config.hyformer.encoder == "full":
        norm = parameters[prefix + "block.attention_norm.weight"]
        renamed = {prefix + f"{side}_norm.weight": norm for side in ("query", "key")} | {
            prefix + f"{name}.weight": parameters[f"{prefix}block.{name}.weight"]
            for name in ("query", "key_value", "output")
        }
        places = list(range(1, length + 1))
        mixed = [_cross(config, renamed, prefix, x, place, h, places) for x, place in zip(h, places, strict=True)]
        norm = parameters[prefix + "block.ffn_norm.weight"]
        return [x + _swiglu(parameters, prefix + "block.ffn", rms(x, norm)) for x in mixed]
    if config.hyformer.encoder == "recent":
        first, places = length - len(h) + 1, list(range(1, length + 1))
        h = [_cross(config, parameters, prefix + "over_all.", x, first + i, embedded, places) for i, x in enumerate(h)]
    norm = parameters[prefix + "ffn.norm.weight"]
    return [x + _swiglu(parameters, prefix + "ffn.ffn", rms(x, norm)) for x in h]


def _cross(
    config: Model,
    parameters: Parameters,
    prefix: str,
    query: torch.Tensor,
    place: int,
    keys: Vectors,
    places: list[int],
) -> torch.Tensor:
    """Query + attention over all keys, of one query. place, places: for RoPE."""
    if not keys:
        return query
    dim, both = config.dim, parameters[prefix + "key_value.weight"]
    normed = [rms(key, parameters[prefix + "key_norm.weight"]) for key in keys]
    asked = parameters[prefix + "query.weight"] @ rms(query, parameters[prefix + "query_norm.weight"])
    looked_at = [turned(config, both[:dim] @ key, at) for key, at in zip(normed, places, strict=True)]
    values = torch.stack([both[dim:] @ key for key in normed])
    mixed = attended(config, turned(config, asked, place), torch.stack(looked_at), values)
    return query + parameters[prefix + "output.weight"] @ mixed


def _boost(parameters: Parameters, prefix: str, tokens: Vectors) -> Vectors:
    """Token h's mix: all tokens' h-th slices, each as wide as the widest, ended with zeros."""
    count, dim = len(tokens), len(tokens[0])
    normed = [rms(token, parameters[prefix + "norm.weight"]) for token in tokens]
    widest, out = math.ceil(dim / count), []
    for h in range(count):
        first, end = dim * h // count, dim * (h + 1) // count
        zeros = torch.zeros(widest - (end - first), dtype=torch.float64)
        mixed = torch.cat([piece for token in normed for piece in (token[first:end], zeros)])
        hidden = mixed @ parameters[prefix + "ffn.up_TDF"][h] + parameters[prefix + "ffn.up_bias_T1F"][h, 0]
        boost = gelu(hidden) @ parameters[prefix + "ffn.down_TFD"][h] + parameters[prefix + "ffn.down_bias_T1D"][h, 0]
        out.append(tokens[h] + boost)
    return out
