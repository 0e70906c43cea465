"""How each kind of ranker is counted; those over TokenFormer's stream in flops_stream.py.

Where several histories are merged and one of them is supervised, its events are taken to be spread evenly among the
others.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from model.config import Model
from model.hyformer import boosted_tokens
from model.inputs import InputSpec
from model.onetrans_places import kept_tokens
from model.tower import merges_actions
from trainer.flops import Counter, Counts, Pairs, Product, Rows, Work, embedding, num_fields, supervised
from trainer.flops_stream import first_needed, layer_tokens, stream_rows, stream_work, visible_pairs


def hstu_work(spec: InputSpec, config: Model, rows: Rows) -> Work:
    found, dim = stream_rows(spec, config, rows), config.dim
    windows = (None,) * config.num_layers
    chain = first_needed(found, windows)
    tokens = layer_tokens(found, chain)
    products, attention = embedding(spec, config, rows), []
    for level, (taken, put_out) in enumerate(pairwise(tokens)):
        products += [Product(taken, dim, 2 * dim), Product(put_out, dim, 2 * dim), Product(put_out, dim, dim)]
        pairs = visible_pairs(found, None, chain[level + 1], top=level == config.num_layers - 1)
        attention.append(Pairs(pairs, put_out, taken, dim))
    products.append(Product(tokens[-1], dim, len(spec.tasks)))
    return Work(tuple(products), tuple(attention))


def dcnv2_work(spec: InputSpec, config: Model, rows: Rows) -> Work:
    own, asked = config.dcnv2, float(supervised(spec, rows).sum())
    width = (num_fields(spec, config) + 2) * config.dim
    cross = _network(asked, width, own.rank, width) if own.rank else [Product(asked, width, width)]
    deep_out = own.hidden[-1] if own.hidden else width
    return Work(
        (
            *embedding(spec, config, rows),
            *cross * own.cross_layers,
            *_network(asked, width, *own.hidden),
            Product(asked, width + deep_out, len(spec.tasks)),
        )
    )


def din_work(spec: InputSpec, config: Model, rows: Rows) -> Work:
    """All of it is products: a network over pairs of event and target, one over targets."""
    own, dim, asked_R = config.din, config.dim, supervised(spec, rows)
    asked, first = float(asked_R.sum()), own.attention_hidden[0]
    events_R = _events(spec, rows)
    if spec.supervision == "candidates":
        pairs = float((asked_R * events_R).sum())
    else:
        pairs = float((events_R * (asked_R - 1) / 2).sum())
    width = (num_fields(spec, config) + 2) * dim
    return Work(
        (
            *embedding(spec, config, rows),
            Product(pairs, dim, first),
            Product(pairs, dim, first),
            Product(asked, dim, first),
            *_network(pairs, *own.attention_hidden, 1),
            *_network(asked, width, *own.hidden, len(spec.tasks)),
        )
    )


def onetrans_work(spec: InputSpec, config: Model, rows: Rows) -> Work:
    """S-tokens once a row; field tokens once an ask, of which a row has one, or in `history` supervision one for every
    supervised event."""
    dim, hidden, fields = config.dim, config.hidden_dim, num_fields(spec, config)
    asked_R, of_candidates = supervised(spec, rows), spec.supervision == "candidates"
    asked = float(asked_R.sum())
    asks = float(len(asked_R)) if of_candidates else asked
    merged = merges_actions(spec, config)
    per_event = {h.name: 2 if h.action and not merged else 1 for h in spec.histories}
    taken_R = sum((n * rows.histories[name] for name, n in per_event.items()), np.zeros(len(asked_R)))
    longest = sum(history.max_length * per_event[history.name] for history in spec.histories)
    products, attention = embedding(spec, config, rows), []
    for newest in kept_tokens(spec, config, longest):
        put_out_R = taken_R if newest is None else np.minimum(taken_R, newest)
        taken, put_out = float(taken_R.sum()), float(put_out_R.sum())
        products += [Product(taken, dim, 2 * dim), *_network(put_out, dim, hidden, dim)]
        products += [Product(put_out, dim, dim), Product(put_out, dim, dim)]
        products += [Product(asks * fields, dim, dim), Product(asked, dim, dim)]
        for width_in, width_out in ((dim, 3 * dim), (dim, hidden), (hidden, dim)):
            products += [Product(asks, width_in, width_out, times=fields), Product(asked, width_in, width_out)]
        shared = float(((taken_R * (taken_R + 1) - (taken_R - put_out_R) * (taken_R - put_out_R + 1)) / 2).sum())
        attention.append(Pairs(shared, put_out, taken, dim))
        own_to_shared, own = _own_pairs(fields, taken_R, asked_R, of_candidates)
        attention.append(Pairs(own_to_shared, asks * fields + asked, taken, dim))
        attention.append(Pairs(own, asks * fields + asked, asks * fields + asked, dim))
        taken_R = put_out_R
    products.append(Product(asked, dim, len(spec.tasks)))
    return Work(tuple(products), tuple(attention))


def _own_pairs(fields: int, taken_R: Counts, asked_R: Counts, of_candidates: bool) -> tuple[float, float]:
    """Visible pairs of NS-tokens with S-tokens, and with those of their own ask."""
    if of_candidates:
        to_shared = ((fields + asked_R) * taken_R).sum()
        own = len(asked_R) * fields * (fields + 1) / 2 + asked_R.sum() * (fields + 1)
    else:  # the t-th of n supervised events stands behind t / n of the S-tokens
        to_shared = ((fields + 1) * taken_R * (asked_R - 1) / 2).sum()
        own = asked_R.sum() * (fields + 1) * (fields + 2) / 2
    return float(to_shared), float(own)


def hyformer_work(spec: InputSpec, config: Model, rows: Rows) -> Work:
    dim, hidden, own = config.dim, config.hidden_dim, config.hyformer
    asked_R, requests = supervised(spec, rows), float(len(rows.candidates))
    asked, fields, tokens = float(asked_R.sum()), num_fields(spec, config), boosted_tokens(spec, config)
    products, attention = embedding(spec, config, rows), []
    queries_R = asked_R * own.queries
    queries = float(queries_R.sum())
    for history in spec.histories:
        events_R = rows.histories[history.name]
        carried_R = np.minimum(events_R, own.recent) if own.encoder == "recent" else events_R
        events, carried = float(events_R.sum()), float(carried_R.sum())
        products += [
            Product(requests, (fields + 1) * dim, own.queries * dim),
            Product(asked, dim, own.queries * dim),
            Product(asked, dim, dim, times=own.queries),
        ]
        layer = [Product(carried, dim, 2 * hidden), Product(carried, hidden, dim)]
        if own.encoder != "swiglu":
            layer += [Product(events, dim, 2 * dim), Product(carried, dim, dim), Product(carried, dim, dim)]
            attention += [Pairs(float((carried_R * events_R).sum()), carried, events, dim)] * config.num_layers
        layer += [Product(queries, dim, dim), Product(queries, dim, dim), Product(carried, dim, 2 * dim)]
        attention += [Pairs(float((queries_R * carried_R).sum()), queries, carried, dim)] * config.num_layers
        products += layer * config.num_layers
    mixed = tokens * -(-dim // tokens)
    boosting = [Product(asked, mixed, hidden, times=tokens), Product(asked, hidden, dim, times=tokens)]
    products += boosting * config.num_layers
    products.append(Product(asked, dim, len(spec.tasks)))
    return Work(tuple(products), tuple(attention))


def _network(rows: float, *widths: int) -> list[Product]:
    return [Product(rows, a, b) for a, b in pairwise(widths)]


def _events(spec: InputSpec, rows: Rows) -> Counts:
    return sum((rows.histories[history.name] for history in spec.histories), np.zeros(len(rows.candidates)))


KINDS: dict[str, Counter] = {
    "tokenformer": stream_work,
    "transformer": stream_work,
    "hstu": hstu_work,
    "dcnv2": dcnv2_work,
    "din": din_work,
    "onetrans": onetrans_work,
    "hyformer": hyformer_work,
}
