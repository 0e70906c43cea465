"""The `plan` verb: what a run file costs at a world size, before anybody reserves a machine."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from embeddings.device_rules import check_device
from embeddings.errors import PlanDoesNotFitError
from embeddings.plan import make_groups, make_placement, report
from embeddings.plan_choice import Cluster
from embeddings.plan_fit import Limits, check_fit
from embeddings.plan_load import assumed_ids
from embeddings.plan_report import PlanReport, human_bytes
from embeddings.specs import table_specs
from trainer import logs
from trainer.config import Config, load_config
from trainer.errors import ConfigError
from trainer.hardware import PRESETS, default_preset
from trainer.layout import make_layout
from trainer.make_ranker import make_ranker
from trainer.plan_fields import FieldCosts, field_costs
from trainer.plan_ids import find_work
from trainer.plan_time import StepTime, estimate, lines
from trainer.row_cost import row_cost
from trainer.run_dir import write_atomic

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
# Of a dense parameter, in bytes: itself, its gradient and AdamW's two moments, all float32.
DENSE_BYTES = 16
FOR_MEMORY = "plan      made to fit this memory: have it by --save plan.json, then train --plan plan.json"


@dataclass(frozen=True)
class PlanOptions:
    """As typed, sizes in bytes. memory: of a rank's device, 0 = not asked. host_memory: of a host, 0 = not asked.
    local_world_size: ranks a host, 0 = all. hardware: a preset's name, "" = the device's usual one."""

    world_size: int
    device: str = "cpu"
    memory: int = 0
    local_world_size: int = 0
    host_memory: int = 0
    hardware: str = ""


def options_of(
    world_size: int,
    device: str,
    memory: str | None,
    local_world_size: int | None,
    host_memory: str | None,
    hardware: str | None,
) -> PlanOptions:
    """From the command line. Raises ConfigError with all that is wrong."""
    problems: list[str] = []

    def size(text: str | None, option: str) -> int:
        try:
            return parse_size(text, option) if text else 0
        except ConfigError as error:
            problems.extend(error.problems)
            return 0

    if hardware is not None and hardware not in PRESETS:
        problems.append(f"--hardware {hardware} → presets are {', '.join(PRESETS)} → name one of them")
    options = PlanOptions(
        world_size,
        device,
        size(memory, "--hbm"),
        local_world_size or 0,
        size(host_memory, "--host-memory"),
        hardware or "",
    )
    if problems:
        raise ConfigError(problems)
    return options


@dataclass(frozen=True)
class Planned:
    """tables: of one group of ranks. dense_parameters: of the ranker. problems: why it does not fit, [] = it does.
    for_memory: training, which does not ask for the memory, would choose another plan. fields: what they cost a row."""

    options: PlanOptions
    tables: PlanReport
    dense_parameters: int
    kind: str
    time: StepTime
    problems: list[str]
    for_memory: bool
    fields: FieldCosts

    @property
    def dense_bytes(self) -> int:
        """With gradients and optimizer, on every rank."""
        return DENSE_BYTES * self.dense_parameters

    def lines(self) -> list[str]:
        hardware = PRESETS[self.options.hardware or default_preset(self.options.device)]
        fullest = float(self.tables.load.device.max()) + self.dense_bytes
        limit = f" of {human_bytes(self.options.memory)}" if self.options.memory else ""
        return [
            *self.tables.lines(),
            "",
            f"dense     {self.dense_parameters:,} parameters ({self.kind}), on every rank "
            f"{human_bytes(self.dense_bytes)} with gradients and optimizer",
            f"in all    {human_bytes(fullest)}{limit} on the fullest of {self.options.world_size} rank(s), "
            "activations not counted",
            *([FOR_MEMORY] if self.for_memory else []),
            *lines(self.time, hardware, fullest, self.options.world_size),
            *self.fields.lines(),
        ]

    def to_json(self) -> dict[str, Any]:
        hardware = PRESETS[self.options.hardware or default_preset(self.options.device)]
        return self.tables.to_json() | {
            "dense": {"parameters": self.dense_parameters, "bytes": self.dense_bytes},
            "estimate": self.time.to_json() | {"hardware": vars(hardware)},
            "fields": self.fields.to_json(),
            "fits": not self.problems,
            "problems": self.problems,
        }


def plan(
    config_path: str, overrides: list[str], options: PlanOptions, as_json: bool = False, save: str | None = None
) -> None:
    """Print the plan, and what does not fit. save: also write plan.json there.

    Raises ConfigError, PlanError, and PlanDoesNotFitError when `memory` is given and not enough.
    """
    logs.to_console(level=logging.WARNING)
    planned = make(load_config(config_path, overrides), options)
    text = json.dumps(planned.to_json(), indent=2, ensure_ascii=False)
    if save is not None:
        write_atomic(Path(save), text + "\n")
    click.echo(text if as_json else "\n".join(planned.lines()))
    if planned.problems:
        raise PlanDoesNotFitError(planned.problems)


def plan_lines(config: Config, world_size: int, device: str = "cpu", memory: int = 0) -> list[str]:
    """The plan as text. Raises PlanDoesNotFitError."""
    planned = make(config, PlanOptions(world_size, device, memory))
    if planned.problems:
        raise PlanDoesNotFitError(planned.problems)
    return planned.lines()


def make(config: Config, options: PlanOptions) -> Planned:
    """Sharding, bytes and times of a run file; needs no device, and reads a few batches where there are data.

    The choice of sharding rests on the run file alone, so that training makes the same one; the bytes of a step and
    its time rest on what was measured.
    """
    world_size, local = options.world_size, options.local_world_size or options.world_size
    specs = table_specs(config.schema, config.embeddings)
    check_device(specs, config.embeddings, options.device)
    layout = make_layout(config.schema, specs)
    with torch.device("meta"):
        ranker = make_ranker(layout.spec, config.model)
    parameters = sum(parameter.numel() for parameter in ranker.parameters())
    cost = row_cost(layout.spec, config.model)
    room = options.memory - DENSE_BYTES * parameters
    if options.memory and room <= 0:
        raise PlanDoesNotFitError([_dense_misfit(DENSE_BYTES * parameters, options.memory)])
    room = max(room, 0)
    assumed = assumed_ids(config.schema, specs, config.data.global_batch, world_size)
    placement, unbounded = (
        make_placement(specs, world_size, local, options.device, config.embeddings, assumed, memory)
        for memory in (room, 0)
    )
    work = find_work(config, specs, world_size, cost)
    tables = report(placement, specs, config.embeddings, world_size, work.ids)
    hardware = PRESETS[options.hardware or default_preset(options.device)]
    problems: list[str] = []
    size = make_groups(config.embeddings.replicas, world_size).size
    cluster = Cluster(size, min(local, size), options.device, room)
    try:
        check_fit(tables, Limits(cluster.memory, options.host_memory // local), cluster)
    except PlanDoesNotFitError as error:
        problems = error.problems
    time = estimate(tables, work, cost, parameters, hardware, local, config.schema)
    fields = field_costs(config.schema, specs, layout, config.model, cost, work)
    return Planned(options, tables, parameters, config.model.kind, time, problems, placement != unbounded, fields)


def _dense_misfit(dense_bytes: int, memory: int) -> str:
    return (
        f"the dense part takes {human_bytes(dense_bytes)} of {human_bytes(memory)} a rank → every rank holds all of "
        "it, with its gradients and optimizer → more memory, or a smaller model.dim or model.num_layers"
    )


def parse_size(text: str, option: str = "--memory") -> int:
    """ "80GB" → bytes; GB is 10⁹, GiB 2³⁰. Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if match is None or match[2] not in UNITS:
        raise ConfigError(f"{option} {text} → a size is a number with a unit → write it as 80GB or 64GiB")
    return int(float(match[1]) * UNITS[match[2]])
