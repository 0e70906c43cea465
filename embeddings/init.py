"""A row's initial value is a function of (seed, table, row, column) alone: every plan, world size and device starts
alike, and a table of another dtype starts from the same values, rounded.

It is a counter-based generator: splitmix64's output function on key(seed, table) + (row · width + column) · golden
ratio, whose upper 24 bits make a uniform float32 in [0, 1). "normal" takes 52 bits to the inverse of the normal
distribution in float64.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from embeddings.held_tables import local_boxes
from embeddings.specs import TableSpec, seed_of
from embeddings.tables import module_name

CHUNK = 1 << 18  # elements a chunk: its int64 temporaries stay in the cache
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
    """Initial values of a table's rows from first_row on and columns from first_column on, into shard [rows, columns]
    of any float dtype, contiguous.
    """
    if spec.init == "zeros":
        shard.zero_()
        return
    if spec.init == "uniform" and shard.device.type == "cpu" and shard.dtype in {torch.float32, torch.float16}:
        _fill_compiled(shard, spec.width, _key(spec, seed), _scale(spec), first_row, first_column)
        return
    rows, columns = shard.shape
    step = max(1, CHUNK // max(1, columns))
    column_C = torch.arange(first_column, first_column + columns, device=shard.device)
    for start in range(0, rows, step):
        end = min(rows, start + step)
        row_R = torch.arange(first_row + start, first_row + end, device=shard.device)
        shard[start:end] = initial_rows(spec, seed, row_R, column_C)


def _uniform(bits: torch.Tensor, scale: float) -> torch.Tensor:
    """In ±scale, from the upper 24 bits."""
    return (_shift(bits, 40).to(torch.float32) * 2.0**-24 * 2 - 1) * scale


def _normal(bits: torch.Tensor, scale: float) -> torch.Tensor:
    """Of that standard deviation, from the upper 52 bits; the half keeps 0 and 1 out."""
    uniform = (_shift(bits, 12).to(torch.float64) + 0.5) * 2.0**-52
    return (torch.erfinv(uniform * 2 - 1) * (math.sqrt(2) * scale)).to(torch.float32)


def _fill_compiled(shard: torch.Tensor, width: int, key: int, scale: float, first_row: int, first_column: int) -> None:
    """The same bits as _uniform, several times faster: a table of 10⁸ rows is to be ready in seconds."""
    from embeddings.cpu_kernels import fill_uniform  # noqa: PLC0415
    from embeddings.cpu_rows import in_threads  # noqa: PLC0415

    assert shard.is_contiguous()
    rows, columns = shard.shape
    place, half = shard.data_ptr(), shard.dtype is torch.float16

    def part(first: int, last: int) -> None:
        fill_uniform(first, last, place, columns, half, width, key, np.float32(scale), first_row, first_column)

    in_threads(part, rows)


def initial_rows(spec: TableSpec, seed: int, row_R: torch.Tensor, column_C: torch.Tensor) -> torch.Tensor:
    """Initial values of these rows and columns of a table, float32 [R, C]: those of `fill`, wherever they lie."""
    if spec.init == "zeros":
        return torch.zeros(len(row_R), len(column_C), device=row_R.device)
    bits_RC = _splitmix64((row_R[:, None] * spec.width + column_C) * GOLDEN + _key(spec, seed))
    return (_normal if spec.init == "normal" else _uniform)(bits_RC, _scale(spec))


def _key(spec: TableSpec, seed: int) -> int:
    return _signed((seed_of("init", spec.name) ^ (seed * 0x9E3779B97F4A7C15)) % 2**64)


def _scale(spec: TableSpec) -> float:
    """Half the range of "uniform", the standard deviation of "normal"."""
    scale: float = spec.init_scale / spec.width**0.5
    return scale


def _splitmix64(state: torch.Tensor) -> torch.Tensor:
    state = (state ^ _shift(state, 30)) * MIX_1
    state = (state ^ _shift(state, 27)) * MIX_2
    return state ^ _shift(state, 31)


def _shift(state: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
