"""The embedding part of a step with TorchRec as it is: a KeyedJaggedTensor keyed by table, a stock EmbeddingCollection,
its dict of JaggedTensors, and for each field one index_select and a mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from embeddings.specs import RESERVED_ROWS, TableSpec, seed_of
from pipelines.batch import Batch
from pipelines.hashing import mix


@dataclass
class StockBatch(Pipelineable):
    """fields {field: (inverse [V], segments [V], lengths [R])}."""

    kjt: KeyedJaggedTensor
    fields: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]

    def to(self, device: torch.device, non_blocking: bool = False) -> StockBatch:
        def moved(tensor: Any) -> Any:
            return tensor.to(device=device, non_blocking=non_blocking)

        fields = {name: (moved(i), moved(s), moved(n)) for name, (i, s, n) in self.fields.items()}
        return StockBatch(moved(self.kjt), fields)

    def record_stream(self, stream: torch.Stream) -> None:
        self.kjt.record_stream(stream)  # type: ignore[arg-type]
        for tensors in self.fields.values():
            for tensor in tensors:
                tensor.record_stream(stream)

    def pin_memory(self) -> StockBatch:
        return self


def stock_batch(batch: Batch, specs: dict[str, TableSpec]) -> StockBatch:
    """Ids hashed to rows table by table, as a user writes it."""
    rows = {}
    for name, table in batch.tables.items():
        slots = np.uint64(specs[name].rows - RESERVED_ROWS)
        rows[name] = (mix(table.ids, seed_of("hash", name)) % slots).astype(np.int64) + RESERVED_ROWS
    kjt = KeyedJaggedTensor(
        keys=list(rows),
        values=torch.cat([torch.from_numpy(found) for found in rows.values()]),
        lengths=torch.tensor([len(found) for found in rows.values()], dtype=torch.int32),
        stride=1,
    )
    fields = {}
    for name, field in batch.fields.items():
        assert field.lengths is not None
        lengths = torch.from_numpy(field.lengths).long()
        segments = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        fields[name] = (torch.from_numpy(field.inverse), segments, lengths)
    return StockBatch(kjt, fields)


class StockFields(nn.Module):
    """{table: JaggedTensor} → {field: [R, W]}."""

    def __init__(self, table_of: dict[str, str]) -> None:
        super().__init__()
        self._table_of = table_of

    def forward(self, rows: Any, batch: StockBatch) -> dict[str, torch.Tensor]:
        found = {}
        for name, (inverse, segments, lengths) in batch.fields.items():
            values_VW = rows[self._table_of[name]].values().index_select(0, inverse.long())
            sums_RW = values_VW.new_zeros(len(lengths), values_VW.shape[1]).index_add(0, segments, values_VW)
            found[name] = sums_RW / lengths.clamp(min=1).unsqueeze(1).to(values_VW.dtype)
        return found


class StockModel(nn.Module):
    """tower: what the fields are handed to, (fields) → loss."""

    def __init__(self, specs: dict[str, TableSpec], table_of: dict[str, str], tower: nn.Module) -> None:
        super().__init__()
        self.tables = EmbeddingCollection(
            [
                EmbeddingConfig(
                    name=f"{spec.name}_table",
                    num_embeddings=spec.rows,
                    embedding_dim=spec.width,
                    feature_names=[spec.name],
                    init_fn=nn.init.zeros_,
                )
                for spec in specs.values()
            ],
            torch.device("meta"),
        )
        self.fields = StockFields(table_of)
        self.tower = tower

    def forward(self, batch: StockBatch) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.tables(batch.kjt)
        fields = self.fields(rows, batch)
        loss: torch.Tensor = self.tower(fields)
        return loss, loss.detach()
