"""Tables in 2D: every group of ranks trains a copy of its own, and the copies are averaged every few steps.

TorchRec's DMPCollection does this on CUDA; here it is plain all-reduces over the ranks that hold the same boxes, the
same on every device. A group's gradient is scaled so that the mean over groups is that of the global batch: with SGD,
averaging after every step is training one copy on it.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel

from embeddings.held import Held, LocalChunk
from embeddings.held_tables import held_tables
from embeddings.specs import TableSpec
from embeddings.touched import ShardRows, TouchedRows
from trainer.runtime import Runtime

log = logging.getLogger(__name__)

PIECE = 1 << 22  # values averaged at a time: bounds what is copied


class Copies:
    """Of this rank's boxes of the tables. With one copy nothing ever happens. steps: between two averages."""

    def __init__(
        self,
        model: DistributedModelParallel,
        specs: dict[str, TableSpec],
        touched: TouchedRows,
        runtime: Runtime,
        steps: int,
    ) -> None:
        self._model, self._specs, self._touched, self._steps = model, specs, touched, steps
        self._group, self._is_first = runtime.copies, runtime.is_first_copy

    def after_step(self, step: int) -> None:
        """Averages where it is time. Collective."""
        if self._group is not None and step % self._steps == 0:
            self._average(self._group)

    def are_equal(self, step: int) -> bool:
        """Whether the copies are one and the same after this step: what is saved then is all there is."""
        return self._group is None or step % self._steps == 0

    def end(self, step: int) -> None:
        """The last step of a run may come in between: the copies are averaged once more, which a run that went on would
        not have done. Collective."""
        if self._group is not None and not self.are_equal(step):
            log.info(
                "step %d is not one of every %d: the copies of the tables are averaged once more", step, self._steps
            )
            self._average(self._group)

    def to_save(self, tables: dict[str, Held]) -> dict[str, Held]:
        """One copy of what all have: the boxes of the first, none of the others."""
        return tables if self._is_first else {name: replace(held, chunks=()) for name, held in tables.items()}

    @torch.no_grad()
    def _average(self, group: dist.ProcessGroup) -> None:
        """Weights and optimizer states, in float32, of the rows that some copy has touched since the last checkpoint.

        Checkpoints are taken where the copies are equal: rows that none has touched since then are equal, and stay as
        they are to the bit, as frozen tables do. The others count as touched in every copy from now on.
        """
        changed = {(s.table, s.first): self._changed_rows(s, group) for s in self._touched.shards()}
        for name, held in held_tables(self._model, self._specs).items():
            table = name.rpartition("/")[0]
            for chunk in held.chunks:
                if not self._specs[table].frozen:
                    _average(chunk, changed[table, chunk.offsets[0]], group)

    def _changed_rows(self, shard: ShardRows, group: dist.ProcessGroup) -> torch.Tensor:
        """int64, ascending: rows of the shard. Those that only others have touched are marked, before they change."""
        mine_R = shard.generation_R == self._touched.generation
        any_R = mine_R.to(torch.uint8)
        dist.all_reduce(any_R, op=dist.ReduceOp.MAX, group=group)
        theirs = torch.nonzero((any_R > 0) & ~mine_R)[:, 0]
        if len(theirs):
            self._touched.changing(shard.table, theirs + shard.first)
        return torch.nonzero(any_R)[:, 0]


def _average(chunk: LocalChunk, rows: torch.Tensor, group: dist.ProcessGroup) -> None:
    width = max(1, chunk.tensor[:1].numel())
    for part in torch.split(rows, max(1, PIECE // width)):
        if len(part):
            mean = chunk.tensor.index_select(0, part).float()
            dist.all_reduce(mean, group=group)
            mean /= dist.get_world_size(group)
            chunk.tensor.index_copy_(0, part, mean.to(chunk.tensor.dtype))
