"""A run that begins with another run's model: part by part, as `[init]` says; fields and tables may have been added,
dropped or widened since. `--resume` is another thing: there all must be as it was."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from embeddings.held import Held
from pipelines.schema import Schema
from trainer.assembly import Assembly
from trainer.checkpoint import manifest
from trainer.checkpoint.agreement import agree, gather
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.folder import Location, step_name
from trainer.checkpoint.reading import SavedTensors
from trainer.checkpoint.state import CheckpointState, read_state, schema_differences
from trainer.config import Config
from trainer.config_sections import Init
from trainer.errors import CheckpointError
from trainer.init_account import FRESH, OFF, Account
from trainer.init_tables import TableCarrier
from trainer.init_tower import TowerCarrier
from trainer.model_description import ModelDescription, describe, described
from trainer.model_state import load_rest, model_tensors
from trainer.train_state import TrainState, in_flight_examples


@dataclass(frozen=True)
class Begun:
    """metrics: as a checkpoint keeps them, None = begin anew."""

    state: TrainState
    bad_steps: int
    metrics: Any
    account: Account


def begin(config: Config, assembly: Assembly, checkpointer: Checkpointer, path: Location) -> Begun:
    """Collective. Fills the assembly's weights, states and id maps in place from the checkpoint at `path`, under any
    world size and sharding; a rank keeps no more of a table than what it holds, and reads it block by block.

    Raises CheckpointError on every rank: incomplete, damaged, or it does not say what its model is like.
    """
    group = checkpointer.group
    state = read_state(path, manifest.read_commit(path))
    account = Account(f"{config.init.run}, step {state.step:,}")
    with agree(group):
        before, now = described(path, state), describe(config, assembly.specs)
    _note_fields(account, state.data_schema, config.schema)
    in_flight = in_flight_examples(state) if config.init.tower and config.init.tower_optimizer else None
    if in_flight is not None:
        assembly.sync.hold(in_flight)
    tensors = model_tensors(assembly)
    with checkpointer.opened(path) as saved:
        with agree(group):
            if problems := _incomplete(saved):
                raise CheckpointError(problems)
        tables = TableCarrier(saved, tensors, config.init, account)
        with agree(group):
            _carry_tables(tables, account, before, now, assembly)
            TowerCarrier(saved, tensors, config.init, account).carry(before, now)
    tables.tell_dealt(gather(tables.dealt, group))
    load_rest(assembly, tensors)
    return _begun(config.init, state, account)


def _carry_tables(
    carrier: TableCarrier, account: Account, before: ModelDescription, now: ModelDescription, assembly: Assembly
) -> None:
    for name, spec in assembly.specs.items():
        if name in before.tables:
            carrier.carry(before.tables[name], now.tables[name].boundaries, spec)
        else:
            account.note(f"table {name}: new: initialised")
            carrier.leave(spec, FRESH)
    for name in before.tables:
        if name not in now.tables:
            account.note(f"table {name}: dropped")


def _begun(init: Init, saved: CheckpointState, account: Account) -> Begun:
    """Counters, metrics and lineage."""
    parent = f"{init.run.rstrip('/')}/{step_name(saved.step)}"
    state = replace(TrainState.from_checkpoint(saved, parent), position=None)
    if not init.examples:
        state = replace(state, examples=0, rows=0, quarantined_rows=0, data_through=0)
    account.say("learning rate", f"{saved.examples:,} examples since birth" if init.examples else OFF)
    if not init.steps:
        state = replace(state, step=0)
    account.say("steps and dropout", f"step {saved.step:,}" if init.steps else OFF)
    if not account.has_carried("in flight"):
        account.say("in flight", "nothing" if in_flight_examples(saved) is None else OFF)
    account.say("metrics", ", ".join(saved_tasks(saved)) if init.metrics else OFF)
    lineage = (*saved.resumed_from, parent) if init.lineage else ()
    account.say("lineage", f"{len(lineage)} checkpoint{'s' * (len(lineage) != 1)}" if init.lineage else OFF)
    return Begun(
        state=replace(state, lineage=lineage),
        bad_steps=saved.bad_steps if init.examples else 0,
        metrics=saved.extra["metrics"] if init.metrics else None,
        account=account,
    )


def saved_tasks(saved: CheckpointState) -> list[str]:
    """Tasks whose metrics a checkpoint holds."""
    metrics: Any = saved.extra["metrics"]
    return list(metrics["tasks"])


def _note_fields(account: Account, before: Schema, now: Schema) -> None:
    """What the schema has more or less: columns, histories, tasks."""
    for difference in schema_differences(before, now):
        account.note(f"schema: {difference}")


def _incomplete(saved: SavedTensors) -> list[str]:
    """Tensors of which not all values were saved."""
    return saved.problems(
        {
            name: Held(tuple(record.size), manifest.torch_dtype(record.dtype), ())
            for name, record in saved.tensors.items()
        }
    )
