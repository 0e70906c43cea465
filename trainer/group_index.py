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
from itertools import accumulate

import numpy as np
import torch

from pipelines.batch import FieldIds, Int32


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


def group_indices(
    fields: dict[str, FieldIds], groups: dict[str, list[str]], unique: dict[str, int]
) -> dict[str, GroupIndex]:
    """{group: its columns' index}; groups without a column are left out. groups {group: its tables, as their rows
    stand}; unique {table: its unique ids}."""
    group_of = {table: group for group, tables in groups.items() for table in tables}
    first: dict[str, int] = {}
    for tables in groups.values():
        first |= zip(tables, accumulate((unique[table] for table in tables), initial=0))  # noqa: B905 - one more
    single: dict[str, dict[str, FieldIds]] = {}
    lists: dict[str, dict[str, FieldIds]] = {}
    for column, field in fields.items():
        kind = single if field.lengths is None else lists
        kind.setdefault(group_of[field.table], {})[column] = field
    return {
        group: _group_index(single.get(group, {}), lists.get(group, {}), first)
        for group in groups
        if group in single or group in lists
    }


def _group_index(single: dict[str, FieldIds], lists: dict[str, FieldIds], first: dict[str, int]) -> GroupIndex:
    ordered = [*single.values(), *lists.values()]
    inverse = _joined([field.inverse for field in ordered])
    counts = [len(field.inverse) for field in ordered]
    inverse += np.repeat(np.array([first[field.table] for field in ordered], np.int32), counts)
    index = GroupIndex(torch.from_numpy(inverse), dict(zip(single, counts, strict=False)), {})
    if not lists:
        return index
    lengths = np.concatenate([field.lengths for field in lists.values() if field.lengths is not None]).astype(np.int64)
    return replace(
        index,
        lists={column: len(field.lengths) for column, field in lists.items() if field.lengths is not None},
        lengths=torch.from_numpy(lengths),
        segments=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
    )


def _joined(arrays: list[Int32]) -> Int32:
    """A new array, also of one: it is written to."""
    return np.concatenate(arrays, dtype=np.int32)
