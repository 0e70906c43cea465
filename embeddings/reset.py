"""Evicted rows begin anew: weights at their initial values, optimizer state at zero, on the rank that holds them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torchrec.distributed import DistributedModelParallel

from embeddings.held import Held, LocalChunk
from embeddings.held_tables import held_tables
from embeddings.init import initial_rows
from embeddings.specs import TableSpec
from pipelines.batch import Int64


class RowResetter:
    """Of the managed tables of a sharded model.

    seed: what the tables were initialised with. changing: called with a table and rows of it (int64, on this rank)
    before they are reset, by whoever keeps account of changes.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        specs: dict[str, TableSpec],
        seed: int,
        changing: Callable[[str, torch.Tensor], None] | None = None,
    ) -> None:
        self._specs = {name: spec for name, spec in specs.items() if spec.mapping == "managed"}
        self._seed, self._changing = seed, changing
        self._tensors: dict[str, list[tuple[bool, Held]]] = {name: [] for name in self._specs}
        if not self._specs:
            return
        for key, held in held_tables(model, specs).items():
            table, _, part = key.rpartition("/")
            if table in self._specs and held.size[0] == self._specs[table].rows:  # no state of the table as a whole
                self._tensors[table].append((part == "weight", held))

    @torch.no_grad()
    def reset(self, rows: dict[str, Int64]) -> None:
        """rows: {managed table: rows that lie on this rank, each once}. To be called between steps."""
        for name, found in rows.items():
            row_R = torch.from_numpy(found)
            if self._changing is not None:
                self._changing(name, row_R)
            for is_weight, held in self._tensors[name]:
                for chunk in held.chunks:
                    self._reset(self._specs[name], chunk, row_R, is_weight)

    def _reset(self, spec: TableSpec, chunk: LocalChunk, row_R: torch.Tensor, is_weight: bool) -> None:
        first, last = chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0]
        here_R = row_R[(row_R >= first) & (row_R < last)].to(chunk.tensor.device, non_blocking=True)
        if not is_weight:
            chunk.tensor.index_fill_(0, here_R - first, 0)
            return
        column_C = torch.arange(chunk.offsets[1], chunk.offsets[1] + chunk.sizes[1], device=here_R.device)
        values_RC = initial_rows(spec, self._seed, here_R, column_C)
        chunk.tensor.index_copy_(0, here_R - first, values_RC.to(chunk.tensor.dtype))
