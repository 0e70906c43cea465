"""What no section can see alone: contradictions between sections, each as one line value → rule → remedy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from embeddings.errors import PlanError
from embeddings.specs import table_specs
from pipelines.schema import INPUT_ROLES
from pipelines.schema_check import check_schema

if TYPE_CHECKING:
    from trainer.config import Config


def contradictions(config: Config) -> list[str]:
    """Every problem of a config whose sections are each valid on their own."""
    problems = check_schema(config.schema)
    if not problems:  # the tables of a schema that contradicts itself would only repeat its problems
        try:
            table_specs(config.schema, config.embeddings)
        except PlanError as error:
            problems += error.problems
    return problems + _token_groups(config) + _model(config) + _data(config) + _optim(config) + _launch(config)


def _token_groups(config: Config) -> list[str]:
    static = {name for name, column in config.schema.static().items() if column.role in INPUT_ROLES}
    problems: list[str] = []
    owner: dict[str, str] = {}
    for group, names in config.model.tokens.groups.items():
        for name in names:
            if name not in static:
                problems.append(
                    f"model.tokens.groups.{group} names '{name}' → groups hold static input fields: "
                    f"{', '.join(sorted(static)) or 'there are none'} → correct the name or drop it"
                )
            elif name in owner:
                problems.append(
                    f"field '{name}' is in the token groups '{owner[name]}' and '{group}' → a field has one token "
                    "→ drop it from one"
                )
            owner[name] = group
        if not names:
            problems.append(
                f"model.tokens.groups.{group} is empty → a token needs fields → name some or remove the group"
            )
    return problems


def _model(config: Config) -> list[str]:
    model = config.model
    problems = []
    multiple = 2 * model.num_heads
    if model.dim % multiple:
        problems.append(
            f"model.dim = {model.dim} with model.num_heads = {model.num_heads} → RoPE turns pairs, so dim must be "
            f"a multiple of 2 · num_heads → use dim = {math.ceil(model.dim / multiple) * multiple}"
        )
    if model.kind == "tokenformer" and model.num_layers > model.full_layers and not model.windows:
        problems.append(
            f"model.windows is empty with {model.num_layers - model.full_layers} sliding layers → each needs "
            "a window → give one, the last repeats"
        )
    if any(window <= 0 for window in model.windows):
        problems.append(f"model.windows = {list(model.windows)} → windows are positive token counts → correct it")
    return problems


def _data(config: Config) -> list[str]:
    data = config.data
    problems = []
    if data.synth and not data.prepare:
        problems.append(
            "[data.synth] without [data.prepare] → the log is written to data.prepare.log → add [data.prepare]"
        )
    fractions = data.prepare.fractions if data.prepare else ()
    if data.prepare and data.prepare.split == "fractions" and not math.isclose(sum(fractions), 1.0):
        problems.append(
            f"data.prepare.fractions = {list(fractions)} add up to {sum(fractions):g} → they are shares of 1 "
            "→ correct them"
        )
    if config.launch.workers > data.global_batch:
        problems.append(
            f"data.global_batch = {data.global_batch} with launch.workers = {config.launch.workers} → each worker "
            "needs a row of every batch → raise the one or lower the other"
        )
    return problems


def _optim(config: Config) -> list[str]:
    optim = config.optim
    problems = []
    if not all(0 <= beta < 1 for beta in optim.betas):
        problems.append(f"optim.betas = {list(optim.betas)} → both are in [0, 1) → correct them")
    if 0 < optim.decay_examples <= optim.warmup_examples:
        problems.append(
            f"optim.decay_examples = {optim.decay_examples} is within warm-up ({optim.warmup_examples}) → decay ends "
            "after warm-up → raise it, or 0 for a constant rate"
        )
    return problems


def _launch(config: Config) -> list[str]:
    launch = config.launch
    if launch.backend == "inline" and launch.workers > 1:
        return [
            f"launch.workers = {launch.workers} with launch.backend = 'inline' → inline is this one process "
            "→ use backend 'ray' or 1 worker"
        ]
    return []
