"""What a row costs the tower, by its length: rows are dealt to ranks so that all carry alike (`pipelines.carry.deal`).

Multiplications of the forward pass as it is carried out, as a polynomial of L, the events and candidates of a row: the
backward pass is twice that for every row. What does not grow with a row's length, embeddings and heads, is left to the
constant.
"""

from __future__ import annotations

from itertools import pairwise

from numpy.polynomial import Polynomial

from model.config import Model
from model.inputs import InputSpec
from model.tokens import group_fields
from model.tower import merges_actions
from pipelines.reading import RowCost


def row_cost(spec: InputSpec, config: Model) -> RowCost:
    """The cost of a row of L list positions: fixed + linear · L + quadratic · L².

    Each layer projects keys and values of the tokens it takes in; queries, attention over all it takes in, gate and FFN
    are of those it puts out. With `candidates` supervision the layers on top need a cone of a few tokens only
    (model/cone.py): its width does not grow with the row. A candidate is counted like an event.
    """
    dim, fields = config.dim, len(group_fields([field.name for field in spec.static], config.tokens))
    acts = any(history.action for history in spec.histories) and not merges_actions(spec, config)
    events = Polynomial([0, 2 if acts else 1])
    every = events + (fields + (2 if spec.supervision == "candidates" else 1))
    needed = _needed(every, events, spec, config)
    gaps = (2 if spec.supervision == "candidates" else 1) if config.time_gaps else 0
    total = Polynomial([0.0, dim * (sum(field.width for field in (*spec.event, *spec.action)) + gaps)])
    for taken, put_out in pairwise(needed):
        weights = (3 if config.gated else 2) * dim**2 + 3 * dim * config.hidden_dim
        total += taken * (2 * dim**2) + put_out * weights + put_out * taken * (2 * dim)
    fixed, linear, quadratic = [*total.coef.tolist(), 0.0, 0.0][:3]
    return RowCost(fixed, linear, quadratic)


def _needed(every: Polynomial, events: Polynomial, spec: InputSpec, config: Model) -> list[Polynomial]:
    """Tokens that each layer takes in, bottom up, and that the top one puts out."""
    candidates = spec.supervision == "candidates"
    needed = [Polynomial([1.0]) if candidates else Polynomial([0.0, 1.0])]
    for window in reversed(config.layer_windows):
        sliding = needed[-1] + ((window or 1) - 1) if candidates else events
        needed.append(every if window is None else sliding)
    return needed[::-1]
