"""Attention over packed tokens: only here do rows become a padded tensor, in stretches of rows of like length, or in
blocks of a sliding layer (model/bands.py).

A `Layout` is made once per batch and layer from integers alone; `attend` runs it on vectors, by one of the backends of
model/attention_choice.py.

Shape suffixes: N tokens of the stream · A tokens a layer takes in · Q tokens it puts out · b rows (or blocks) of one
stretch · q, t places per row of a stretch for queries and keys · D width · H heads · h head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F

from model.attention_choice import Backend, chosen_backend
from model.attention_products import Chunk, products
from model.bands import Band, apart, band_of
from model.cone import needed_tokens
from model.config import Savings
from model.mask import PADDING_SIGHT, sight, visible
from model.padded import padded
from model.stream import Stream
from model.take import take_once
from model.timeline import chosen, counts_of, exclusive_cumsum

_ROWS_PER_STRETCH = 4
_MAX_STRETCHES = 16
QUERIES_PER_CHUNK = 64


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
        return take_once(flat, self.slots)


@dataclass(frozen=True)
class Stretch:
    """Rows of like length, or all blocks of a sliding layer. visible_b1qt: bool. chunks: for `products`."""

    queries: Padding
    keys: Padding | Band
    visible_b1qt: torch.Tensor
    chunks: tuple[Chunk, ...] = ()
    _biases: dict[torch.dtype, torch.Tensor] = field(default_factory=dict, compare=False)

    def bias(self, dtype: torch.dtype) -> torch.Tensor:
        """0 where visible, −inf elsewhere; made once for all layers that share the stretch."""
        if dtype not in self._biases:
            zeros = self.visible_b1qt.new_zeros((), dtype=dtype)
            self._biases[dtype] = torch.where(self.visible_b1qt, zeros, -torch.inf)
        return self._biases[dtype]


@dataclass(frozen=True)
class Layout:
    """One layer's attention. queries_A: which of the tokens taken in are put out (index into A), None for all.
    stretches: in packed order."""

    queries_A: torch.Tensor | None
    stretches: tuple[Stretch, ...]
    backend: Backend = "auto"


def paddings(row_A: torch.Tensor, num_rows: int) -> list[Padding]:
    """Cuts rows into stretches of equal row counts. One wait for the device."""
    count = max(1, min(_MAX_STRETCHES, num_rows // _ROWS_PER_STRETCH))
    borders = [num_rows * i // count for i in range(count + 1)]
    counts_R = counts_of(row_A, num_rows)
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


def _rows_layout(
    stream: Stream,
    sights: tuple[torch.Tensor, torch.Tensor],
    queries: list[Padding],
    keys: list[Padding],
    own_Q: torch.Tensor,
) -> tuple[Stretch, ...]:
    """sights: of queries and keys. own_Q: place of each query's own key in its row."""
    stretches = []
    for for_queries, for_keys in zip(queries, keys, strict=True):
        seen_bqt = visible(for_queries.pad(sights[0], PADDING_SIGHT), for_keys.pad(sights[1], PADDING_SIGHT))
        chunks = _chunks(for_queries, for_keys, own_Q, stream.num_fields)
        stretches.append(Stretch(for_queries, for_keys, seen_bqt.unsqueeze(1), chunks))
    return tuple(stretches)


