"""Rows of sharded tables reset after some steps, for what is kept and what begins anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from embeddings.held_tables import held_tables
from embeddings.reset import RowResetter
from embeddings.specs import TableSpec
from tests.embeddings.specs import spec
from tests.embeddings.toy import Run, build, train_model


def _managed(name: str, rows: int, width: int, buckets: int, **changes: Any) -> TableSpec:
    return replace(spec(name, rows, width, "row_wise", mapping="managed", buckets=buckets), **changes)


SPECS = {
    s.name: s
    for s in [
        _managed("user", 40, 16, 5, lr=0.1),  # shards of 3 and 2 buckets
        _managed("item", 24, 8, 3, optimizer="adagrad", lr=0.1, dtype="fp16", init="normal"),
        _managed("shop", 30, 8, 3, optimizer="sgd", lr=1.0),
        _managed("page", 30, 16, 6, dtype="fp16", lr=0.1),
        spec("geo", 30, 16, "row_wise"),
    ]
}
RESET = {"user": [0, 7, 23, 24, 39], "item": [7, 8], "shop": [29], "page": [3, 4, 16]}
SEED = 5


def reset_on_ranks(rank: int, world_size: int) -> dict[str, Any]:
    """{"before", "after": {tensor: [(offsets, values)]}, "told": what was told to be about to change}."""
    model, _ = build(Run(SPECS), rank, world_size)
    train_model(model, SPECS, 3, rank, world_size)
    told: list[Any] = []
    resetter = RowResetter(model, SPECS, SEED, lambda *change: told.append(change))
    before = _boxes(model)
    mine = {name: _rows_here(name, rank, world_size) for name in RESET}
    resetter.reset({name: rows for name, rows in mine.items() if len(rows)})
    return {"before": before, "after": _boxes(model), "told": told}


def _rows_here(name: str, rank: int, world_size: int) -> np.ndarray:
    here = SPECS[name].buckets_of_rank(rank, world_size)
    return np.array([row for row in RESET[name] if row // SPECS[name].rows_per_bucket in here], np.int64)


def _boxes(model: Any) -> dict[str, list[tuple[tuple[int, ...], torch.Tensor]]]:
    return {
        name: [(chunk.offsets, chunk.tensor.clone()) for chunk in held.chunks]
        for name, held in held_tables(model, SPECS).items()
    }
