"""What no section can see alone: contradictions between sections, each as one line value → rule → remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from embeddings.config import Embeddings
from embeddings.errors import PlanError
from embeddings.specs import table_specs
from model.config import Model
from pipelines.config import Data
from pipelines.downsampling_check import check_downsampling
from pipelines.footers import read_columns
from pipelines.schema import INPUT_ROLES, Schema
from pipelines.schema_check import check_schema
from trainer.config_sections import Checkpoint, Init, Launch, Optim, Train
from trainer.slice_check import check_slices


def contradictions(sections: Mapping[str, Any]) -> list[str]:
    """Every problem among the sections that are valid on their own; {section: its settings}, invalid ones absent."""
    problems: list[str] = []
    for names, check in CHECKS:
        if all(name in sections for name in names):
            problems += check(*(sections[name] for name in names))
    return problems


def _tables(schema: Schema, embeddings: Embeddings) -> list[str]:
    if check_schema(schema):  # the tables of a schema that contradicts itself would only repeat its problems
        return []
    try:
        table_specs(schema, embeddings)
    except PlanError as error:
        return error.problems
    return []


def _token_groups(schema: Schema, model: Model) -> list[str]:
    static = {name for name, column in schema.static().items() if column.role in INPUT_ROLES}
    problems: list[str] = []
    owner: dict[str, str] = {}
    for group, names in model.tokens.groups.items():
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


def _data(data: Data) -> list[str]:
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
    return problems


def _downsampling(schema: Schema, data: Data) -> list[str]:
    return list(check_downsampling(schema, data.downsampling, schema.supervised_group))


def _gate(schema: Schema, data: Data) -> list[str]:
    columns = data.gate.columns if data.gate else {}
    return [
        f"data.gate.columns.{name} → rules are for columns that batches are made of → name one of [schema.columns] "
        "that is no key"
        for name in columns
        if name not in read_columns(schema)
    ]


def _optim(optim: Optim) -> list[str]:
    problems = []
    if not all(0 <= beta < 1 for beta in optim.betas):
        problems.append(f"optim.betas = {list(optim.betas)} → both are in [0, 1) → correct them")
    if 0 < optim.decay_examples <= optim.warmup_examples:
        problems.append(
            f"optim.decay_examples = {optim.decay_examples} is within warm-up ({optim.warmup_examples}) → decay ends "
            "after warm-up → raise it, or 0 for a constant rate"
        )
    return problems


def _init(init: Init) -> list[str]:
    return [
        f"init.{part} = false but init.{part}_optimizer = true → an optimizer's states are of the weights they were"
        f" made with → carry both, or set init.{part}_optimizer = false"
        for part in ("tables", "tower")
        if not getattr(init, part) and getattr(init, f"{part}_optimizer")
    ]


def _init_ids(schema: Schema, embeddings: Embeddings, init: Init) -> list[str]:
    if init.id_maps or not init.tables or _tables(schema, embeddings) or check_schema(schema):
        return []
    bucketed = [name for name, spec in table_specs(schema, embeddings).items() if spec.is_bucketed]
    if not bucketed:
        return []
    return [
        f"init.id_maps = false but init.tables = true, with tables {', '.join(bucketed)} → rows without their ids would"
        " become other ids' → carry both, or set init.tables = false"
    ]


def _workers(data: Data, launch: Launch) -> list[str]:
    problems = []
    if launch.workers > data.global_batch:
        problems.append(
            f"data.global_batch = {data.global_batch} with launch.workers = {launch.workers} → each worker needs a row "
            "of every batch → raise the one or lower the other"
        )
    if launch.backend == "inline" and launch.workers > 1:
        problems.append(
            f"launch.workers = {launch.workers} with launch.backend = 'inline' → inline is this one process "
            "→ use backend 'ray' or 1 worker"
        )
    return problems


def _best(schema: Schema, checkpoint: Checkpoint) -> list[str]:
    """By a task that there is not."""
    task, dot, _ = checkpoint.best.rpartition(".")
    if not dot or task in schema.tasks:
        return []
    return [
        f"checkpoint.best = '{checkpoint.best}' → TASK.METRIC of one of the tasks: {', '.join(schema.tasks)} → "
        "correct the task's name"
    ]


def _guards(train: Train, checkpoint: Checkpoint) -> list[str]:
    """Guards that nothing would wake."""
    problems = []
    for key in ("stop_after", "eval_share"):
        if getattr(train, key) and not train.eval_every:
            problems.append(
                f"train.{key} = {getattr(train, key)} but train.eval_every = 0 → it is of evaluations under way → set "
                f"train.eval_every, or {key} = 0"
            )
    if train.stop_after and not checkpoint.keep_best:
        problems.append(
            f"train.stop_after = {train.stop_after} but checkpoint.keep_best = 0 → the best model would be gone when "
            "the run stops → set checkpoint.keep_best = 1"
        )
    return problems


def _compute(model: Model, train: Train) -> list[str]:
    if model.in_blocks:
        return []
    return [
        f"train.{key} = true with model.kind = '{model.kind}' → it is of tokenformer's and transformer's "
        "blocks → drop it"
        for key in ("compile", "checkpoint_activations")
        if getattr(train, key)
    ]


CHECKS: tuple[tuple[tuple[str, ...], Callable[..., list[str]]], ...] = (
    (("schema",), check_schema),
    (("schema", "embeddings"), _tables),
    (("schema", "model"), _token_groups),
    (("data",), _data),
    (("schema", "data"), _downsampling),
    (("schema", "data"), _gate),
    (("optim",), _optim),
    (("init",), _init),
    (("schema", "embeddings", "init"), _init_ids),
    (("data", "launch"), _workers),
    (("schema", "checkpoint"), _best),
    (("train", "checkpoint"), _guards),
    (("model", "train"), _compute),
    (("schema", "telemetry"), check_slices),
)
