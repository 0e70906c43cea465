"""Attention over packed tokens: only here do rows become a padded tensor, in stretches of rows of like length.

A `Layout` is made once per batch and layer from integers alone; `attend` runs it on vectors. Backend: torch's
scaled_dot_product_attention with a boolean mask, on every device.

Shape suffixes: N tokens of the stream · A tokens a layer takes in · Q tokens it puts out · b rows of one stretch · q,
t places per row of a stretch for queries and keys · D width · H heads · h head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F

from model.cone import needed_tokens
from model.mask import PADDING_SIGHT, sight, visible
from model.stream import Stream
from model.timeline import chosen, exclusive_cumsum

_ROWS_PER_STRETCH = 8
_MAX_STRETCHES = 8


@dataclass(frozen=True)
class Padding:
    """Tokens [first, last) of a packed tensor into [rows · width] places and back. `slots`: place of each, None where
    all are taken."""

    first: int
    last: int
    rows: int
    width: int
    slots: torch.Tensor | None

    def pad(self, x_AD: torch.Tensor, fill: tuple[int, ...] = (0,)) -> torch.Tensor:
        """[A, …] → [b, width, …], `fill` where no token is."""
        part = x_AD[self.first : self.last]
        if self.slots is not None:
            empty = part.new_tensor(fill).expand(self.rows * self.width, *part.shape[1:])
            part = empty.index_copy(0, self.slots, part)
        return part.reshape(self.rows, self.width, *part.shape[1:])

    def unpad(self, x_bwD: torch.Tensor) -> torch.Tensor:
        """[b, width, …] → the tokens that `pad` took."""
        flat = x_bwD.flatten(0, 1)
        return flat if self.slots is None else flat.index_select(0, self.slots)


@dataclass(frozen=True)
class Stretch:
    """Rows of like length. visible_b1qt: bool."""

    queries: Padding
    keys: Padding
    visible_b1qt: torch.Tensor


@dataclass(frozen=True)
class Layout:
    """One layer's attention. queries_A: which of the tokens taken in are put out (index into A), None for all.
    stretches: in packed order."""

    queries_A: torch.Tensor | None
    stretches: tuple[Stretch, ...]


def paddings(row_A: torch.Tensor, num_rows: int) -> list[Padding]:
    """Cuts rows into stretches of equal row counts. One wait for the device."""
    count = max(1, min(_MAX_STRETCHES, num_rows // _ROWS_PER_STRETCH))
    borders = [num_rows * i // count for i in range(count + 1)]
    counts_R = torch.zeros(num_rows, dtype=torch.int64, device=row_A.device).scatter_add_(
        0, row_A, torch.ones_like(row_A)
    )
    starts_R = exclusive_cumsum(counts_R)
    slot_A = torch.arange(row_A.shape[0], device=row_A.device) - starts_R.index_select(0, row_A)
    counts = counts_R.tolist()
    paddings, first = [], 0
    for row, end in pairwise(borders):
        tokens, width = sum(counts[row:end]), max(1, *counts[row:end])
        part = slice(first, first + tokens)
        slots = None if tokens == (end - row) * width else (row_A[part] - row) * width + slot_A[part]
        paddings.append(Padding(first, first + tokens, end - row, width, slots))
        first += tokens
    return paddings


def _layout(
    stream: Stream, window: int | None, taken_A: torch.Tensor | None, put_Q: torch.Tensor | None, keys: list[Padding]
) -> Layout:
    """taken_A, put_Q: the tokens taken in and put out (index into N, None for all); `keys`: the paddings of those taken
    in."""
    queries_A = put_Q if taken_A is None or put_Q is None else torch.searchsorted(taken_A, put_Q)
    queries = keys if queries_A is None else paddings(chosen(stream.row_N, put_Q), stream.num_rows)
    sight_N5 = sight(stream, window)
    sight_A5, sight_Q5 = chosen(sight_N5, taken_A), chosen(sight_N5, put_Q)
    stretches = []
    for for_queries, for_keys in zip(queries, keys, strict=True):
        seen_bqt = visible(for_queries.pad(sight_Q5, PADDING_SIGHT), for_keys.pad(sight_A5, PADDING_SIGHT))
        stretches.append(Stretch(for_queries, for_keys, seen_bqt.unsqueeze(1)))
    return Layout(queries_A, tuple(stretches))


def make_layouts(stream: Stream, windows: Sequence[int | None]) -> tuple[torch.Tensor | None, list[Layout]]:
    """What the lowest layer takes in (index into N, None for all), and each layer's layout, bottom up. Layers alike
    share one."""
    chain = needed_tokens(stream, windows)
    keys = paddings(chosen(stream.row_N, chain[0]), stream.num_rows)
    layouts: list[Layout] = []
    for level, (window, taken_A, put_Q) in enumerate(zip(windows, chain, chain[1:], strict=False)):
        if level and window is None and taken_A is None and put_Q is None:
            layouts.append(layouts[-1])
        else:
            layouts.append(_layout(stream, window, taken_A, put_Q, keys))
        keys = [stretch.queries for stretch in layouts[-1].stretches]
    return chain[0], layouts


def attend(query_QHh: torch.Tensor, key_AHh: torch.Tensor, value_AHh: torch.Tensor, layout: Layout) -> torch.Tensor:
    """softmax(q kᵀ / √h) v within each row, over the keys the layout lets each query see → [Q, D]."""
    parts = []
    for stretch in layout.stretches:
        mixed_bHqh = F.scaled_dot_product_attention(
            stretch.queries.pad(query_QHh).transpose(1, 2),
            stretch.keys.pad(key_AHh).transpose(1, 2),
            stretch.keys.pad(value_AHh).transpose(1, 2),
            attn_mask=stretch.visible_b1qt,
        )
        parts.append(stretch.queries.unpad(mixed_bHqh.transpose(1, 2).flatten(2)))
    return torch.cat(parts)
