"""What the rankers over TokenFormer's stream do (model/stream.py, model/cone.py, model/mask.py), by row lengths.

A row is [M fields, <sep>, events (each with its action), <sep>, K candidates]. Every layer puts out a stretch of tokens
that ends with the row; in `history` supervision the top one puts out the supervised events alone. With several
histories it is not known here where those stand among the others: they are taken to be spread evenly, and the first to
be one of them; with one history all counts are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from model.config import Model
from model.inputs import InputSpec
from model.tower import merges_actions
from trainer.flops import Counts, Pairs, Product, Rows, Work, embedding, num_fields, supervised


@dataclass(frozen=True)
class StreamRows:
    """Tokens by row: events_R of all histories with their actions, length_R of the whole stream, asked_R supervised
    ones, candidates_R. fields: M. spread_R: tokens from one supervised event to the next."""

    fields: int
    events_R: Counts
    length_R: Counts
    asked_R: Counts
    candidates_R: Counts
    spread_R: Counts
    of_candidates: bool
    isolated: bool
    bidirectional: bool


def stream_rows(spec: InputSpec, config: Model, rows: Rows) -> StreamRows:
    separate = not merges_actions(spec, config)
    per_event = {h.name: 2 if h.action and separate else 1 for h in spec.histories}
    events_R = sum((n * rows.histories[name] for name, n in per_event.items()), np.zeros(len(rows.candidates)))
    of_candidates, fields = spec.supervision == "candidates", num_fields(spec, config)
    asked_R = supervised(spec, rows)
    ends_R = rows.candidates + 1 if of_candidates else 0.0
    return StreamRows(
        fields=fields,
        events_R=events_R,
        length_R=fields + 1 + events_R + ends_R,
        asked_R=asked_R,
        candidates_R=rows.candidates,
        spread_R=events_R / np.maximum(asked_R, 1),
        of_candidates=of_candidates,
        isolated=config.candidates_see == "history",
        bidirectional=config.field_attention == "bidirectional",
    )


def first_needed(rows: StreamRows, windows: Sequence[int | None]) -> list[Counts | None]:
    """Bottom up, one entry a layer and one more: the place in its row of the first token that the layer takes in, the
    last entry that which the top puts out; None where all are taken (model/cone.py)."""
    lowest_R = rows.length_R - rows.candidates_R if rows.of_candidates else np.full_like(rows.length_R, rows.fields + 1)
    lowest_R = np.where(rows.asked_R > 0, lowest_R, np.inf)
    chain: list[Counts | None] = [lowest_R]
    for window in reversed(windows):
        if window is None:
            chain.append(None)
            continue
        lowest_R = lowest_R - (window - 1)
        chain.append(np.minimum(np.maximum(lowest_R, rows.fields), rows.length_R))
    return chain[::-1]


def layer_tokens(rows: StreamRows, chain: Sequence[Counts | None]) -> list[float]:
    """Tokens that each layer takes in, and that the top one puts out."""
    tokens = [float((rows.length_R if first is None else rows.length_R - first).sum()) for first in chain[:-1]]
    return [*tokens, float(rows.asked_R.sum())]


def visible_pairs(rows: StreamRows, window: int | None, first_R: Counts | None, *, top: bool) -> float:
    """Of the queries from place `first_R` on (None: all), the keys each may look at, itself among them."""
    if top and not rows.of_candidates:
        return float(_of_supervised_events(rows, window).sum())
    width, fields = float("inf") if window is None else float(window), rows.fields
    start_R = np.zeros_like(rows.length_R) if first_R is None else first_R
    causal_end_R = rows.length_R - (rows.candidates_R if rows.isolated and rows.of_candidates else 0)
    start_R = np.minimum(start_R, causal_end_R)
    # Fields look at fields; what stands after them sees them in full layers only, where a place o sees o + 1.
    hidden = 0 if window is None else fields
    in_fields_R = np.clip(fields - start_R, 0, None)
    if rows.bidirectional:
        inside = np.arange(fields)
        from_R = inside - (width - 1 if window is not None else fields)
        of_field = fields - np.clip(from_R, 0, None)
    else:
        of_field = np.minimum(np.arange(fields) + 1, width)
    field_sums = np.concatenate([[0.0], np.cumsum(of_field[::-1])])
    total_R = field_sums[in_fields_R.astype(int)]
    begin_R = np.maximum(start_R, fields)
    total_R = total_R + _sum_to(causal_end_R - hidden, width) - _sum_to(begin_R - hidden, width)
    if rows.isolated and rows.of_candidates:  # what lies up to the second <sep>, within the window, and itself
        sep_R = causal_end_R - 1
        total_R = total_R + rows.candidates_R * np.minimum(width, sep_R + 2 - hidden)
    return float(total_R.sum())


def _sum_to(n_R: Counts, width: float) -> Counts:
    """Σ min(width, i) for i = 1 … n."""
    inner_R = np.minimum(n_R, width)
    beyond_R: Counts = (n_R - inner_R) * (0.0 if np.isinf(width) else width)
    below_R: Counts = inner_R * (inner_R + 1) / 2
    return beyond_R + below_R


def _of_supervised_events(rows: StreamRows, window: int | None) -> Counts:
    """[R] at place M + 1 + t · spread, t = 0 … asked − 1."""
    asked_R, spread_R = rows.asked_R, rows.spread_R
    sees = (rows.fields if window is None else 0) + 2
    if window is None:
        all_R: Counts = asked_R * sees + spread_R * asked_R * (asked_R - 1) / 2
        return all_R
    inside_R = np.where(
        window >= sees, np.minimum(np.floor((window - sees) / np.maximum(spread_R, 1e-9)) + 1, asked_R), 0.0
    )
    within_R: Counts = inside_R * sees + spread_R * inside_R * (inside_R - 1) / 2
    beyond_R: Counts = (asked_R - inside_R) * window
    return within_R + beyond_R


def stream_work(spec: InputSpec, config: Model, rows: Rows) -> Work:
    """TokenFormer and the plain Transformer."""
    found, dim = stream_rows(spec, config, rows), config.dim
    windows = config.layer_windows
    chain = first_needed(found, windows)
    tokens = layer_tokens(found, chain)
    products, attention = embedding(spec, config, rows), []
    for level, (taken, put_out) in enumerate(pairwise(tokens)):
        products += [
            Product(taken, dim, 2 * dim),
            Product(put_out, dim, dim, times=3 if config.gated else 2),
            Product(put_out, dim, 2 * config.hidden_dim),
            Product(put_out, config.hidden_dim, dim),
        ]
        top = level == len(windows) - 1
        attention.append(Pairs(visible_pairs(found, windows[level], chain[level + 1], top=top), put_out, taken, dim))
    products.append(Product(tokens[-1], dim, len(spec.tasks)))
    return Work(tuple(products), tuple(attention))
