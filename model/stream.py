"""The packed token stream of a batch (TokenFormer, arXiv 2604.13737, Eq. 7): per row

    [F_1 … F_M, <sep>, s_1 (a_1) … s_T (a_T), <sep>, V_1 … V_K]

With `history` supervision nothing follows the last behaviour: no second <sep>, no candidates.
Here are places and facts only; the vectors are made in tokens.py, in P order.

Shape suffixes: R request rows · E events as in timeline.py · C candidates · S supervised positions · P tokens kind by
kind (fields, first <sep>, states, actions, second <sep>, candidates) · N the same tokens as the packed stream, row
after row, shortest row
first: rows of like length lie together, so that attention pads little.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.inputs import InputSpec
from model.timeline import Timeline, exclusive_cumsum, rows_of

_INT64 = torch.iinfo(torch.int64)
ALWAYS_KNOWN = _INT64.min
BEFORE_ALL_ACTIONS = _INT64.min + 1


@dataclass(frozen=True)
class Stream:
    """All int64. num_fields: M. num_rows: R.

    source_N:     index into P order.
    row_N:        row, counted in the stream's own order of rows.
    order_N:      true place in the row's stream, from 0: what causality goes by.
    index_N:      place that windows are counted in: the true one, but isolated candidates all stand right after the
                  second <sep>.
    last_N:       the highest `order` the token may look at, itself apart.
    position_N:   for RoPE: fields and first <sep> 0; behaviour t, state and action alike, t; second <sep> and
                  candidates T + 1.
    known_N:      as a key: when what it tells became known; ALWAYS_KNOWN but for action tokens.
    clock_N:      as a query: it may look at action tokens with known < clock.
    supervised_S: places in N of the positions that get logits.
    has_actions:  whether there is any action token.
    """

    num_fields: int
    num_rows: int
    source_N: torch.Tensor
    row_N: torch.Tensor
    order_N: torch.Tensor
    index_N: torch.Tensor
    last_N: torch.Tensor
    position_N: torch.Tensor
    known_N: torch.Tensor
    clock_N: torch.Tensor
    supervised_S: torch.Tensor
    has_actions: bool = True


@dataclass(frozen=True)
class _Piece:
    """Tokens of one kind: row and place in the row, and what differs from the defaults."""

    row: torch.Tensor
    order: torch.Tensor
    position: torch.Tensor
    clock: torch.Tensor
    index: torch.Tensor | None = None
    last: torch.Tensor | None = None
    known: torch.Tensor | None = None


def _field_pieces(rows_R: torch.Tensor, num_fields: int, bidirectional: bool) -> list[_Piece]:
    row, order = (
        rows_R.repeat_interleave(num_fields),
        torch.arange(num_fields, device=rows_R.device).repeat(rows_R.shape[0]),
    )
    last = torch.full_like(order, num_fields - 1) if bidirectional else None
    fields = _Piece(row, order, torch.zeros_like(row), torch.full_like(row, BEFORE_ALL_ACTIONS), last=last)
    zeros_R = torch.zeros_like(rows_R)
    return [fields, _Piece(rows_R, zeros_R + num_fields, zeros_R, zeros_R + BEFORE_ALL_ACTIONS)]


def _event_pieces(timeline: Timeline, first: int) -> list[_Piece]:
    """States, then actions. An action token looks at what was known when it became known itself, equal clocks
    included: whoever may see it (known < c) may see all of that as well, so no later layer passes on what was not
    known yet."""
    order_E, position_E = first + timeline.tokens_before_E, timeline.rank_E + 1
    states = _Piece(timeline.row_E, order_E, position_E, timeline.clock_E)
    chosen = timeline.has_action_E.nonzero().squeeze(1)
    known = timeline.action_clock_E.index_select(0, chosen)
    actions = _Piece(
        row=timeline.row_E.index_select(0, chosen),
        order=order_E.index_select(0, chosen) + 1,
        position=position_E.index_select(0, chosen),
        clock=known.clamp(max=_INT64.max - 1) + 1,
        known=known,
    )
    return [states, actions]


def _candidate_pieces(
    timeline: Timeline,
    lengths_R: torch.Tensor,
    clock_R: torch.Tensor,
    num_candidates: int,
    *,
    first: int,
    isolated: bool,
) -> list[_Piece]:
    rows_R = torch.arange(clock_R.shape[0], device=clock_R.device)
    row_C = rows_of(lengths_R, num_candidates)
    rank_C = torch.arange(num_candidates, device=row_C.device) - exclusive_cumsum(lengths_R).index_select(0, row_C)
    sep_R = first + timeline.tokens_R
    position_R = timeline.counts_R + 1
    sep_C = sep_R.index_select(0, row_C)
    candidates = _Piece(
        row=row_C,
        order=sep_C + 1 + rank_C,
        position=position_R.index_select(0, row_C),
        clock=clock_R.index_select(0, row_C),
        index=sep_C + 1 if isolated else None,
        last=sep_C if isolated else None,
    )
    return [_Piece(rows_R, sep_R, position_R, clock_R), candidates]


def build_stream(
    spec: InputSpec,
    num_fields: int,
    timeline: Timeline,
    candidate_lengths_R: torch.Tensor,
    clock_R: torch.Tensor,
    *,
    num_supervised: int,
    bidirectional_fields: bool = False,
    isolated_candidates: bool = True,
) -> Stream:
    """`clock_R`: of the requests. `num_supervised`: S, that is C, or the events of the supervised history, which must
    be the timeline's first (timeline.ordered_histories)."""
    rows_R = torch.arange(clock_R.shape[0], device=clock_R.device)
    pieces = _field_pieces(rows_R, num_fields, bidirectional_fields) + _event_pieces(timeline, num_fields + 1)
    lengths_R = num_fields + 1 + timeline.tokens_R
    if spec.supervision == "candidates":
        pieces += _candidate_pieces(
            timeline,
            candidate_lengths_R,
            clock_R,
            num_supervised,
            first=num_fields + 1,
            isolated=isolated_candidates,
        )
        lengths_R = lengths_R + 1 + candidate_lengths_R
    supervised_piece = len(pieces) - 1 if spec.supervision == "candidates" else 2
    first = sum(piece.row.shape[0] for piece in pieces[:supervised_piece])
    return _pack(num_fields, pieces, lengths_R, slice(first, first + num_supervised))


