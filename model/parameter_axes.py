"""Which fields, histories and tasks the parameters of a ranker are of, so that they find their way into another one.

Most parameters are of no field: they go by their name. The few that are have one axis whose stretches belong to fields,
histories or tasks; a field added, dropped or widened changes that axis alone. Field tokens are numbered, so that a
field dropped gives those behind it other names.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.config import Model
from model.inputs import FieldSpec, InputSpec
from model.timeline import ordered_histories
from model.tokens import group_fields

Parts = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class ParameterAxes:
    """Of one parameter. parts: (what, how many entries of `axis`), end to end. family: parameters among which a
    numbered one is looked for; "" = its name stands for it."""

    parts: Parts
    axis: int
    family: str = ""


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
    return axes | {f"head.{name}": ParameterAxes(tasks, 0) for name in ("weight", "bias")}


def _part(field: FieldSpec) -> tuple[str, int]:
    """Embedding rows and dense values are never the same input."""
    return (f"{field.name} (values)" if field.dense else field.name, field.width)
