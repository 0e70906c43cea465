"""A row's initial value is a function of (seed, table, row, column) alone: every plan, world size and device starts
alike.

It is a counter-based generator: splitmix64's output function on key(seed, table) + (row · width + column) · golden
ratio, whose upper 24 bits make a uniform float32 in [0, 1).
"""

from __future__ import annotations

import torch
from torch import nn

from embeddings.held_tables import local_boxes
from embeddings.specs import TableSpec, seed_of
from embeddings.tables import module_name

CHUNK = 1 << 20  # elements a chunk: bounds the temporaries, which are int64
GOLDEN, MIX_1, MIX_2 = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@torch.no_grad()
def initialise(module: nn.Module, specs: dict[str, TableSpec], seed: int) -> None:
    """Fills the tables' rows that this process holds, in place. `module` holds Tables, sharded by any plan or not at
    all.

    Raises ValueError when a table of `specs` is not in the module.
    """
    state = module.state_dict()
    for spec in specs.values():
        suffix = f"embeddings.{module_name(spec.name)}.weight"
        found = [value for name, value in state.items() if name == suffix or name.endswith("." + suffix)]
        if not found:
            raise ValueError(f"table {spec.name!r} is not in the module")
        for value in found:
            for shard, (row, column) in local_boxes(value):
                fill(shard, spec, seed, row, column)


def fill(shard: torch.Tensor, spec: TableSpec, seed: int, first_row: int = 0, first_column: int = 0) -> None:
    """Initial values of a table's rows from first_row on and columns from first_column on, into shard float [rows,
    columns].
    """
    rows, columns = shard.shape
    step = max(1, CHUNK // max(1, columns))
    key = _signed((seed_of("init", spec.name) ^ (seed * 0x9E3779B97F4A7C15)) % 2**64)
    bound = spec.init_scale / spec.width**0.5
    column_C = torch.arange(first_column, first_column + columns, device=shard.device)
    for start in range(0, rows, step):
        end = min(rows, start + step)
        row_R = torch.arange(first_row + start, first_row + end, device=shard.device)
        counter_RC = row_R[:, None] * spec.width + column_C
        uniform_RC = _shift(_splitmix64(counter_RC * GOLDEN + key), 40).to(torch.float32) * 2.0**-24
        shard[start:end] = (uniform_RC * 2 - 1) * bound


def _splitmix64(state: torch.Tensor) -> torch.Tensor:
    state = (state ^ _shift(state, 30)) * MIX_1
    state = (state ^ _shift(state, 27)) * MIX_2
    return state ^ _shift(state, 31)


def _shift(state: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
