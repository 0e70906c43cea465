"""Which token may look at which (TokenFormer, arXiv 2604.13737, BFTS, Eq. 15).

One rule: a query sees itself, and every key of its row whose `order` lies between the query's `first` and `last` and
which was known by the query's clock. The layers differ in `first` alone:

    full layer      first = 0                        (j ≤ i)
    sliding layer   first = index − window + 1       (j ≤ i and i − j < w), and not below M: no query outside F reads F

States and candidates are always known to whoever may look back at them; an action token is known to clocks after its
own. With clocks that never fall along a row, what a token has gathered in one layer was known to all who see it in
the next.

Shape suffixes: N tokens of the stream · [..., Q] and [..., T] any tokens as queries and as keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.stream import Stream


@dataclass(frozen=True)
class Sight:
    """Int64 of one shape: of queries `order`, `first`, `last`, `clock` are read, of keys `order` and `known`."""

    order: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    clock: torch.Tensor
    known: torch.Tensor


def sight(stream: Stream, window: int | None) -> Sight:
    """[N] each: what every token of the stream sees in a layer of this window (None: full)."""
    first_N = torch.zeros_like(stream.order_N)
    if window is not None:
        outside_N = stream.order_N >= stream.num_fields
        first_N = stream.index_N - window + 1
        first_N = first_N.clamp(min=stream.num_fields).where(outside_N, first_N)
    return Sight(stream.order_N, first_N, stream.last_N, stream.clock_N, stream.known_N)


def visible(queries: Sight, keys: Sight) -> torch.Tensor:
    """bool [..., Q, T]: query may look at key, both of the same row. `queries` hold [..., Q], `keys` [..., T]."""
    order_T, order_Q = keys.order.unsqueeze(-2), queries.order.unsqueeze(-1)
    seen_QT = (order_T >= queries.first.unsqueeze(-1)) & (order_T <= queries.last.unsqueeze(-1))
    seen_QT &= keys.known.unsqueeze(-2) < queries.clock.unsqueeze(-1)
    return seen_QT | (order_T == order_Q)
