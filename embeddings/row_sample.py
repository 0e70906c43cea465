"""Rows that no gradient has ever reached, on a fixed sample of each table.

A fused optimizer with a state (Adagrad's sums of squares, Adam's moments) starts it at zero, and every gradient that is
not zero moves it away. So the state itself says which rows were trained: it is in every checkpoint, follows its row to
any sharding, and begins anew where an evicted row does. SGD has no state, and a frozen table's never changes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from embeddings.held import Held
from embeddings.specs import TableSpec, seed_of
from pipelines.batch import Int64
from pipelines.hashing import mix

MOST_OF_A_TABLE, LEAST_OF_A_TABLE = 4096, 256
MOST_OF_ALL = 1 << 18


class RowSample:
    """held: of `held_tables`: the model's own memory, which stays where it is.

    Up to 4,096 rows of a table, fewer where there are more than 64 tables: the share's standard error is at most
    .5 ÷ √rows of the sample. All rows of a smaller table.
    """

    def __init__(self, held: Mapping[str, Held], specs: Mapping[str, TableSpec]) -> None:
        size = max(LEAST_OF_A_TABLE, min(MOST_OF_A_TABLE, MOST_OF_ALL // max(1, len(specs))))
        self._parts: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        for spec in specs.values():
            state = _state_of(held, spec)
            rows = sample_of(spec, size)
            parts = []
            for chunk in state.chunks if state is not None else ():
                first, column = chunk.offsets
                if column == 0:  # of column shards the first one speaks for the row
                    begin, end = np.searchsorted(rows, [first, first + chunk.sizes[0]])
                    here = torch.from_numpy(rows[begin:end] - first).to(chunk.tensor.device)
                    parts.append((chunk.tensor, here))
            self._parts.append(parts)
        self._sampled = np.array([sum(len(here) for _, here in parts) for parts in self._parts], np.int64)

    def counts(self) -> tuple[Int64, Int64]:
        """(rows of the sample on this rank, of these those that no gradient has reached), int64 [T]."""
        states = [_of_rows(*part) for parts in self._parts for part in parts]
        if not states:
            return self._sampled, np.zeros_like(self._sampled)
        is_zero = (torch.cat(states) == 0).cpu().numpy()
        table = np.repeat(np.arange(len(self._sampled)), self._sampled)
        return self._sampled, np.bincount(table[is_zero], minlength=len(self._sampled))


def sample_of(spec: TableSpec, size: int) -> Int64:
    """`size` rows of a table, ascending, or all: one from each of as many equal stretches, at a place that a hash of
    the stretch says. Evenly spaced rows would always fall on the same place in a bucket."""
    if spec.rows <= size:
        return np.arange(spec.rows)
    place = np.arange(size)
    within = mix(place, seed_of("sample", spec.name)).astype(np.float64) / 2.0**64
    return np.unique(np.minimum((place + within) * (spec.rows / size), spec.rows - 1).astype(np.int64))


def _state_of(held: Mapping[str, Held], spec: TableSpec) -> Held | None:
    """Of two moments, the second: the first may come back to zero."""
    parts = (name.rpartition("/") for name in held)
    names = sorted(f"{table}/{key}" for table, _, key in parts if table == spec.name and key != "weight")
    return held[names[-1]] if names and not spec.frozen else None


def _of_rows(state: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """One value a row, zero where all of its state is."""
    found = state.index_select(0, rows)
    return found.squeeze(1) if found.shape[1] == 1 else found.abs().amax(dim=1)
