"""Looking up and updating a sharded table's rows on CPU, in place of FBGEMM's kernels, on FBGEMM's own memory.

TorchRec, the state dict and the optimizer's state see no difference: weights and states stay where FBGEMM put them, and
so does the rule of every optimizer. embeddings.cpu_kernels says why.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from fbgemm_gpu.tbe.config.optimizer_config import WeightDecayMode
from torch import nn
from torch.autograd.function import once_differentiable

from embeddings.cpu_kernels import UPDATES, gather, merge
from pipelines.batch import Int64

RULES = {
    EmbOptimType.EXACT_SGD: "sgd",
    EmbOptimType.EXACT_ADAGRAD: "adagrad",
    EmbOptimType.EXACT_ROWWISE_ADAGRAD: "rowwise_adagrad",
}
# Rows that are worth another thread: some hundred microseconds.
ROWS_PER_THREAD = 1 << 13


def use_cpu_rows(module: nn.Module) -> None:
    """Every FBGEMM table of `module` that lives on CPU and has an optimizer of RULES is looked up and updated here."""
    for part in module.modules():
        if isinstance(part, SplitTableBatchedEmbeddingBagsCodegen) and part.use_cpu and part.optimizer in RULES:
            part.forward = CpuRows(part)


@dataclass(frozen=True)
class _Shards:
    """The tables' parts that a module holds, by feature: addresses of their first rows' weights and states, rows."""

    weights_F: Int64
    states_F: Int64
    sizes_F: Int64


@dataclass(frozen=True)
class _LookedUp:
    """rows: int64 [n], one feature after the other. borders_F: int64 [F + 1], where each begins, and n."""

    rows: torch.Tensor
    borders_F: Int64

    def __len__(self) -> int:
        return len(self.rows)


class CpuRows:
    """Stands in for the forward of one FBGEMM module, which holds several tables of one optimizer, dtype and width."""

    def __init__(self, tables: SplitTableBatchedEmbeddingBagsCodegen) -> None:
        self._tables = tables
        self._update = UPDATES[RULES[tables.optimizer]]
        self._shards: tuple[tuple[int, int], _Shards] | None = None
        # Not FBGEMM's weights: where a rank has no row of them they need no gradient, its backward would not run, and
        # the other ranks would wait for its part of the exchange for ever.
        self._anchor = torch.empty(0, requires_grad=True)
        self._half = tables.weights_host.dtype is torch.float16
        self.columns = int(tables.embedding_specs[0][1])
        assert {spec[1] for spec in tables.embedding_specs} == {self.columns}

    def __call__(self, indices: torch.Tensor, offsets: torch.Tensor, **_unused: Any) -> torch.Tensor:
        """indices int64 [n]: rows of one feature after the other. offsets int64 [features · B + 1]. Returns float32
        [n, D]. Its backward updates the rows. Raises IndexError for a row that a table does not have."""
        samples = max(1, (len(offsets) - 1) // len(self._tables.feature_table_map))
        asked = _LookedUp(indices.contiguous(), offsets[::samples].contiguous().numpy())
        looked_up: torch.Tensor = _Lookup.apply(self._anchor, self, asked)  # type: ignore[no-untyped-call]
        return looked_up

    def look_up(self, asked: _LookedUp) -> torch.Tensor:
        """float32 [n, D]."""
        # Not torch.empty, which deterministic mode fills first.
        out = np.empty((len(asked), self.columns), np.float32)
        shards, place, source = self.shards(), out.ctypes.data, asked.rows.data_ptr()

        def part(first: int, last: int) -> None:
            bad = gather(
                first, last, source, asked.borders_F, shards.weights_F, shards.sizes_F, self.columns, self._half, place
            )
            if bad >= 0:
                feature = int(np.searchsorted(asked.borders_F, bad, side="right")) - 1
                raise IndexError(
                    f"row {int(asked.rows[bad])} was looked up in a table that has {shards.sizes_F[feature]} here"
                )

        in_threads(part, len(asked))
        return torch.from_numpy(out)

    def update(self, asked: _LookedUp, grads: torch.Tensor) -> None:
        """One step of the optimizer with grads float32 [n, D], those of one row added up first."""
        count, shards = len(asked), self.shards()
        longest = int(np.diff(asked.borders_F).max(initial=0))
        seen, slots = np.empty(4 * longest + 2, np.int32), np.empty(count, np.int32)
        sums = np.empty((count // 2 + 1, self.columns), np.float32)
        places = asked.rows.data_ptr(), grads.data_ptr(), slots.ctypes.data, sums.ctypes.data
        merge(places[0], places[1], asked.borders_F, self.columns, seen, *places[2:])
        settings = self._settings()

        def part(first: int, last: int) -> None:
            self._update(
                first, last, *places, asked.borders_F, shards.weights_F, shards.states_F, self.columns, self._half,
                *settings,
            )  # fmt: skip

        in_threads(part, count)

    def shards(self) -> _Shards:
        """Made anew where the memory has moved, as loading a checkpoint may do."""
        tables = self._tables
        bases = tables.weights_host.data_ptr(), tables.momentum1_host.data_ptr()
        if self._shards is None or self._shards[0] != bases:
            of_feature = tables.feature_table_map
            size = tables.weights_host.element_size()
            # sgd has no state; others' are float32
            offsets = None if tables.optimizer is EmbOptimType.EXACT_SGD else tables.momentum1_physical_offsets
            weights = [bases[0] + size * tables.weights_physical_offsets[table] for table in of_feature]
            states = [bases[1] + 4 * offsets[table] if offsets else 0 for table in of_feature]
            sizes = [tables.embedding_specs[table][0] for table in of_feature]
            found = _Shards(*(np.array(values, np.int64) for values in (weights, states, sizes)))
            self._shards = (bases, found)
        return self._shards[1]

    def _settings(self) -> tuple[float, float, float]:
        """(learning rate, eps, L2 weight decay) as they are now."""
        arguments = self._tables.optimizer_args
        decays = arguments.weight_decay_mode == WeightDecayMode.L2.value
        return float(self._tables.get_learning_rate()), arguments.eps, arguments.weight_decay if decays else 0.0


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _anchor: torch.Tensor, rows: CpuRows, asked: _LookedUp) -> torch.Tensor:
        ctx.rows, ctx.asked = rows, asked
        return rows.look_up(asked)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: torch.Tensor) -> tuple[None, None, None]:
        ctx.rows.update(ctx.asked, grads.to(torch.float32).contiguous())
        return None, None, None


def in_threads(part: Callable[[int, int], None], count: int) -> None:
    """part(first, last) over 0 … count − 1, on torch's number of threads where that is worth it."""
    pieces = min(torch.get_num_threads(), count // ROWS_PER_THREAD)
    if pieces <= 1:
        part(0, count)
        return
    borders = [count * piece // pieces for piece in range(pieces + 1)]
    list(_pool(pieces).map(part, borders, borders[1:]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="table rows")
