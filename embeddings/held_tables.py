"""Sharded tables and their fused optimizer's state as plain boxes, under names that no plan and no group changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.tensor import DTensor
from torchrec.distributed import DistributedModelParallel

from embeddings.held import Held, LocalChunk, whole
from embeddings.specs import TableSpec
from embeddings.tables import module_name


def held_tables(model: DistributedModelParallel, specs: dict[str, TableSpec]) -> dict[str, Held]:
    """{"TABLE/weight": [rows, width], "TABLE/STATE": of its optimizer}: the model's own memory, no communication.

    STATE is FBGEMM's name (momentum1). An element-wise state is [rows, width], a row-wise one [rows, column shards]:
    one column where the table is not sharded by columns.
    """
    by_weight = {f".{module_name(name)}.weight": spec for name, spec in specs.items()}
    held: dict[str, Held] = {}
    for key, value in model.state_dict().items():
        spec = by_weight.get(_ending(key))
        if spec is not None:
            held[f"{spec.name}/weight"] = _boxes(value, (spec.rows, spec.width))
    states: dict[str, dict[str, Any]] = model.fused_optimizer.state_dict()["state"]
    for parameter, of_table in states.items():
        spec = by_weight[_ending(parameter)]
        for key, value in of_table.items():
            held[f"{spec.name}/{key.rsplit('.', 1)[-1]}"] = _state(value, spec)
    return held


def held_dense(model: DistributedModelParallel, specs: dict[str, TableSpec]) -> dict[str, Held]:
    """{name: every parameter and buffer that is no table of `specs`}: the model's own memory."""
    tables = {f".{module_name(name)}.weight" for name in specs}
    return {name: whole(value.detach()) for name, value in model.state_dict().items() if _ending(name) not in tables}


def local_boxes(value: torch.Tensor | ShardedTensor | DTensor) -> Iterator[tuple[torch.Tensor, tuple[int, ...]]]:
    """(local part, offsets in the whole) of what TorchRec's state_dict holds."""
    if isinstance(value, ShardedTensor):
        for shard in value.local_shards():
            yield shard.tensor, tuple(shard.metadata.shard_offsets)
    elif isinstance(value, DTensor):
        local: Any = value.to_local()  # TorchRec's LocalShardsWrapper
        for tensor, offsets in zip(local.local_shards(), local.local_offsets(), strict=True):
            yield tensor, tuple(offsets)
    else:
        yield value, (0,) * value.dim()


def _ending(key: str) -> str:
    return "." + ".".join(key.rsplit(".", 2)[-2:])


def _boxes(value: Any, size: tuple[int, ...]) -> Held:
    chunks = tuple(LocalChunk(offsets, tensor.detach()) for tensor, offsets in local_boxes(value) if tensor.numel())
    return Held(size, _properties(value)[1], chunks)


def _state(value: Any, spec: TableSpec) -> Held:
    """TorchRec lays the row-wise states of a table's column shards end to end: value k · rows + r is row r's of shard
    k."""
    size, dtype = _properties(value)
    if len(size) > 1:
        return _boxes(value, (spec.rows, spec.width))
    chunks = tuple(
        LocalChunk((offset % spec.rows, offset // spec.rows), tensor.detach().view(-1, 1))
        for tensor, (offset,) in local_boxes(value)
        if tensor.numel()
    )
    return Held((spec.rows, size[0] // spec.rows), dtype, chunks)


def _properties(value: Any) -> tuple[torch.Size, torch.dtype]:
    """Size and dtype; a ShardedTensor's own properties warn at every look."""
    if isinstance(value, ShardedTensor):
        metadata = value.metadata()
        return metadata.size, metadata.tensor_properties.dtype
    return value.size(), value.dtype
