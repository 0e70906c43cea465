"""Fields rebuilt from looked-up rows, a group of tables at a time: one index_select for all its columns together.

A group's rows [ΣU, W] hold its tables one below the other. Here its columns' values stand likewise, one column after
the other: first those with exactly one value a position, then the lists, of which each position is the mean. So a step
calls torch as often for a thousand columns as for one.

    rows [ΣU, W] ──index_select──▶ [ΣV, W] ─┬─ single: split ─────────────────▶ {column: [V, W]}
                                            └─ lists: sum by segment ÷ lengths, split ▶ {column: [P, W]}
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torchrec import KeyedJaggedTensor

from pipelines.batch import FieldIds

_Part = tuple[str, FieldIds, int]  # a column, its values, and where in the group's rows its table's begin


@dataclass(frozen=True)
class GroupIndex:
    """inverse: int32 [ΣV], each value's position in the group's rows, of `single` columns and then of `lists`.

    single: {column: its values V}. lists: {column: its positions P}. lengths: int64 [ΣP], values of each position of
    the lists, and segments: int64, the position in [ΣP] of each of their values; both None where there are no lists.
    """

    inverse: torch.Tensor
    single: dict[str, int]
    lists: dict[str, int]
    lengths: torch.Tensor | None = None
    segments: torch.Tensor | None = None

    def map(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> GroupIndex:
        """With `fn` of each tensor."""
        if self.lengths is None or self.segments is None:
            return replace(self, inverse=fn(self.inverse))
        return replace(self, inverse=fn(self.inverse), lengths=fn(self.lengths), segments=fn(self.segments))

    def columns(self, rows_UW: torch.Tensor) -> dict[str, torch.Tensor]:
        """{column: [V, W], or [P, W] the means of its lists, zeros where one is empty}, from the group's rows.

        index_select's backward repeats to the bit, that of advanced indexing does not.
        """
        values_VW = rows_UW.index_select(0, self.inverse.long())
        if self.lengths is None or self.segments is None:
            return dict(zip(self.single, values_VW.split_with_sizes(list(self.single.values())), strict=True))
        *single, listed_VW = values_VW.split_with_sizes([*self.single.values(), len(self.segments)])
        sums_PW = listed_VW.new_zeros(len(self.lengths), listed_VW.shape[1]).index_add(0, self.segments, listed_VW)
        means_PW = sums_PW / self.lengths.clamp(min=1).unsqueeze(1).to(sums_PW.dtype)
        means = means_PW.split_with_sizes(list(self.lists.values()))
        return dict(zip(self.single, single, strict=True)) | dict(zip(self.lists, means, strict=True))


def group_indices(fields: dict[str, FieldIds], kjts: dict[str, KeyedJaggedTensor]) -> dict[str, GroupIndex]:
    """{group: its columns' index}; groups without a column are left out. kjts: what is looked up, keyed by table: its
    rows stand as its keys do."""
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
    return {group: _group_index(single, lists) for group, (single, lists) in parts.items() if single or lists}


def _group_index(single: list[_Part], lists: list[_Part]) -> GroupIndex:
    ordered = single + lists
    values = [field.inverse for _, field, _ in ordered]
    counts = [len(found) for found in values]
    inverse = np.concatenate(values, dtype=np.int32)  # a new array, also of one: it is written to
    inverse += np.repeat(np.array([first for _, _, first in ordered], np.int32), counts)
    of_single = {column: count for (column, _, _), count in zip(single, counts, strict=False)}
    index = GroupIndex(torch.from_numpy(inverse), of_single, {})
    if not lists:
        return index
    given = [field.lengths for _, field, _ in lists if field.lengths is not None]
    lengths = np.concatenate(given, dtype=np.int64)
    return replace(
        index,
        lists={column: len(found) for (column, _, _), found in zip(lists, given, strict=True)},
        lengths=torch.from_numpy(lengths),
        segments=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
    )
