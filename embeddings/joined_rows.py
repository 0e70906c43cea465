"""What a sharded collection hands out: the rows of all its tables in one tensor, instead of a dict with a JaggedTensor
a table, which costs some fifty microseconds of every table and step.

The rows come by sharding type, and within one as the plan places tables. A KeyedJaggedTensor whose keys stand in that
order (`output_order`) is neither permuted on its way in, nor are its rows on their way out; with any other order the
rows are brought back into it, table by table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torchrec.distributed.embedding import EmbeddingCollectionAwaitable
from torchrec.distributed.types import LazyAwaitable


@runtime_checkable
class JoinsRows(Protocol):
    """A collection that hands out JoinedRows."""

    def output_order(self) -> list[str]:
        """Its tables' features as their rows come: an input with its keys in this order is the cheapest."""
        ...


class JoinedRows(LazyAwaitable[torch.Tensor]):
    """rows [ΣU, W] of `waiting`'s tables.

    permutes_columns: {table: which of its column shards, as they arrive, come first, second, …}, of column-wise ones.
    keys: the order that the rows are wanted in; None = as they come.
    """

    def __init__(
        self,
        waiting: EmbeddingCollectionAwaitable,
        permutes_columns: dict[str, list[int]],
        keys: Sequence[str] | None,
    ) -> None:
        super().__init__()
        self._waiting = waiting
        self._permutes_columns = permutes_columns
        self._keys = keys

    def _wait_impl(self) -> torch.Tensor:
        waiting = self._waiting
        parts: list[torch.Tensor] = []
        lengths: dict[str, int] = {}
        sources = zip(
            waiting._awaitables_per_sharding,
            waiting._features_per_sharding,
            waiting._embedding_names_per_sharding,
            strict=True,
        )
        for awaitable, features, names in sources:
            rows = awaitable.wait()
            counts = features.length_per_key()
            if len(set(names)) < len(names):
                rows = self._joined_columns(rows, counts, names)
            parts.append(rows)
            lengths |= zip(names, counts, strict=True)
        for resized in waiting._resize_awaitables or ():
            resized.wait()
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self._keys is None:
            return rows
        pieces = dict(zip(lengths, rows.split_with_sizes(list(lengths.values())), strict=True))
        return torch.cat([pieces[key] for key in self._keys])

    def _joined_columns(self, rows: torch.Tensor, counts: list[int], names: list[str]) -> torch.Tensor:
        """Column shards stand below one another, rank after rank → beside one another, a table after the other."""
        pieces = rows.split_with_sizes(counts)
        shards: dict[str, list[torch.Tensor]] = {}
        for name, piece in zip(names, pieces, strict=True):
            shards.setdefault(name, []).append(piece)
        ordered = [[found[k] for k in self._permutes_columns[name]] for name, found in shards.items()]
        return torch.cat([torch.cat(column) for column in zip(*ordered, strict=True)], dim=1)
