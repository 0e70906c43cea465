"""Row-wise optimizer states under another number of column shards.

Row-wise Adagrad keeps one value a row: the sum over steps of the mean over columns of g². Column-wise sharding keeps
one a row and column shard, over its own columns. The rule, from p shards to q: the state of a new shard is the mean of
the old ones weighted by the columns they share.

    q = 1: exact: a mean over all columns is the mean of the shards' means.
    p = 1: every shard starts with the row's state, the best there is; back again is bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embeddings.held import LocalChunk

if TYPE_CHECKING:
    from trainer.checkpoint.reading import SavedTensors


def is_row_state(name: str, size: tuple[int, ...] | list[int]) -> bool:
    """Whether a tensor may be one: of a table's optimizer, [rows, column shards]. Element-wise states are as wide as
    their table, and are then never of two sizes."""
    return name.startswith("tables/") and not name.endswith("/weight") and len(size) == 2


def read_row_state(saved: SavedTensors, name: str, chunk: LocalChunk, shards: int) -> None:
    """Fills a chunk [rows, m] of a state over `shards` column shards from one that was saved over another number."""
    before = saved.tensors[name].size[1]
    rows, columns = chunk.sizes
    for column in range(columns):
        new = chunk.offsets[1] + column
        # In units of 1 / (before · shards) of the width: old shard k is [k · shards, (k + 1) · shards).
        start, end = new * before, (new + 1) * before
        first = start // shards
        state_N = saved.read(name, (chunk.offsets[0], first), (rows, 1))[:, 0]
        mean_N = state_N.clone()
        for old in range(first + 1, -(-end // shards)):
            share = (min(end, (old + 1) * shards) - max(start, old * shards)) / before
            # As a step away from the first: shards that agree keep their value to the bit.
            mean_N += share * (saved.read(name, (chunk.offsets[0], old), (rows, 1))[:, 0] - state_N)
        chunk.tensor[:, column] = mean_N
