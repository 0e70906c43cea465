"""OneTrans: which token may look at which, from integers alone.

A row's stream is [S-tokens; NS-tokens] (Eq. 3) under one causal mask. S-tokens are the behaviours of all histories,
merged by time. NS-tokens are the row's static fields, then the candidate: so the fields never see it, and K candidates
share both. A set of NS-tokens is an *ask*: one a row with `candidates` supervision; with `history` supervision one for
every supervised event, which is then the candidate, over the S-tokens before it. An event is scored as a row that
ends before it would score it.

Shape suffixes: R rows · S supervised positions · C candidates, in the order of the asks · G asks · A S-tokens a layer
takes in · b rows of a stretch · a asks of a row · n NS-tokens of an ask · s S-tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.attention import Layout, Padding, paddings
from model.config import Model
from model.inputs import InputSpec, RankerInput
from model.mask import sight
from model.row_attention import layout_between, seen_in
from model.stream import Stream, build_event_stream, by_length
from model.timeline import Timeline, chosen, rows_of


@dataclass(frozen=True)
class Asks:
    """row_G, row_C: in the stream's order of rows, ascending. static_G: row of the batch whose static fields an ask
    has. source_C: which of the S positions a candidate is. ask_C: its ask. position_G, sight_G5: for RoPE and for
    what an ask sees of the S-tokens."""

    row_G: torch.Tensor
    row_C: torch.Tensor
    static_G: torch.Tensor
    source_C: torch.Tensor
    ask_C: torch.Tensor
    position_G: torch.Tensor
    sight_G5: torch.Tensor


@dataclass(frozen=True)
class OwnStretch:
    """One stretch of NS-tokens. seen_b1a1s: bool, of the S-tokens, by ask. own_nn: of the NS-tokens of the same ask."""

    asks: Padding
    candidates: Padding
    keys: Padding
    seen_b1a1s: torch.Tensor
    own_nn: torch.Tensor


@dataclass(frozen=True)
class LayerPlaces:
    """kept_A: which S-tokens are put out (index into those taken in), None for all. shared: their attention, None at
    the top, where none is put out. own: of the NS-tokens."""

    kept_A: torch.Tensor | None
    shared: Layout | None
    own: tuple[OwnStretch, ...]


@dataclass(frozen=True)
class OneTransPlaces:
    stream: Stream
    asks: Asks
    layers: tuple[LayerPlaces, ...]


def kept_tokens(spec: InputSpec, config: Model, longest: int) -> list[int | None]:
    """S-tokens that layers 1 … L put out, None for all (Eq. 14's L', less the NS-tokens). longest: S-tokens of the
    longest row there can be."""
    layers, kept = config.num_layers, config.onetrans.kept
    if spec.supervision == "history":
        return [None] * (layers - 1) + [0]
    if kept:
        return [*kept[: layers - 1], *kept[-1:] * (layers - 1 - len(kept)), 0]
    return [-(-longest * (layers - layer) // layers) for layer in range(1, layers + 1)]


def onetrans_places(
    spec: InputSpec,
    batch: RankerInput,
    timeline: Timeline,
    num_fields: int,
    kept: Sequence[int | None],
    *,
    num_supervised: int,
) -> OneTransPlaces:
    stream = build_event_stream(timeline, num_supervised=num_supervised if spec.supervision == "history" else 0)
    asks = _asks(spec, batch, timeline, stream, num_supervised)
    age_N = timeline.tokens_R.index_select(0, by_length(timeline.tokens_R)[0]).index_select(0, stream.row_N)
    age_N = age_N - stream.order_N  # 1 for the newest of its row
    ask_paddings, candidate_paddings = paddings(asks.row_G, stream.num_rows), paddings(asks.row_C, stream.num_rows)
    row_A, sight_A5, layers = stream.row_N, sight(stream, None), list[LayerPlaces]()
    for level, newest in enumerate(kept, start=1):
        as_below = bool(layers) and layers[-1].kept_A is None
        own = layers[-1].own if as_below else _own(num_fields, asks, ask_paddings, candidate_paddings, row_A, sight_A5)
        kept_A = None if newest is None else (age_N <= newest).nonzero().squeeze(1)
        shared = layers[-1].shared if as_below and kept_A is None else None
        if shared is None and level < len(kept):
            row_Q, sight_Q5 = chosen(row_A, kept_A), chosen(sight_A5, kept_A)
            shared = layout_between(row_Q, row_A, stream.num_rows, sight_Q5, sight_A5)
        layers.append(LayerPlaces(kept_A, shared, own))
        row_A, sight_A5, age_N = chosen(row_A, kept_A), chosen(sight_A5, kept_A), chosen(age_N, kept_A)
    return OneTransPlaces(stream, asks, tuple(layers))


def _own(
    num_fields: int,
    asks: Asks,
    ask_paddings: list[Padding],
    candidate_paddings: list[Padding],
    row_A: torch.Tensor,
    sight_A5: torch.Tensor,
) -> tuple[OwnStretch, ...]:
    own = []
    key_paddings = paddings(row_A, sum(padding.rows for padding in ask_paddings))
    for for_asks, candidates, keys in zip(ask_paddings, candidate_paddings, key_paddings, strict=True):
        seen_b1a1s = seen_in(for_asks, keys, asks.sight_G5, sight_A5)[:, None, :, None]
        own_nn = _own_mask(num_fields, candidates.width // for_asks.width, row_A.device)
        own.append(OwnStretch(for_asks, candidates, keys, seen_b1a1s, own_nn))
    return tuple(own)


def _asks(spec: InputSpec, batch: RankerInput, timeline: Timeline, stream: Stream, num_supervised: int) -> Asks:
    if spec.supervision == "history":
        at_S = stream.supervised_S
        source_C = at_S.argsort()
        at_G = at_S.index_select(0, source_C)
        row_G = stream.row_N.index_select(0, at_G)
        return Asks(
            row_G=row_G,
            row_C=row_G,
            static_G=timeline.row_E.index_select(0, source_C),
            source_C=source_C,
            ask_C=torch.arange(num_supervised, device=row_G.device),
            position_G=stream.position_N.index_select(0, at_G),
            sight_G5=_ask_sight(stream.order_N.index_select(0, at_G), stream.clock_N.index_select(0, at_G)),
        )
    by_length_R, place_R = by_length(timeline.tokens_R)
    row_C = place_R.index_select(0, rows_of(batch.candidate_lengths_R, num_supervised))
    source_C = row_C.argsort(stable=True)
    row_C = row_C.index_select(0, source_C)
    return Asks(
        row_G=torch.arange(stream.num_rows, device=row_C.device),
        row_C=row_C,
        static_G=by_length_R,
        source_C=source_C,
        ask_C=row_C,
        position_G=(timeline.counts_R + 1).index_select(0, by_length_R),
        sight_G5=_ask_sight(timeline.tokens_R, batch.clock_R).index_select(0, by_length_R),
    )


def _ask_sight(order_G: torch.Tensor, clock_G: torch.Tensor) -> torch.Tensor:
    """As in mask.sight: all S-tokens before `order`. An ask has no place among them, so it is given order −1."""
    return torch.stack([torch.full_like(order_G, -1), torch.zeros_like(order_G), order_G - 1, clock_G, clock_G], dim=1)


def _own_mask(num_fields: int, num_candidates: int, device: torch.device) -> torch.Tensor:
    """bool [n, n]: fields causally; a candidate all fields and itself."""
    own_nn = torch.ones(
        num_fields + num_candidates, num_fields + num_candidates, dtype=torch.bool, device=device
    ).tril()
    own_nn[num_fields:, num_fields:] = torch.eye(num_candidates, dtype=torch.bool, device=device)
    return own_nn
