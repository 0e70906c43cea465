"""Whether `[data.downsampling]` fits the schema. Apart from what reads rows: loading a run file compiles no loops."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.config import Downsampling
from pipelines.schema import Schema


def check_downsampling(schema: Schema, settings: Downsampling | None, group: str) -> Iterator[str]:
    """Every way in which settings and schema contradict each other, a line each. group: the supervised one."""
    if settings is None:
        return
    key = "data.downsampling"
    if bool(settings.rate_column) == bool(settings.negative_rates):
        yield f"{key}: rate_column and negative_rates {_both(settings)} → one of them says the rates → give one"
    column = schema.columns.get(settings.rate_column)
    if settings.rate_column and (column is None or column.role != "weight" or column.group not in ("", group)):
        found = "no such column" if column is None else f"role {column.role}, group '{column.group}'"
        yield (
            f"{key}.rate_column = '{settings.rate_column}' ({found}) → a column of role weight, static or in group"
            f" {group}, that holds each example's keep rate → name one"
        )
    for label, rate in settings.negative_rates.items():
        spec = schema.columns.get(label)
        if spec is None or spec.role != "label" or spec.group != group:
            yield f"{key}.negative_rates names '{label}' → rates are of label columns of group {group} → correct it"
        if not 0 < rate <= 1:
            yield f"{key}.negative_rates.{label} = {rate:g} → a keep rate is in (0, 1] → correct it"
    if settings.sample and settings.rate_column:
        yield (
            f"{key}: sample with rate_column → a column tells of a log sampled already → use negative_rates, or drop it"
        )
    if settings.correct == "offset":
        yield from _check_offset(schema, settings)


def _check_offset(schema: Schema, settings: Downsampling) -> Iterator[str]:
    if settings.rate_column:
        yield (
            "data.downsampling: correct = 'offset' with rate_column → an offset needs the rate of negatives, a column"
            " tells only the example's own → use correct = 'weight', or negative_rates"
        )
    for name, task in schema.tasks.items():
        # Inside a space every example has that label 1, which no rate of its negatives touches.
        others = [label for label in settings.negative_rates if label not in (task.label, task.space)]
        if task.label and others:
            yield (
                f"data.downsampling: correct = 'offset' and task '{name}' also loses examples by the rates of {others}"
                " → its offset is not known → use correct = 'weight', or give the task that label as its space"
            )


def _both(settings: Downsampling) -> str:
    return "are both given" if settings.rate_column else "are both absent"
