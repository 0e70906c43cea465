"""Which fields, histories and tasks the parameters of a ranker are of, so that they find their way into another one.

Most parameters are of no field: they go by their name. The few that are have one axis whose stretches belong to fields,
histories or tasks; a field added, dropped or widened changes that axis alone. Rankers that read all tokens end to end
(DCN-V2, DIN) have such axes too, and crosses have two. Field tokens are numbered, so that a field dropped gives those
behind it other names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from model.config import Model
from model.hyformer import history_key
from model.inputs import FieldSpec, InputSpec
from model.timeline import ordered_histories
from model.tokens import group_fields

Parts = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class ParameterAxes:
    """Of one parameter. parts: (what, how many entries of `axis`), end to end. family: parameters among which a
    numbered one is looked for; "" = its name stands for it. across: parts of a matrix's other axis, where that has
    stretches as well."""

    parts: Parts
    axis: int
    family: str = ""
    across: Parts = ()


def parameter_axes(spec: InputSpec, config: Model) -> dict[str, ParameterAxes]:
    """{parameter of `build_ranker(spec, config)`: its axes}; those that are not named are of no field."""
    axes: dict[str, ParameterAxes] = {}
    static = {field.name: field for field in spec.static}
    for number, group in enumerate(group_fields(list(static), config.tokens)):
        parts = tuple(_part(static[name]) for name in group)
        name = f"tokens.fields.projections.{number}"
        axes[f"{name}.weight"] = ParameterAxes(parts, 1, "tokens.fields.projections.weight")
        # A bias is of its whole token: no axis of it has stretches.
        axes[f"{name}.bias"] = ParameterAxes(parts, -1, "tokens.fields.projections.bias")
    gaps = ("gap before", "gap to the request") if spec.supervision == "candidates" else ("gap before",)
    event = tuple(_part(field) for field in spec.event)
    if config.time_gaps:
        event += tuple((f"({gap})", 1) for gap in gaps)
    axes["tokens.events.projection.weight"] = ParameterAxes(event, 1)
    axes["tokens.events.action_projection.weight"] = ParameterAxes(tuple(_part(field) for field in spec.action), 1)
    histories = tuple((history.name, 1) for history in ordered_histories(spec))
    axes["tokens.events.names"] = ParameterAxes(histories, 0)
    tasks = tuple((task, 1) for task in spec.tasks)
    axes |= {f"head.{name}": ParameterAxes(tasks, 0) for name in ("weight", "bias")}
    if config.kind in _READERS:
        axes |= _READERS[config.kind](spec, config)
    return axes


def _dcnv2(spec: InputSpec, config: Model) -> dict[str, ParameterAxes]:
    own, tasks = config.dcnv2, tuple((task, 1) for task in spec.tasks)
    tokens = (*_field_tokens(spec, config), *_tokens_named(config, "target", "history"))
    axes = {}
    for layer in range(own.cross_layers):
        axes[f"crosses.{layer}.linear.weight"] = ParameterAxes(tokens, 0, across=() if own.rank else tokens)
        axes[f"crosses.{layer}.linear.bias"] = ParameterAxes(tokens, 0)
        axes[f"crosses.{layer}.down.weight"] = ParameterAxes(tokens, 1)
    if own.hidden:
        axes["deep.linears.0.weight"] = ParameterAxes(tokens, 1)
    deep = (("(deep)", own.hidden[-1]),) if own.hidden else tuple((f"(deep) {name}", width) for name, width in tokens)
    axes["head.weight"] = ParameterAxes(tasks, 0, across=tokens + deep)
    return axes


def _din(spec: InputSpec, config: Model) -> dict[str, ParameterAxes]:
    tokens = (*_field_tokens(spec, config), *_tokens_named(config, "history", "target"))
    if config.din.hidden:
        return {"mlp.linears.0.weight": ParameterAxes(tokens, 1)}
    return {"head.weight": ParameterAxes(tuple((task, 1) for task in spec.tasks), 0, across=tokens)}


def _onetrans(spec: InputSpec, config: Model) -> dict[str, ParameterAxes]:
    """Matrices of single NS-tokens, one behind the other."""
    tokens = (*_field_tokens(spec, config), *_tokens_named(config, "candidate"))
    own = ParameterAxes(tuple((token, 1) for token, _ in tokens), 0)
    names = ("own_query_key_value", "own_up", "own_down")
    return {f"blocks.{layer}.{name}.weight": own for layer in range(config.num_layers) for name in names}


def _hyformer(spec: InputSpec, config: Model) -> dict[str, ParameterAxes]:
    """What queries are generated from. Histories are in the parameters' names. The boosting FFNs are of their tokens
    along both axes, since every token has a slice of each, and a slice's width is one of their number: with another
    number of tokens they begin anew."""
    request = ParameterAxes((*_field_tokens(spec, config), *_tokens_named(config, "history")), 1)
    return {f"generation.{history_key(history.name)}.request.weight": request for history in spec.histories}


_READERS: dict[str, Callable[[InputSpec, Model], dict[str, ParameterAxes]]] = {
    "dcnv2": _dcnv2,
    "din": _din,
    "onetrans": _onetrans,
    "hyformer": _hyformer,
}


def _field_tokens(spec: InputSpec, config: Model) -> Parts:
    groups = group_fields([field.name for field in spec.static], config.tokens)
    return _tokens_named(config, *(", ".join(group) for group in groups))


def _tokens_named(config: Model, *names: str) -> Parts:
    """Tokens of different widths have nothing in common."""
    return tuple((f"token of {name}, {config.dim} wide", config.dim) for name in names)


def _part(field: FieldSpec) -> tuple[str, int]:
    """Embedding rows and dense values are never the same input."""
    return (f"{field.name} (values)" if field.dense else field.name, field.width)