def _chunks(queries: Padding, keys: Padding, own_Q: torch.Tensor, num_fields: int) -> tuple[Chunk, ...]:
    """Queries cut into runs of places, and the keys that each may meet: those up to its own place, and the fields,
    which may see each other both ways."""
    if queries.width <= QUERIES_PER_CHUNK:
        return ((0, queries.width, keys.width),)
    count = -(-queries.width // QUERIES_PER_CHUNK)
    borders = [queries.width * i // count for i in range(count + 1)]
    farthest = queries.pad(own_Q).amax(dim=0).tolist()
    return tuple(
        (first, last, min(keys.width, max(num_fields, 1 + max(farthest[first:last]))))
        for first, last in pairwise(borders)
    )


def _blocks_layout(
    stream: Stream, sights: tuple[torch.Tensor, torch.Tensor], own_Q: torch.Tensor, band: Band
) -> Stretch:
    """own_Q: place of each query among all keys."""
    num_blocks = max(1, -(-sights[1].shape[0] // band.block))
    block_Q = own_Q // band.block
    counts = counts_of(block_Q, num_blocks)
    width = max(1, int(counts.amax()))
    place_Q = torch.arange(block_Q.shape[0], device=block_Q.device) - exclusive_cumsum(counts).index_select(0, block_Q)
    slots = None if block_Q.shape[0] == num_blocks * width else block_Q * width + place_Q
    queries = Padding(0, block_Q.shape[0], num_blocks, width, slots)
    seen = visible(queries.pad(sights[0], PADDING_SIGHT), band.pad(sights[1], PADDING_SIGHT))
    return Stretch(queries, band, seen.unsqueeze(1), ((0, width, band.width),))


def _layout(
    stream: Stream, window: int | None, taken_A: torch.Tensor | None, put_Q: torch.Tensor | None, backend: Backend
) -> Layout:
    """taken_A, put_Q: the tokens taken in and put out (index into N, None for all)."""
    queries_A = put_Q if taken_A is None or put_Q is None else torch.searchsorted(taken_A, put_Q)
    row_A, row_Q = chosen(stream.row_N, taken_A), chosen(stream.row_N, put_Q)
    keys = paddings(row_A, stream.num_rows)
    queries = keys if queries_A is None else paddings(row_Q, stream.num_rows)
    sight_N5 = sight(stream, window)
    place_Q = torch.arange(row_A.shape[0], device=row_A.device) if queries_A is None else queries_A
    if window is not None:
        apart_N5 = apart(sight_N5, stream.row_N)
        sights = chosen(apart_N5, put_Q), chosen(apart_N5, taken_A)
        band = band_of(sights[0])
        by_rows = sum(q.rows * q.width * k.width for q, k in zip(queries, keys, strict=True))
        looks_back = not bool((sights[0][:, 2] > sights[0][:, 0]).any())
        if looks_back and (place_Q.shape[0] + band.block) * band.width < by_rows:
            return Layout(queries_A, (_blocks_layout(stream, sights, place_Q, band),), backend)
    own_Q = place_Q - exclusive_cumsum(counts_of(row_A, stream.num_rows)).index_select(0, row_Q)
    of_rows = chosen(sight_N5, put_Q), chosen(sight_N5, taken_A)
    return Layout(queries_A, _rows_layout(stream, of_rows, queries, keys, own_Q), backend)


def make_layouts(
    stream: Stream, windows: Sequence[int | None], *, backend: Backend = "auto", savings: Savings | None = None
) -> tuple[Stream, torch.Tensor | None, torch.Tensor | None, list[Layout]]:
    """The stream (padded, where packed tokens are switched off), what the lowest layer takes in and what the top one
    puts out (index into N, ascending, None for all), and each layer's layout, bottom up. Layers alike share one."""
    savings = savings or Savings()
    chain = needed_tokens(stream, windows) if savings.cone else [None] * (len(windows) + 1)
    if not savings.packed:
        stream, chain = padded(stream, chain)
    layouts: list[Layout] = []
    before: tuple[int | None, bool] | None = None
    for window, taken_A, put_Q in zip(windows, chain, chain[1:], strict=False):
        alike = (window, taken_A is None and put_Q is None)
        if alike == before and alike[1]:
            layouts.append(layouts[-1])
        else:
            layouts.append(_layout(stream, window, taken_A, put_Q, backend))
        before = alike
    return stream, chain[0], chain[-1], layouts


def attend(query_QHh: torch.Tensor, key_AHh: torch.Tensor, value_AHh: torch.Tensor, layout: Layout) -> torch.Tensor:
    """softmax(q kᵀ / √h) v within each row, over the keys the layout lets each query see → [Q, D]."""
    backend = chosen_backend(layout.backend, query_QHh.device)[0]
    parts = []
    for stretch in layout.stretches:
        query, key = stretch.queries.pad(query_QHh), stretch.keys.pad(key_AHh)
        mixed_bqHh = _BACKENDS[backend](query, key, stretch.keys.pad(value_AHh), stretch)
        parts.append(stretch.queries.unpad(mixed_bqHh.flatten(2)))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, stretch: Stretch) -> torch.Tensor:
    """Word by word, for tests."""
    scores = torch.einsum("bqHh,btHh->bHqt", query, key) / query.shape[-1] ** 0.5
    shares = scores.masked_fill(~stretch.visible_b1qt, -torch.inf).softmax(dim=-1)
    return torch.einsum("bHqt,btHh->bqHh", shares, value)


def _sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, stretch: Stretch) -> torch.Tensor:
    mixed_bHqh = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=stretch.visible_b1qt
    )
    return mixed_bHqh.transpose(1, 2)


def _products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, stretch: Stretch) -> torch.Tensor:
    chunks = stretch.chunks or ((0, query.shape[1], key.shape[1]),)
    return products(query, key, value, stretch.bias(query.dtype), chunks)


_BACKENDS = {"reference": _reference, "sdpa": _sdpa, "products": _products}