def build_event_stream(timeline: Timeline, *, num_supervised: int) -> Stream:
    """The behaviours alone, s_1 (a_1) … s_T (a_T), as in `build_stream`; P: states, actions. `num_supervised`: how
    many of the first states are supervised."""
    return _pack(0, _event_pieces(timeline, 0), timeline.tokens_R, slice(0, num_supervised))


def by_length(lengths_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The streams' order of rows, shortest first, as an index [R] into the batch's, and each row's place in it [R]."""
    by_length_R = lengths_R.argsort(stable=True)
    places_R = torch.arange(lengths_R.shape[0], device=lengths_R.device)
    return by_length_R, torch.empty_like(by_length_R).scatter_(0, by_length_R, places_R)


def _pack(num_fields: int, pieces: list[_Piece], lengths_R: torch.Tensor, supervised: slice) -> Stream:
    by_length_R, place_R = by_length(lengths_R)
    offset_R = exclusive_cumsum(lengths_R.index_select(0, by_length_R)).index_select(0, place_R)

    row_P, order_P = torch.cat([piece.row for piece in pieces]), torch.cat([piece.order for piece in pieces])
    packed_P = offset_R.index_select(0, row_P) + order_P
    source_N = torch.empty_like(packed_P).scatter_(0, packed_P, torch.arange(packed_P.shape[0], device=packed_P.device))

    def packed(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(parts).index_select(0, source_N)

    return Stream(
        num_fields=num_fields,
        num_rows=lengths_R.shape[0],
        source_N=source_N,
        row_N=place_R.index_select(0, row_P).index_select(0, source_N),
        order_N=order_P.index_select(0, source_N),
        index_N=packed([piece.order if piece.index is None else piece.index for piece in pieces]),
        last_N=packed([piece.order if piece.last is None else piece.last for piece in pieces]),
        position_N=packed([piece.position for piece in pieces]),
        known_N=packed(
            [torch.full_like(piece.row, ALWAYS_KNOWN) if piece.known is None else piece.known for piece in pieces]
        ),
        clock_N=packed([piece.clock for piece in pieces]),
        supervised_S=packed_P[supervised],
        has_actions=any(piece.known is not None and piece.known.shape[0] > 0 for piece in pieces),
    )
