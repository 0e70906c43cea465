"""One rank's batch as TorchRec carries it: the plain arrays of pipelines.batch wrapped without a copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from embeddings.tables import group_kjts
from pipelines.batch import Batch, Position
from trainer.field_blocks import FieldBlocks, dense_parts
from trainer.group_index import GroupIndex, Key, group_indices


@dataclass(frozen=True)
class StepInfo:
    """What all ranks agreed about one global batch, one step ahead.

    step: optimizer step it will be trained as, from 1. examples: per task, positions with a weight, over all ranks.
    weight_sums: per task, Σ w over all ranks. data_through: newest event time in it, microseconds. quarantined: of its
    rows, over all ranks.
    """

    step: int
    position: Position
    rows: int
    examples: tuple[int, ...]
    weight_sums: tuple[float, ...]
    data_through: int
    quarantined: int = 0

    @property
    def total_examples(self) -> int:
        """Supervised positions over all tasks."""
        return sum(self.examples)


@dataclass
class RequestBatch(Pipelineable):
    """kjts: {group: KJT keyed by table, stride 1}; indices: {group: its columns' values as positions in the rows that
    its KJT looks up}; the rest is legend of pipelines.batch. labels, weights float [S, K];
    dense: also of blocks (trainer.field_blocks); normalizers_K: Σ w over all ranks ÷ world size."""

    info: StepInfo
    kjts: dict[str, KeyedJaggedTensor]
    indices: dict[str, GroupIndex]
    dense: dict[Key, torch.Tensor]
    history_lengths: dict[str, torch.Tensor]
    times: dict[str, torch.Tensor]
    clocks: dict[str, torch.Tensor]
    action_clocks: dict[str, torch.Tensor]
    request: dict[str, torch.Tensor]  # candidate_lengths, time, clock
    labels_SK: torch.Tensor
    weights_SK: torch.Tensor
    metric_weights_SK: torch.Tensor
    offsets_SK: torch.Tensor | None  # of the logits in the loss; None where no task has one
    normalizers_K: torch.Tensor
    host: Batch = field(repr=False)  # what these tensors were made of: the record of what was trained, users, requests

    def _map(self, fn: Callable[[Any], Any]) -> RequestBatch:
        def each(tensors: dict[Any, Any]) -> dict[Any, Any]:
            return {k: fn(v) for k, v in tensors.items()}

        return replace(
            self,
            kjts=each(self.kjts),
            indices={k: v.map(fn) for k, v in self.indices.items()},
            dense=each(self.dense),
            history_lengths=each(self.history_lengths),
            times=each(self.times),
            clocks=each(self.clocks),
            action_clocks=each(self.action_clocks),
            request=each(self.request),
            labels_SK=fn(self.labels_SK),
            weights_SK=fn(self.weights_SK),
            metric_weights_SK=fn(self.metric_weights_SK),
            offsets_SK=None if self.offsets_SK is None else fn(self.offsets_SK),
            normalizers_K=fn(self.normalizers_K),
        )

    def to(self, device: torch.device, non_blocking: bool = False) -> RequestBatch:
        """On `device`; itself where it is there already."""
        if self.labels_SK.device == device:
            return self
        return self._map(lambda t: t.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> RequestBatch:
        """In page-locked memory, for copies that overlap."""
        return self._map(lambda t: t.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the memory alive until `stream` is done with it."""

        def record(tensor: Any) -> Any:
            tensor.record_stream(stream)
            return tensor

        self._map(record)


def _tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    # Arrays out of a shared-memory object store are read-only, which torch tensors cannot be: those few are copied.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _offsets(batch: Batch, tasks: tuple[str, ...], like_SK: torch.Tensor) -> torch.Tensor:
    offsets_SK = torch.zeros_like(like_SK)
    for k, task in enumerate(tasks):
        if task in batch.offsets:
            offsets_SK[:, k] = _tensor(batch.offsets[task])
    return offsets_SK


def wrap(
    batch: Batch,
    info: StepInfo,
    rows: dict[str, np.ndarray[Any, Any]],
    groups: dict[str, list[str]],
    tasks: tuple[str, ...],
    world_size: int,
    blocks: FieldBlocks | None = None,
) -> RequestBatch:
    """The batch with its ids already mapped to table `rows` {table: int64 [U]}.

    groups: {group: its tables}, best in the order of `embeddings.tables.key_order`. blocks: columns that come side by
    side; None = none do.
    """
    weights_SK = torch.stack([_tensor(batch.weights[t]) for t in tasks], dim=1)
    kjts = group_kjts(groups, rows)
    blocks = blocks or FieldBlocks()
    return RequestBatch(
        info=info,
        kjts=kjts,
        indices=group_indices(batch.fields, kjts, blocks.looked_up),
        dense={k: _tensor(v) for k, v in dense_parts(batch.dense, blocks.dense).items()},
        history_lengths={k: _tensor(v).long() for k, v in batch.history_lengths.items()},
        times={k: _tensor(v) for k, v in batch.times.items()},
        clocks={k: _tensor(v) for k, v in batch.clocks.items()},
        action_clocks={k: _tensor(v) for k, v in batch.action_clocks.items()},
        request={
            "candidate_lengths": _tensor(batch.candidate_lengths).long(),
            "time": _tensor(batch.request_time),
            "clock": _tensor(batch.request_clock),
        },
        labels_SK=torch.stack([_tensor(batch.labels[t]) for t in tasks], dim=1),
        weights_SK=weights_SK,
        metric_weights_SK=weights_SK
        if batch.metric_weights is batch.weights
        else torch.stack([_tensor(batch.metric_weights[t]) for t in tasks], dim=1),
        offsets_SK=_offsets(batch, tasks, weights_SK) if batch.offsets else None,
        normalizers_K=torch.tensor(info.weight_sums, dtype=torch.float32) / world_size,
        host=batch,
    )
