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
from model.attention_products import Chunk, Part, Plan, products
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
_PAIRS_OF_A_STRETCH = 8192  # what its operations take, in pairs of query and key of four heads
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

    def places(self, device: torch.device) -> torch.Tensor:
        """int64 [b, width]: which of the packed tokens stands at each place, −1 for none."""
        token = torch.arange(self.first, self.last, device=device)
        if self.slots is not None:
            token = token.new_full((self.rows * self.width,), -1).index_copy_(0, self.slots, token)
        return token.view(self.rows, self.width)

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

    def part(self, num_keys: int, device: torch.device) -> Part:
        """For `products`."""
        places_bq = self.queries.places(device)
        band = self.keys if isinstance(self.keys, Band) else None
        if isinstance(self.keys, Band):
            places_bt = self.keys.places(self.queries.rows, num_keys, device)
        else:
            places_bt = self.keys.places(device)
        chunks = self.chunks or ((0, places_bq.shape[1], places_bt.shape[1]),)
        return Part(places_bq, places_bt, self.bias, chunks, band)


@dataclass(frozen=True)
class Layout:
    """One layer's attention. queries_A: which of the tokens taken in are put out (index into A), None for all.
    stretches: in packed order."""

    queries_A: torch.Tensor | None
    stretches: tuple[Stretch, ...]
    backend: Backend = "auto"
    _plans: dict[int, Plan] = field(default_factory=dict, compare=False)

    def plan(self, query_QHh: torch.Tensor, key_AHh: torch.Tensor) -> Plan:
        """For `products`, from shapes alone; made once for all layers that share the layout."""
        num_keys, heads, _ = key_AHh.shape
        if heads not in self._plans:
            parts = [stretch.part(num_keys, key_AHh.device) for stretch in self.stretches]
            self._plans[heads] = Plan(parts, query_QHh.shape[0], num_keys, heads)
        return self._plans[heads]


def _even_borders(num_rows: int) -> list[int]:
    """Stretches of equal row counts."""
    count = max(1, min(_MAX_STRETCHES, num_rows // _ROWS_PER_STRETCH))
    return [num_rows * i // count for i in range(count + 1)]


def _worthy_borders(row_Q: torch.Tensor, row_A: torch.Tensor, num_rows: int) -> list[int]:
    """Those of `_even_borders` that spare more pairs than a stretch costs. One wait for the device."""
    counts = torch.stack([counts_of(row_Q, num_rows), counts_of(row_A, num_rows)])
    queries, keys = counts.tolist()

    def pairs(first: int, last: int) -> int:
        return int((last - first) * max(queries[first:last]) * max(keys[first:last])) if last > first else 0

    first, *rest = _even_borders(num_rows)
    kept = [first]
    for middle, last in pairwise(rest):
        if pairs(kept[-1], last) > pairs(kept[-1], middle) + pairs(middle, last) + _PAIRS_OF_A_STRETCH:
            kept.append(middle)
    return [*kept, num_rows]


def paddings(row_A: torch.Tensor, num_rows: int, borders: list[int] | None = None) -> list[Padding]:
    """Cuts rows into stretches, of equal row counts unless `borders` are given. One wait for the device."""
    borders = borders or _even_borders(num_rows)
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


def _seen(queries: Padding, keys: Padding | Band, sights: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """bool [b, q, t], by the rule of mask.py."""
    padding = PADDING_SIGHT[: sights[0].shape[1]]
    return visible(queries.pad(sights[0], padding), keys.pad(sights[1], padding))


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
        seen_bqt = _seen(for_queries, for_keys, sights)
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
    return Stretch(queries, band, _seen(queries, band, sights).unsqueeze(1), ((0, width, band.width),))


def _layout(
    stream: Stream, window: int | None, taken_A: torch.Tensor | None, put_Q: torch.Tensor | None, backend: Backend
) -> Layout:
    """taken_A, put_Q: the tokens taken in and put out (index into N, None for all)."""
    queries_A = put_Q if taken_A is None or put_Q is None else torch.searchsorted(taken_A, put_Q)
    row_A, row_Q = chosen(stream.row_N, taken_A), chosen(stream.row_N, put_Q)
    borders = _worthy_borders(row_Q, row_A, stream.num_rows)
    keys = paddings(row_A, stream.num_rows, borders)
    queries = keys if queries_A is None else paddings(row_Q, stream.num_rows, borders)
    sight_N5 = sight(stream, window)
    if not stream.has_actions:  # all is known to all
        sight_N5 = sight_N5[:, :3]
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
    if backend == "products" and query_QHh.shape[0] and key_AHh.shape[0]:
        with torch.no_grad():
            plan = layout.plan(query_QHh, key_AHh)
        return products(query_QHh, key_AHh, value_AHh, plan).flatten(1)
    run = _reference if backend == "reference" else _sdpa
    parts = []
    for stretch in layout.stretches:
        query, key = stretch.queries.pad(query_QHh), stretch.keys.pad(key_AHh)
        mixed_bqHh = run(query, key, stretch.keys.pad(value_AHh), stretch)
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
