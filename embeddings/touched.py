"""Which rows of the local shards have been looked up for training, hence updated, and when.

One byte a row: the generation in which it was last looked up, 0 = never since this process began. A checkpoint ends a
generation; so "touched since the last checkpoint", "touched by now" and "not looked up since this save began" are
comparisons, and to end a generation touches no memory. Marking is one index_fill a lookup.

Whoever needs a row as it was before an update watches: the watcher is called in the forward, with the rows that the
backward is about to update, before they are marked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torchrec import KeyedJaggedTensor

from embeddings.sharders import BlockShardedCollection
from embeddings.specs import TableSpec
from embeddings.tables import module_name

LAST_GENERATION = 254  # of a byte; then older ones become 1


@dataclass(frozen=True)
class ShardRows:
    """The rows of a table that lie on this rank; the shards of a column-wise table share them.

    first: row of the table. generation_R: uint8, a view of its map. base: of the first row in that map.
    """

    table: str
    first: int
    generation_R: torch.Tensor
    base: int

    @property
    def rows(self) -> int:
        return len(self.generation_R)


@dataclass(frozen=True)
class RowMap:
    """All rows that one lookup (a sharding type of a collection) holds here, end to end, so that a lookup is marked at
    once for all of its tables.

    generation: uint8 [all rows]. base_F: of each feature of the lookup's input, where its table begins.
    """

    generation: torch.Tensor
    base_F: torch.Tensor
    shards: tuple[ShardRows, ...]

    def positions(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """int64 [ids of the features]: the map's position of each looked-up row. No transfer from the device."""
        values: torch.Tensor = features.values().long()
        if len(self.shards) == 1:  # and no way round for the common case of one table
            return values
        strides = features.stride_per_key()
        repeats = strides[0] if len(set(strides)) == 1 else torch.tensor(strides, device=values.device)
        base_S = self.base_F.repeat_interleave(repeats)
        base_V: torch.Tensor = base_S.repeat_interleave(features.lengths().long(), output_size=len(values))
        return values + base_V


Watcher = Callable[[RowMap, torch.Tensor], None]


@dataclass
class TouchedRows:
    """Of one rank. generation: the current one, from 1 on.

    watcher: called with a map and the positions in it (some perhaps twice) whose rows are about to change, before they
    are marked; from the thread that trains.
    """

    maps: list[RowMap] = field(default_factory=list)
    generation: int = 1
    watcher: Watcher | None = None

    def shards(self) -> list[ShardRows]:
        """Every table's rows on this rank."""
        return [shard for row_map in self.maps for shard in row_map.shards]

    def looked_up(self, row_map: RowMap, features: KeyedJaggedTensor) -> None:
        """For training: the backward will update these rows."""
        self._changing(row_map, row_map.positions(features))

    def changing(self, table: str, rows: torch.Tensor) -> None:
        """Rows of a table (int64, each on this rank) are about to change otherwise than by a step, such as the reset of
        an evicted row. To be called before they do."""
        for row_map in self.maps:
            for shard in row_map.shards:
                if shard.table == table:
                    here = rows[(rows >= shard.first) & (rows < shard.first + shard.rows)]
                    self._changing(row_map, (here - (shard.first - shard.base)).to(row_map.generation.device))

    def end_generation(self) -> int:
        """A step boundary that a checkpoint is of: what is looked up from now on is later. Returns the generation that
        ends. No watcher may be at work with an earlier one when LAST_GENERATION is reached (see `is_last`)."""
        ended = self.generation
        if ended < LAST_GENERATION:
            self.generation += 1
            return ended
        for row_map in self.maps:  # never stays 0, the generation that ends becomes 2, all before it 1
            latest = row_map.generation == ended
            row_map.generation.clamp_(max=1).masked_fill_(latest, 2)
        self.generation = 3
        return 2

    @property
    def is_last(self) -> bool:
        """Whether `end_generation` will renumber them."""
        return self.generation >= LAST_GENERATION

    def never_touched(self) -> dict[str, tuple[int, int]]:
        """{table: (rows never looked up since this process began, rows)} of this rank."""
        return {s.table: (s.rows - int(torch.count_nonzero(s.generation_R)), s.rows) for s in self.shards()}

    def _changing(self, row_map: RowMap, positions: torch.Tensor) -> None:
        if self.watcher is not None:
            self.watcher(row_map, positions)
        row_map.generation.index_fill_(0, positions, self.generation)


def watch_rows(model: nn.Module, specs: Mapping[str, TableSpec]) -> TouchedRows:
    """Of the sharded collections inside `model`, from now on. Rows of frozen tables are marked like any others."""
    names = {module_name(name): name for name in specs}
    touched = TouchedRows()
    for module in model.modules():
        if isinstance(module, BlockShardedCollection):
            maps = [_row_map(lookup, names, module._device) for lookup in module._lookups]
            touched.maps += [row_map for row_map in maps if row_map is not None]
            module.before_lookups = _marker(touched, maps)
    return touched


def _marker(touched: TouchedRows, maps: list[RowMap | None]) -> Callable[[Iterable[KeyedJaggedTensor]], None]:
    def mark(inputs: Iterable[KeyedJaggedTensor]) -> None:
        for row_map, features in zip(maps, inputs, strict=True):
            if row_map is not None:
                touched.looked_up(row_map, features)

    return mark


def _row_map(lookup: Any, names: Mapping[str, str], device: torch.device) -> RowMap | None:
    """None where this rank holds none of the lookup's tables. Shards of one table's columns share their rows' bytes."""
    tables = [table for group in lookup.grouped_configs for table in group.embedding_tables]
    if not tables:
        return None
    places: dict[tuple[str, int], tuple[int, int]] = {}
    bases: list[int] = []
    end = 0
    for table in tables:
        first = table.local_metadata.shard_offsets[0]
        key = (names[table.name], first)
        if key not in places:
            places[key] = (end, table.local_rows)
            end += table.local_rows
        bases += [places[key][0]] * len(table.feature_names)
    generation = torch.zeros(end, dtype=torch.uint8, device=device)
    shards = tuple(
        ShardRows(name, first, generation[base : base + rows], base) for (name, first), (base, rows) in places.items()
    )
    return RowMap(generation, torch.tensor(bases, device=device), shards)
