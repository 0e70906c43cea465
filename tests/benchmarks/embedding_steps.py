"""The contestants of embeddings.py: one step of sharded tables, and of nn.Embedding, on the same ids."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed import DistributedModelParallel

from embeddings.config import Codec
from embeddings.init import initialise
from embeddings.optim import fuse_optimizer
from embeddings.plan import make_plan
from embeddings.sharders import sharders
from embeddings.specs import TableSpec
from embeddings.tables import Tables, group_kjts, key_order, rows_by_table
from pipelines.unique_kernel import SCRATCH, _rank

LR = 0.05


@dataclass(frozen=True)
class Fed:
    """ids [N] as they occur; unique [U]; inverse [N], None where rows are wanted as they are in `unique`."""

    ids: torch.Tensor
    unique: torch.Tensor
    inverse: torch.Tensor | None


def feed(ids: torch.Tensor) -> Fed:
    """The ids made unique as the readers do it."""
    ids_V, counts_V, wide, narrow = SCRATCH.room(len(ids), len(ids))
    inverse = np.empty(len(ids), np.int32)
    used = _rank(ids.numpy(), wide, narrow, inverse, ids_V, counts_V)
    return Fed(ids, torch.from_numpy(ids_V[:used].copy()), torch.from_numpy(inverse).long())


@cache
def _popularity(rows: int) -> np.ndarray:
    return np.cumsum(1.0 / (np.arange(rows) + 10.0))


def zipf_ids(table: int, count: int, rows: int, draw: int = 0) -> torch.Tensor:
    """int64 [count]: Zipf–Mandelbrot over a table's rows, popular ones scattered over it as a hash scatters them."""
    cumulative = _popularity(rows)
    ranks = np.searchsorted(cumulative, np.random.default_rng([table, draw]).random(count) * cumulative[-1])
    return torch.from_numpy(np.random.default_rng(table).permutation(rows)[ranks])


def spec_of(name: str, rows: int, width: int, optimizer: str) -> TableSpec:
    """A table with the defaults."""
    return TableSpec(name, rows, width, "identity", 0, "auto", optimizer=optimizer, lr=LR)  # type: ignore[arg-type]


def move_bytes(rows: float, width: int, optimizer: str) -> dict[str, float]:
    """What a step has to read and write, for `rows` unique rows: ours reads a row, writes it out, reads its gradient,
    reads and writes it and its state."""
    row = 4 * width
    state = {"adagrad": row, "rowwise_adagrad": 4}[optimizer]
    return {
        "ours": rows * (5 * row + 2 * state),
        "index_select, index_add_": rows * 5 * row,
        "index_select, index_copy_": rows * 4 * row,
    }


class OurTables:
    """Sharded tables of the default group, as the trainer builds them, without its pipeline."""

    def __init__(
        self, specs: dict[str, TableSpec], forward_codec: Codec = "fp32", backward_codec: Codec = "fp32"
    ) -> None:
        tables = Tables(specs)
        fuse_optimizer(tables, specs)
        plan = make_plan(tables, specs, dist.get_world_size(), process_group=dist.group.WORLD)
        self.sharded = DistributedModelParallel(
            tables, device=torch.device("cpu"), plan=plan, sharders=sharders(forward_codec, backward_codec)
        )
        initialise(self.sharded, specs, seed=1)
        self.groups = key_order(tables)

    def step(self, fed: dict[str, Fed], gradients: dict[str, torch.Tensor]) -> None:
        """Forward, backward and update."""
        kjts = group_kjts(self.groups, {name: each.unique.numpy() for name, each in fed.items()})
        rows = rows_by_table(self.sharded(kjts), kjts)
        out = {}
        for name, each in fed.items():
            out[name] = rows[name] if each.inverse is None else rows[name].index_select(0, each.inverse)
        torch.autograd.backward([out[name] for name in fed], [gradients[name] for name in fed])


class Plain:
    """nn.Embedding and torch's Adagrad."""

    def __init__(self, rows: int, width: int, sparse: bool) -> None:
        self.table = nn.Embedding(rows, width, sparse=sparse)
        self.optimizer = torch.optim.Adagrad(self.table.parameters(), lr=LR, eps=1e-8)

    def step(self, ids: torch.Tensor, inverse: torch.Tensor | None, gradient: torch.Tensor) -> None:
        """Forward, backward and update."""
        self.optimizer.zero_grad()
        out = self.table(ids)
        (out if inverse is None else out.index_select(0, inverse)).backward(gradient)
        self.optimizer.step()
