"""Fields rebuilt from looked-up rows, a group of tables at a time: one index_select for all its columns together.

A group's rows [ΣU, W] hold its tables one below the other. Here its columns' values stand likewise, one column after
the other: first those with exactly one value a position, then the lists, of which each position is the mean. So a step
calls torch as often for a thousand columns as for one.

    rows [ΣU, W] ──index_select──▶ [ΣV, W] ─┬─ single: split ─────────────────▶ {column: [V, W]}
                                            └─ lists: sum by segment ÷ lengths, split ▶ {column: [P, W]}

Static columns of one field token come as a block: the indices of its n columns stand row after row, so that what
index_select hands out is [R · n, W] = [R, n · W], side by side already. What is transposed is integers, on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torchrec import KeyedJaggedTensor

from pipelines.batch import Array, FieldIds, Int64

Block = tuple[str, ...]  # static columns, side by side
Key = str | Block
_Part = tuple[str, FieldIds, int]  # a column, its values, and where in the group's rows its table's begin


@dataclass(frozen=True)
class GroupIndex:
    """inverse: int32 [ΣV], each value's position in the group's rows, of `single` columns and then of `lists`.

    single: {column or block: its values V}. lists: {column or block: its positions P}; a block of n columns has R · n
    of either. lengths: int64 [ΣP], values of each position of the lists, and segments: int64, the position in [ΣP] of
    each of their values; both None where there are no lists.
    """

    inverse: torch.Tensor
    single: dict[Key, int]
    lists: dict[Key, int]
    lengths: torch.Tensor | None = None
    segments: torch.Tensor | None = None

    def map(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> GroupIndex:
        """With `fn` of each tensor."""
        if self.lengths is None or self.segments is None:
            return replace(self, inverse=fn(self.inverse))
        return replace(self, inverse=fn(self.inverse), lengths=fn(self.lengths), segments=fn(self.segments))

    def columns(self, rows_UW: torch.Tensor) -> dict[str, torch.Tensor]:
        """`parts`, of an index without blocks."""
        return {key: found for key, found in self.parts(rows_UW).items() if isinstance(key, str)}

    def parts(self, rows_UW: torch.Tensor) -> dict[Key, torch.Tensor]:
        """{column: [V, W], or [P, W] the means of its lists, zeros where one is empty}, from the group's rows; a block
        of n columns [R, n · W].

        index_select's backward repeats to the bit, that of advanced indexing does not.
        """
        flat = self._flat(rows_UW)
        return {key: found if isinstance(key, str) else side_by_side(found, key) for key, found in flat.items()}

    def _flat(self, rows_UW: torch.Tensor) -> dict[Key, torch.Tensor]:
        values_VW = rows_UW.index_select(0, self.inverse.long())
        if self.lengths is None or self.segments is None:
            return dict(zip(self.single, values_VW.split_with_sizes(list(self.single.values())), strict=True))
        *single, listed_VW = values_VW.split_with_sizes([*self.single.values(), len(self.segments)])
        sums_PW = listed_VW.new_zeros(len(self.lengths), listed_VW.shape[1]).index_add(0, self.segments, listed_VW)
        means_PW = sums_PW / self.lengths.clamp(min=1).unsqueeze(1).to(sums_PW.dtype)
        means = means_PW.split_with_sizes(list(self.lists.values()))
        return dict(zip(self.single, single, strict=True)) | dict(zip(self.lists, means, strict=True))


def side_by_side(values_VW: torch.Tensor, block: Block) -> torch.Tensor:
    """[R · n, W] → [R, n · W]."""
    return values_VW.view(values_VW.shape[0] // len(block), len(block) * values_VW.shape[1])


def group_indices(
    fields: dict[str, FieldIds], kjts: dict[str, KeyedJaggedTensor], blocks: tuple[Block, ...] = ()
) -> dict[str, GroupIndex]:
    """{group: its columns' index}; groups without a column are left out. kjts: what is looked up, keyed by table: its
    rows stand as its keys do. blocks: columns of one group, all of them lists or none (trainer.field_blocks)."""
    parts: dict[str, tuple[list[_Part], list[_Part]]] = {group: ([], []) for group in kjts}
    place: dict[str, tuple[tuple[list[_Part], list[_Part]], int]] = {}  # of each table: its group's parts, first row
    for group, kjt in kjts.items():
        first = 0
        for table, unique in zip(kjt.keys(), kjt.length_per_key(), strict=True):
            place[table] = (parts[group], first)
            first += unique
    for column, field in fields.items():
        of_group, first = place[field.table]
        of_group[field.lengths is not None].append((column, field, first))
    block_of = {column: block for block in blocks for column in block}
    return {
        group: _group_index(_in_blocks(single, block_of), _in_blocks(lists, block_of))
        for group, (single, lists) in parts.items()
        if single or lists
    }


def _in_blocks(parts: list[_Part], block_of: dict[str, Block]) -> dict[Key, list[_Part]]:
    """Columns alone, then the blocks, each with its columns in its own order."""
    if not block_of:
        return {part[0]: [part] for part in parts}
    found: dict[Key, list[_Part]] = {part[0]: [part] for part in parts if part[0] not in block_of}
    given = {part[0]: part for part in parts if part[0] in block_of}
    blocks = dict.fromkeys(block_of[column] for column in given)
    return found | {block: [given[column] for column in block] for block in blocks}


def _group_index(single: dict[Key, list[_Part]], lists: dict[Key, list[_Part]]) -> GroupIndex:
    ordered = [part for parts in (single, lists) for several in parts.values() for part in several]
    values = [field.inverse for _, field, _ in ordered]
    counts = [len(found) for found in values]
    inverse = np.concatenate(values, dtype=np.int32)  # a new array, also of one: it is written to
    inverse += np.repeat(np.array([first for _, _, first in ordered], np.int32), counts)
    of_single = {key: sum(len(field.inverse) for _, field, _ in parts) for key, parts in single.items()}
    _rows_first(inverse, of_single)
    index = GroupIndex(torch.from_numpy(inverse), of_single, {})
    if not lists:
        return index
    given = [field.lengths for parts in lists.values() for _, field, _ in parts if field.lengths is not None]
    lengths = np.concatenate(given, dtype=np.int64)
    of_lists = {key: sum(_positions(field) for _, field, _ in parts) for key, parts in lists.items()}
    # Values stay as they are: it is their positions that stand row after row.
    position = np.arange(len(lengths))
    _rows_last(position, of_lists)
    segments = np.repeat(position, lengths)
    _rows_first(lengths, of_lists)
    return replace(index, lists=of_lists, lengths=torch.from_numpy(lengths), segments=torch.from_numpy(segments))


def _positions(field: FieldIds) -> int:
    return 0 if field.lengths is None else len(field.lengths)


def _rows_first(values: Array, sizes: dict[Key, int]) -> None:
    """Of each block, column after column → row after row, in place."""
    for stretch, columns in _stretches(values, sizes):
        stretch[:] = stretch.reshape(columns, -1).T.reshape(-1)


def _rows_last(values: Int64, sizes: dict[Key, int]) -> None:
    """The way back."""
    for stretch, columns in _stretches(values, sizes):
        stretch[:] = stretch.reshape(-1, columns).T.reshape(-1)


def _stretches(values: Array, sizes: dict[Key, int]) -> Iterator[tuple[Array, int]]:
    """Of blocks: their part of `values`, and how many columns they have."""
    begin = 0
    for key, size in sizes.items():
        if not isinstance(key, str):
            yield values[begin : begin + size], len(key)
        begin += size
