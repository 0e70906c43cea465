"""The stream with `savings.packed` and `savings.request_rows` off: what a plain implementation computes.

Shape suffixes: N tokens of the stream · R rows · X tokens of the padded stream · C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from model.inputs import RankerInput
from model.rows import rows_at
from model.stream import ALWAYS_KNOWN, BEFORE_ALL_ACTIONS, Stream
from model.timeline import counts_of, exclusive_cumsum, rows_of

_LAST_PLACE = torch.iinfo(torch.int64).max


def padded(stream: Stream, chain: Sequence[torch.Tensor | None]) -> tuple[Stream, list[torch.Tensor | None]]:
    """The stream with padding behind each row, and the chain of `cone.needed_tokens` in it, in which every layer has as
    many tokens of each row. Causality alone keeps padding out of sight of tokens; what it holds is read by none."""
    rows = stream.num_rows
    own_R = counts_of(stream.row_N, rows)
    # Top down: a layer's padding takes in that of the layer above.
    pads: list[torch.Tensor] = []
    above_R = torch.zeros_like(own_R)
    for tokens in reversed(chain):
        counts_R = own_R if tokens is None else counts_of(stream.row_N.index_select(0, tokens), rows)
        wanted_R = counts_R + above_R
        above_R = (wanted_R.amax() if rows else 0) - counts_R
        pads.insert(0, above_R)
    lengths_R = own_R + pads[0]
    total = int(lengths_R.sum())
    row_X = rows_of(lengths_R, total)
    order_X = torch.arange(total, device=row_X.device) - exclusive_cumsum(lengths_R).index_select(0, row_X)
    place_N = exclusive_cumsum(lengths_R).index_select(0, stream.row_N) + stream.order_N
    behind_X = order_X - own_R.index_select(0, row_X)  # from 0 on for padding

    def spread(values_N: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        return padding.scatter(0, place_N, values_N)

    def constant(value: int) -> torch.Tensor:
        return torch.full_like(order_X, value)

    wide = replace(
        stream,
        source_N=spread(stream.source_N, constant(0)),
        row_N=row_X,
        order_N=order_X,
        index_N=spread(stream.index_N, order_X),
        last_N=spread(stream.last_N, order_X),
        position_N=spread(stream.position_N, constant(0)),
        known_N=spread(stream.known_N, constant(ALWAYS_KNOWN)),
        clock_N=spread(stream.clock_N, constant(BEFORE_ALL_ACTIONS)),
        supervised_S=place_N.index_select(0, stream.supervised_S),
    )
    found: list[torch.Tensor | None] = []
    for tokens, pads_R in zip(chain, pads, strict=True):
        in_X = (behind_X >= 0) & (behind_X < pads_R.index_select(0, row_X))
        in_X = in_X.index_fill(0, place_N if tokens is None else place_N.index_select(0, tokens), True)
        found.append(None if tokens is None and torch.equal(pads_R, pads[0]) else in_X.nonzero().squeeze(1))
    return wide, found


def one_row_per_candidate(batch: RankerInput) -> RankerInput:
    """Every candidate a row of its own, with copies of its request's fields and histories. A batch without candidates
    stays as it is: a tower needs a row."""
    total = next(iter(batch.candidates.values())).shape[0]
    if not total:
        return batch
    row_C = rows_of(batch.candidate_lengths_R, total)
    return rows_at(batch, row_C, batch.candidates, torch.ones_like(row_C))
