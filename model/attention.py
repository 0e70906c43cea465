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
from model.mask import Sight, sight, visible
from model.stream import Stream
from model.timeline import exclusive_cumsum

_ROWS_PER_STRETCH = 8
_MAX_STRETCHES = 8
_PAD = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Padding:
    """Tokens [first, last) of a packed tensor into [rows · width] places and back. `slots`: place of each, None where
    all are taken."""

    first: int
    last: int
    rows: int
    width: int
    slots: torch.Tensor | None

    def pad(self, x_AD: torch.Tensor, fill: float = 0) -> torch.Tensor:
        """[A, …] → [b, width, …]."""
        part = x_AD[self.first : self.last]
        if self.slots is not None:
            empty = part.new_full((self.rows * self.width, *part.shape[1:]), fill)
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


def _select(values: Sight, index: torch.Tensor | None) -> Sight:
    if index is None:
        return values
    chosen = (values.order, values.first, values.last, values.clock, values.known)
    return Sight(*(value.index_select(0, index) for value in chosen))


def _paddings(row_A: torch.Tensor, num_rows: int) -> list[Padding]:
    """Cuts rows into stretches of equal row counts. One wait for the device."""
    count = max(1, min(_MAX_STRETCHES, num_rows // _ROWS_PER_STRETCH))
    borders = [num_rows * i // count for i in range(count + 1)]
    counts_R = torch.zeros(num_rows, dtype=torch.int64, device=row_A.device).scatter_add_(
        0, row_A, torch.ones_like(row_A)
    )
    starts_R = exclusive_cumsum(counts_R)
    slot_A = torch.arange(row_A.shape[0], device=row_A.device) - starts_R.index_select(0, row_A)
    stretches = list(pairwise(borders))
    sizes = torch.stack([torch.stack([counts_R[a:b].sum(), counts_R[a:b].max()]) for a, b in stretches]).tolist()
    paddings, first = [], 0
    for (row, end), (tokens, longest) in zip(stretches, sizes, strict=True):
        width, part = max(1, longest), slice(first, first + tokens)
        slots = None if tokens == (end - row) * width else (row_A[part] - row) * width + slot_A[part]
        paddings.append(Padding(first, first + tokens, end - row, width, slots))
        first += tokens
    return paddings


def _padded_sight(padding: Padding, values: Sight) -> Sight:
    """Empty places see everything and are seen by no token: no mass goes to padding, and no row of a softmax is
    empty."""
    return Sight(
        order=padding.pad(values.order, _PAD),
        first=padding.pad(values.first, 0),
        last=padding.pad(values.last, _PAD),
        clock=padding.pad(values.clock, _PAD),
        known=padding.pad(values.known, 0),
    )


def _layout(
    stream: Stream,
    window: int | None,
    taken_N: torch.Tensor | None,
    put_N: torch.Tensor | None,
    shared: list[Padding] | None,
) -> Layout:
    """`shared`: the paddings of the tokens taken in, where the layer below has made them already."""
    taken_A = None if taken_N is None else taken_N.nonzero().squeeze(1)
    put_Q = None if put_N is None else put_N.nonzero().squeeze(1)
    queries_A = put_Q
    if taken_N is not None and put_N is not None:
        queries_A = put_N.index_select(0, taken_N.nonzero().squeeze(1)).nonzero().squeeze(1)

    def rows(index: torch.Tensor | None) -> torch.Tensor:
        return stream.row_N if index is None else stream.row_N.index_select(0, index)

    everything = sight(stream, window)
    keys, queries = _select(everything, taken_A), _select(everything, put_Q)
    key_paddings = shared or _paddings(rows(taken_A), stream.num_rows)
    query_paddings = key_paddings if queries_A is None else _paddings(rows(put_Q), stream.num_rows)
    stretches = []
    for for_queries, for_keys in zip(query_paddings, key_paddings, strict=True):
        seen_bqt = visible(_padded_sight(for_queries, queries), _padded_sight(for_keys, keys))
        stretches.append(Stretch(for_queries, for_keys, seen_bqt.unsqueeze(1)))
    return Layout(queries_A, tuple(stretches))


def make_layouts(stream: Stream, windows: Sequence[int | None]) -> tuple[torch.Tensor | None, list[Layout]]:
    """What the lowest layer takes in (index into N, None for all), and each layer's layout, bottom up. Layers alike
    share one."""
    chain = needed_tokens(stream, windows)
    layouts: list[Layout] = []
    for level, window in enumerate(windows):
        taken_N, put_N = chain[level], chain[level + 1]
        if level and window is None and taken_N is None and put_N is None:
            layouts.append(layouts[-1])
            continue
        shared = [stretch.queries for stretch in layouts[-1].stretches] if layouts else None
        layouts.append(_layout(stream, window, taken_N, put_N, shared))
    return (None if chain[0] is None else chain[0].nonzero().squeeze(1)), layouts


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
