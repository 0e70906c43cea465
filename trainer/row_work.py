"""What a row of one candidate costs OneTrans and HyFormer: multiplications of the forward pass as they are carried out.

Their work is no polynomial of a row's length: a pyramid or a recent part takes at most so many. `fitted` is the
polynomial nearest to it over the lengths a row can have: with at most 1,000 events 6 to 8 % off on average, a third to
a half for the shortest rows. Rows are taken to fill their histories alike.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.polynomial import Polynomial

from model.config import Model
from model.hyformer import boosted_tokens
from model.inputs import InputSpec
from model.onetrans_places import kept_tokens
from model.tokens import group_fields
from model.tower import merges_actions

_LENGTHS_TRIED = 33


def fitted(work: Callable[[InputSpec, Model, float], float], spec: InputSpec, config: Model) -> list[float]:
    """[fixed, linear, quadratic] of least relative squares."""
    lengths = np.linspace(0, max(1, sum(history.max_length for history in spec.histories)), _LENGTHS_TRIED)
    costs = np.array([work(spec, config, float(length)) for length in lengths])
    found: list[float] = Polynomial.fit(lengths, costs, 2, w=1 / costs).convert().coef.tolist()
    return [*found, 0.0, 0.0][:3]


def onetrans_work(spec: InputSpec, config: Model, length: float) -> float:
    """Of `length` events. With `history` supervision those of the supervised one ask, with NS-tokens of their own."""
    dim, hidden = config.dim, config.hidden_dim
    own = len(_fields(spec, config)) + 1
    asking = sum(history.max_length for history in spec.histories if history.name == spec.supervised_history)
    asks = length * asking / _longest(spec) if spec.supervision == "history" else 1.0
    shared = length * _tokens_of_an_event(spec, config)
    kept = kept_tokens(spec, config, round(_longest(spec) * _tokens_of_an_event(spec, config)))
    sizes = [shared]
    for newest in kept:
        sizes.append(sizes[-1] if newest is None else min(sizes[-1], newest))
    total = _embedding(spec, config, length)
    for taken, put_out in pairwise(sizes):
        total += taken * 2 * dim**2 + put_out * (2 * dim**2 + 2 * dim * hidden) + put_out * taken * 2 * dim
        total += asks * own * (4 * dim**2 + 2 * dim * hidden + (taken + own) * 2 * dim)
    return total


def hyformer_work(spec: InputSpec, config: Model, length: float) -> float:
    dim, hidden, queries = config.dim, config.hidden_dim, config.hyformer.queries
    fields, tokens = len(_fields(spec, config)), boosted_tokens(spec, config)
    total = _embedding(spec, config, length)
    boosting = tokens * hidden * (tokens * -(-dim // tokens) + dim)
    total += config.num_layers * boosting + len(spec.histories) * (fields + 3) * queries * dim**2
    for history in spec.histories:
        events = length * history.max_length / _longest(spec)
        recent = min(events, config.hyformer.recent)
        carried = recent if config.hyformer.encoder == "recent" else events
        encoding = carried * 3 * dim * hidden
        if config.hyformer.encoder != "swiglu":
            encoding += (carried + events) * 2 * dim**2 + carried * events * 2 * dim
        decoding = (carried + queries) * 2 * dim**2 + carried * queries * 2 * dim
        total += config.num_layers * (encoding + decoding)
    return total


WORK = {"onetrans": onetrans_work, "hyformer": hyformer_work}


def _longest(spec: InputSpec) -> int:
    return max(1, sum(history.max_length for history in spec.histories))


def _fields(spec: InputSpec, config: Model) -> list[tuple[str, ...]]:
    return group_fields([field.name for field in spec.static], config.tokens)


def _tokens_of_an_event(spec: InputSpec, config: Model) -> float:
    """On average: those of histories with actions may have an action token."""
    if merges_actions(spec, config):
        return 1.0
    acting = sum(history.max_length for history in spec.histories if history.action)
    return 1 + acting / _longest(spec)


def _embedding(spec: InputSpec, config: Model, length: float) -> float:
    gaps = (2 if spec.supervision == "candidates" else 1) if config.time_gaps else 0
    of_event = sum(field.width for field in spec.event) + gaps
    acting = sum(history.max_length for history in spec.histories if history.action) / _longest(spec)
    of_actions = acting * sum(field.width for field in spec.action)
    asked = of_event if spec.supervision == "candidates" else 0
    return config.dim * (length * (of_event + of_actions) + asked + sum(field.width for field in spec.static))
