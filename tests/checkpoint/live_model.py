"""Two tables of one process and their training, without TorchRec: what checkpoints see of a model, and when."""

from __future__ import annotations

import torch

from embeddings.held import Held, LocalChunk, whole
from embeddings.touched import RowMap, ShardRows, TouchedRows

ROWS = {"a": 11, "b": 7}
ALL = sum(ROWS.values())


class LiveModel:
    """Two tables in one lookup, each of two column shards: weights, one state a row and shard; beside them a dense
    tensor and an id map. elsewhere: rows of each table before these, on another rank."""

    def __init__(self, elsewhere: int = 0) -> None:
        generation = torch.zeros(ALL, dtype=torch.uint8)
        self.tensors: dict[str, Held] = {}
        shards, base = [], 0
        for table, rows in ROWS.items():
            shards.append(ShardRows(table, elsewhere, generation[base : base + rows], base))
            base += rows
            for name, columns, dtype in (("weight", 4, torch.float16), ("momentum1", 1, torch.float32)):
                parts = [torch.rand(rows, columns).to(dtype) for _ in range(2)]
                chunks = tuple(LocalChunk((elsewhere, columns * k), part) for k, part in enumerate(parts))
                self.tensors[f"tables/{table}/{name}"] = Held((elsewhere + rows, 2 * columns), dtype, chunks)
        self.row_map = RowMap(generation, torch.tensor([0, ROWS["a"]]), tuple(shards))
        self.touched = TouchedRows([self.row_map])
        self.tensors["dense/w"] = whole(torch.rand(3, 2))
        self.ids = torch.zeros(4, 3, dtype=torch.int64)

    def held(self) -> dict[str, Held]:
        """As `model_tensors` gives it: the model's own memory, id maps as copies."""
        ids = Held(tuple(self.ids.shape), torch.int64, (LocalChunk((0, 0), self.ids.clone()),), is_copy=True)
        return self.tensors | {"id_maps/a/ids": ids}

    def update(self, positions: list[int]) -> None:
        """As a step does: announced and marked in the forward, written in the backward."""
        rows = torch.tensor(positions + positions[:1])  # one of them asked for by two ranks
        self.touched._changing(self.row_map, rows)
        for table, base in (("a", 0), ("b", ROWS["a"])):
            for name in ("weight", "momentum1"):
                for chunk in self.tensors[f"tables/{table}/{name}"].chunks:
                    here = [p - base for p in positions if 0 <= p - base < len(chunk.tensor)]
                    chunk.tensor[here] += 1
        self.tensors["dense/w"].chunks[0].tensor.mul_(1.5)
        self.ids[positions[0] % 4, positions[0] % 3] += 1

    def copied(self) -> dict[str, list[torch.Tensor]]:
        """{tensor: its parts, as they are}."""
        return {name: [chunk.tensor.clone() for chunk in held.chunks] for name, held in self.held().items()}

    def whole(self) -> dict[str, torch.Tensor]:
        """{tensor: all of it, as it is}."""
        return {name: torch.cat(parts, dim=-1) for name, parts in self.copied().items()}
