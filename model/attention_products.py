"""Attention of a layer as matrix products and a softmax, with a backward pass of its own.

On CPU it is faster than scaled_dot_product_attention: much so in bfloat16, whose fused backward pass is slow, and in
float32 because queries are cut into chunks, each of which meets only the keys before its end. Scores are rounded to the
inputs' dtype; the softmax itself is worked out in float32.

All stretches are one node of the graph: one gather each of queries, keys and values, instead of slices, paddings and
copies of each stretch, whose gradients autograd would fill with zeros and add up.

Shape suffixes: Q queries · A keys · b rows of a stretch · q, t places per row for queries and keys · H heads · h head
width · B = b · H · X gathered rows (model/gather.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from model.bands import Band
from model.gather import Gather

# Probabilities of a layer that take more are worked out again in the backward pass instead of kept.
KEPT_BYTES = 64 * 2**20

Chunk = tuple[int, int, int]  # queries [first, last), which meet keys [0, end)


@dataclass(frozen=True)
class Part:
    """One stretch. query_bq, key_bt: packed place of each place's token, −1 for none. bias: 0 or −inf, [b, 1, q, t] in
    a dtype, no row of it all −inf. chunks: cover all queries, in order; keys from a chunk's end on are out of its
    sight. band: what key_bt was made by, if blocks share keys; then the part is the only one."""

    query_bq: torch.Tensor
    key_bt: torch.Tensor
    bias: Callable[[torch.dtype], torch.Tensor]
    chunks: tuple[Chunk, ...]
    band: Band | None = None


@dataclass(frozen=True)
class _Chunk:
    """Queries `rows` of the gathered ones, as [B, q, h], meet the first `end` places of keys `keys`, as [B, t, h]."""

    part: Part
    first: int
    last: int
    end: int
    rows: slice
    keys: slice
    highest: bool

    def queries_of(self, x_Xh: torch.Tensor) -> torch.Tensor:
        return x_Xh[self.rows].view(-1, self.last - self.first, x_Xh.shape[1])

    def keys_of(self, x_Xh: torch.Tensor) -> torch.Tensor:
        return x_Xh[self.keys].view(-1, self.part.key_bt.shape[1], x_Xh.shape[1])

    def shares(self, query_Xh: torch.Tensor, key_Xh: torch.Tensor) -> torch.Tensor:
        """Softmax [B, q, t]. The scale goes into the product, so that in half width scores are rounded once."""
        query_Bqh, key_Bth = self.queries_of(query_Xh), self.keys_of(key_Xh)[:, : self.end]
        scale, none = query_Bqh.shape[-1] ** -0.5, query_Bqh.new_empty(())
        score_Bqt = torch.baddbmm(none, query_Bqh, key_Bth.transpose(1, 2), beta=0, alpha=scale)
        b = self.part.key_bt.shape[0]
        bias_b1qt = self.part.bias(score_Bqt.dtype)[:, :, self.first : self.last, : self.end]
        score_Bqt.view(b, score_Bqt.shape[0] // b, *score_Bqt.shape[1:]).add_(bias_b1qt)
        return torch.softmax(score_Bqt, dim=-1)


class Plan:
    """What `products` needs to know of a layer's stretches, for a number of heads; made once and used by all layers
    that share a layout, forward and back."""

    def __init__(self, parts: Sequence[Part], num_queries: int, num_keys: int, heads: int) -> None:
        places, chunks, row, key = [], [], 0, 0
        for part in parts:
            b, t = part.key_bt.shape
            for first, last, end in part.chunks:
                places.append(part.query_bq[:, first:last])
                rows, keys = slice(row, row + b * heads * (last - first)), slice(key, key + b * heads * t)
                row = rows.stop
                chunks.append(_Chunk(part, first, last, end, rows, keys, last == part.chunks[-1][1]))
            key += b * heads * t
        self.chunks = chunks
        self.queries = Gather(places, num_queries, heads)
        self.keys = Gather([part.key_bt for part in parts], num_keys, heads, parts[0].band)
        self.probabilities = sum((c.rows.stop - c.rows.start) * c.end for c in chunks)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_QHh: torch.Tensor, key_AHh: torch.Tensor, value_AHh: torch.Tensor, plan: Plan
    ) -> torch.Tensor:
        query, key = plan.queries.take(query_QHh), plan.keys.take(key_AHh)
        value = plan.keys.take(value_AHh, clear=True)  # a query that sees no key of its own row reads zeros
        ctx.keeps, ctx.plan = plan.probabilities * query.element_size() <= KEPT_BYTES, plan
        mixed, kept = torch.empty_like(query), []
        for chunk in plan.chunks:
            shares = chunk.shares(query, key)
            torch.bmm(shares, chunk.keys_of(value)[:, : chunk.end], out=chunk.queries_of(mixed))
            if ctx.keeps:
                kept.append(shares)
        ctx.save_for_backward(query, key, value, *kept)
        return plan.queries.give(mixed)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        plan, scale = ctx.plan, query.shape[1] ** -0.5
        pull = plan.queries.take(grads[0], clear=True)
        of_query, of_key, of_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        # From the last chunk of a stretch, which meets all keys that any meets, to the first.
        for number in reversed(range(len(plan.chunks))):
            chunk = plan.chunks[number]
            shares = kept[number] if ctx.keeps else chunk.shares(query, key)
            pull_Bqh, end = chunk.queries_of(pull), chunk.end
            _add(chunk, of_value, shares.transpose(1, 2), pull_Bqh)
            of_shares = torch.bmm(pull_Bqh, chunk.keys_of(value)[:, :end].transpose(1, 2))
            of_score = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype)
            del of_shares
            torch.bmm(of_score, chunk.keys_of(key)[:, :end], out=chunk.queries_of(of_query))
            _add(chunk, of_key, of_score.transpose(1, 2), chunk.queries_of(query))
        of_query, of_key = plan.queries.give(of_query).mul_(scale), plan.keys.give(of_key).mul_(scale)
        return of_query, of_key, plan.keys.give(of_value), None


def _add(chunk: _Chunk, to_Xh: torch.Tensor, a_Btq: torch.Tensor, b_Bqh: torch.Tensor) -> None:
    """Adds a · b to the keys that the chunk meets; the last chunk of a stretch is the first to come."""
    to_Bth = chunk.keys_of(to_Xh)
    if not chunk.highest:
        to_Bth[:, : chunk.end] += torch.bmm(a_Btq, b_Bqh)
    elif chunk.end == to_Bth.shape[1]:
        torch.bmm(a_Btq, b_Bqh, out=to_Bth)
    else:
        to_Bth[:, chunk.end :] = 0
        to_Bth[:, : chunk.end] = torch.bmm(a_Btq, b_Bqh)


def products(query_QHh: torch.Tensor, key_AHh: torch.Tensor, value_AHh: torch.Tensor, plan: Plan) -> torch.Tensor:
    """softmax(q kᵀ / √h + bias) v → [Q, H, h]."""
    mixed_QHh: torch.Tensor = _Products.apply(query_QHh, key_AHh, value_AHh, plan)  # type: ignore[no-untyped-call]
    return mixed_QHh
