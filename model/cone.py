"""The dependency cone: which tokens each layer has to compute, so that nothing is computed that no logit reads.

Exact, not approximate: from the top down, a layer's outputs are needed where the layer above reads them. The last
layer is read at the supervised positions only; a sliding layer of window w reads w − 1 places further back, and never
the fields; a full layer reads all.

Shape suffixes: N tokens of the stream · R rows · S supervised positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model.stream import Stream


def needed_tokens(stream: Stream, windows: Sequence[int | None]) -> list[torch.Tensor | None]:
    """One entry a layer and one more: entry l is what layer l takes in, the last what the top layer puts out; index
    into N, ascending, or None for all tokens.

    windows: bottom up, None for a full layer; full layers lie below sliding ones.
    """
    needed_N = torch.zeros_like(stream.order_N, dtype=torch.bool).index_fill_(0, stream.supervised_S, True)
    lowest_R = torch.full((stream.num_rows,), torch.iinfo(torch.int64).max, device=needed_N.device)
    rows_S, orders_S = (
        stream.row_N.index_select(0, stream.supervised_S),
        stream.order_N.index_select(0, stream.supervised_S),
    )
    lowest_N = lowest_R.scatter_reduce_(0, rows_S, orders_S, "amin").index_select(0, stream.row_N)
    outside_N = stream.order_N >= stream.num_fields

    chain: list[torch.Tensor | None] = [needed_N]
    for window in reversed(windows):
        if window is None:
            chain.append(None)
            continue
        lowest_N = lowest_N - (window - 1)
        chain.append((stream.order_N >= lowest_N) & outside_N)
    return [None if tokens_N is None else tokens_N.nonzero().squeeze(1) for tokens_N in reversed(chain)]
