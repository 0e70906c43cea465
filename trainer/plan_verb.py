"""The `plan` verb: what a run file costs at a world size, before anybody reserves a machine."""

from __future__ import annotations

import logging
import re

import click
import torch

from embeddings.device_rules import check_device
from embeddings.errors import PlanDoesNotFitError
from embeddings.plan import check_fit, make_plan, report
from embeddings.plan_report import human_bytes
from embeddings.specs import table_specs
from embeddings.tables import Tables
from model.rankers import build_ranker
from trainer import logs
from trainer.config import Config, load_config
from trainer.errors import ConfigError
from trainer.layout import make_layout

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
# Of a dense parameter, in bytes: itself, its gradient and AdamW's two moments, all float32.
DENSE_BYTES = 16


def plan(config_path: str, overrides: list[str], world_size: int, device: str, memory: str | None) -> None:
    """Print the plan. Raises ConfigError, and PlanDoesNotFitError when `memory` is given and not enough."""
    logs.to_console(level=logging.WARNING)
    limit = parse_size(memory) if memory else 0
    click.echo("\n".join(plan_lines(load_config(config_path, overrides), world_size, device, limit)))


def plan_lines(config: Config, world_size: int, device: str = "cpu", memory: int = 0) -> list[str]:
    """Sharding table by table, tables' memory per rank, and the dense part. memory: bytes of a rank, 0 = not asked."""
    specs = table_specs(config.schema, config.embeddings)
    check_device(specs, config.embeddings, device)
    tables = Tables(specs, device="meta")
    sharding = make_plan(tables, specs, world_size, world_size, device, memory_per_rank=memory)
    findings = report(sharding, specs, config.embeddings, world_size)
    with torch.device("meta"):
        ranker = build_ranker(make_layout(config.schema, specs).spec, config.model)
    parameters = sum(parameter.numel() for parameter in ranker.parameters())
    dense_bytes = DENSE_BYTES * parameters
    if memory:
        _check_dense(dense_bytes, memory)
        check_fit(findings, memory - dense_bytes)
    return [
        *findings.lines(),
        "",
        f"dense     {parameters:,} parameters ({config.model.kind}), on every rank {human_bytes(dense_bytes)} with "
        "gradients and optimizer",
        f"in all    {human_bytes(max(findings.bytes) + dense_bytes)} on the fullest of {world_size} rank(s), "
        "activations not counted",
    ]


def _check_dense(dense_bytes: int, memory: int) -> None:
    """Raises PlanDoesNotFitError where the dense part alone leaves the tables nothing."""
    if dense_bytes >= memory:
        raise PlanDoesNotFitError(
            [
                f"the dense part takes {human_bytes(dense_bytes)} of {human_bytes(memory)} a rank → every rank holds "
                "all of it, with its gradients and optimizer → more memory, or a smaller model.dim or model.num_layers"
            ]
        )


def parse_size(text: str) -> int:
    """ "80GB" → bytes; GB is 10⁹, GiB 2³⁰. Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if match is None or match[2] not in UNITS:
        raise ConfigError(f"--memory {text} → a size is a number with a unit → write it as 80GB or 64GiB")
    return int(float(match[1]) * UNITS[match[2]])
