"""Which token may look at which (TokenFormer, arXiv 2604.13737, BFTS, Eq. 15).

One rule: a query sees itself, and every key of its row whose `order` lies between the query's `first` and `last` and
which was known by the query's clock. The layers differ in `first` alone:

    full layer      first = 0                        (j ≤ i)
    sliding layer   first = index − window + 1       (j ≤ i and i − j < w), and not below M: no query outside F reads F

States and candidates are always known to whoever may look back at them; an action token is known to clocks after its
own. With clocks that never fall along a row, what a token has gathered in one layer was known to all who see it in
the next.

Shape suffixes: N tokens of the stream · [..., Q] and [..., T] any tokens as queries and as keys · 5 columns of a sight.
"""

from __future__ import annotations

import torch

from model.stream import Stream

_LAST_PLACE = torch.iinfo(torch.int64).max
# order, first, last, clock, known of a place that holds no token: as a query it sees all, so that no softmax is empty;
# as a key it is seen by no token, so that no mass goes to padding.
PADDING_SIGHT = (_LAST_PLACE, 0, _LAST_PLACE, _LAST_PLACE, 0)


def sight(stream: Stream, window: int | None) -> torch.Tensor:
    """int64 [N, 5], what every token sees and shows in a layer of this window (None: full): order, first, last,
    clock, known. One tensor, so that it is padded in one go."""
    first_N = torch.zeros_like(stream.order_N)
    if window is not None:
        outside_N = stream.order_N >= stream.num_fields
        first_N = stream.index_N - window + 1
        first_N = first_N.clamp(min=stream.num_fields).where(outside_N, first_N)
    return torch.stack([stream.order_N, first_N, stream.last_N, stream.clock_N, stream.known_N], dim=1)


def visible(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """bool [..., Q, T]: query may look at key, both of one row. Sights [..., Q, 5] and [..., T, 5]; where there are no
    action tokens, their first three columns will do."""
    order_Q, first_Q, last_Q, *of_clock_Q = queries.unsqueeze(-2).unbind(-1)
    order_T, _, _, *of_known_T = keys.unsqueeze(-3).unbind(-1)
    seen_QT = (order_T >= first_Q) & (order_T <= last_Q)
    if of_clock_Q:
        seen_QT &= of_known_T[1] < of_clock_Q[0]
    return seen_QT | (order_T == order_Q)
