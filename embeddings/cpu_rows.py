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

RULES = {
    EmbOptimType.EXACT_SGD: "sgd",
    EmbOptimType.EXACT_ADAGRAD: "adagrad",
    EmbOptimType.EXACT_ROWWISE_ADAGRAD: "rowwise_adagrad",
}
# Rows that are worth another thread: a chunk takes about a millisecond.
ROWS_PER_THREAD = 1 << 15


def use_cpu_rows(module: nn.Module) -> None:
    """Every FBGEMM table of `module` that lives on CPU and has an optimizer of RULES is looked up and updated here."""
    for part in module.modules():
        if isinstance(part, SplitTableBatchedEmbeddingBagsCodegen) and part.use_cpu and part.optimizer in RULES:
            part.forward = CpuRows(part)


@dataclass(frozen=True)
class _Shard:
    """One table's part: addresses of its first row's weights and state, rows, columns, whether float16."""

    weights: int
    state: int
    rows: int
    columns: int
    half: bool


class CpuRows:
    """Stands in for the forward of one FBGEMM module, which holds several tables of one optimizer and dtype."""

    def __init__(self, tables: SplitTableBatchedEmbeddingBagsCodegen) -> None:
        self._tables = tables
        self.update = UPDATES[RULES[tables.optimizer]]

    def __call__(self, indices: torch.Tensor, offsets: torch.Tensor, **_unused: Any) -> torch.Tensor:
        """indices int64 [n]: rows of one feature after the other. offsets int64 [features · B + 1]. Returns float32
        [n, D]. Its backward updates the rows."""
        looked_up: torch.Tensor = _Lookup.apply(  # type: ignore[no-untyped-call]
            self._tables.weights_host, self, indices.contiguous(), self._borders(offsets)
        )
        return looked_up

    def shards(self) -> list[_Shard]:
        """By feature. Addresses are asked for anew each time: loading a checkpoint may move the memory."""
        tables = self._tables
        weights, state = tables.weights_host, tables.momentum1_host
        half = weights.dtype is torch.float16
        found = []
        for table in tables.feature_table_map:
            rows, columns = tables.embedding_specs[table][:2]
            place = weights.data_ptr() + weights.element_size() * tables.weights_physical_offsets[table]
            place_of_state = 0
            if tables.optimizer is not EmbOptimType.EXACT_SGD:  # which has none; others' are float32
                place_of_state = state.data_ptr() + 4 * tables.momentum1_physical_offsets[table]
            found.append(_Shard(place, place_of_state, rows, columns, half))
        return found

    def settings(self) -> tuple[float, float, float]:
        """(learning rate, eps, L2 weight decay) as they are now."""
        arguments = self._tables.optimizer_args
        decays = arguments.weight_decay_mode == WeightDecayMode.L2.value
        return float(self._tables.get_learning_rate()), arguments.eps, arguments.weight_decay if decays else 0.0

    def _borders(self, offsets: torch.Tensor) -> list[int]:
        """Where each feature's rows begin, and the end."""
        features = len(self._tables.feature_table_map)
        borders: list[int] = offsets[:: max(1, (len(offsets) - 1) // features)].tolist()
        return borders


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, _weights: torch.Tensor, rows: CpuRows, indices: torch.Tensor, borders: list[int]
    ) -> torch.Tensor:
        ctx.rows, ctx.borders = rows, borders
        ctx.save_for_backward(indices)
        shards = rows.shards()
        # Not torch.empty, which deterministic mode fills first.
        out = np.empty((len(indices), shards[0].columns), np.float32)
        for shard, begin, end in zip(shards, borders, borders[1:], strict=False):
            _gather(shard, indices.data_ptr() + 8 * begin, end - begin, out[begin:end])
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: torch.Tensor) -> tuple[None, None, None, None]:
        (indices,) = ctx.saved_tensors
        rows: CpuRows = ctx.rows
        grads = grads.to(torch.float32).contiguous()
        settings = rows.settings()
        for shard, begin, end in zip(rows.shards(), ctx.borders, ctx.borders[1:], strict=False):
            if end > begin:
                place = indices.data_ptr() + 8 * begin, grads.data_ptr() + 4 * begin * shard.columns
                _update(rows.update, shard, end - begin, *place, settings)
        return None, None, None, None


def _gather(shard: _Shard, rows: int, count: int, out: np.ndarray[Any, Any]) -> None:
    place = out.ctypes.data

    def part(first: int, last: int) -> None:
        bad = gather(first, last, rows, shard.weights, shard.rows, shard.columns, shard.half, place)
        if bad >= 0:
            raise IndexError(f"the {bad + 1}. row looked up is none of the {shard.rows} that this table has here")

    in_threads(part, count)


def _update(
    update: Callable[..., None], shard: _Shard, count: int, rows: int, grads: int, settings: tuple[float, float, float]
) -> None:
    bits = max(1, (2 * count - 1).bit_length())
    seen, slots = np.zeros(1 << bits, np.int32), np.empty(count, np.int32)
    sums = np.empty((count // 2 + 1, shard.columns), np.float32)
    places = slots.ctypes.data, sums.ctypes.data
    merge(count, rows, grads, shard.columns, seen.ctypes.data, bits, *places)

    def part(first: int, last: int) -> None:
        update(
            first, last, rows, grads, *places, shard.weights, shard.columns, shard.half, shard.state, *settings
        )  # fmt: skip

    in_threads(part, count)


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
