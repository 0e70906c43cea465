"""What a row costs the ranker, by its length: rows are dealt to ranks so that all carry alike (`pipelines.carry.deal`).

Multiplications of the forward pass as it is carried out, as a polynomial of L, the events and candidates of a row: the
backward pass is twice that for every row. What does not grow with a row's length, embeddings and heads, is left to the
constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from numpy.polynomial import Polynomial

from model.attention import QUERIES_PER_CHUNK
from model.config import Model
from model.inputs import InputSpec
from model.tokens import group_fields
from model.tower import merges_actions
from pipelines.reading import RowCost
from trainer.row_work import WORK, fitted


def row_cost(spec: InputSpec, config: Model) -> RowCost:
    """The cost of a row of L list positions: fixed + linear · L + quadratic · L². A candidate is counted like an event,
    and a kind that is not listed here like TokenFormer."""
    if config.kind in WORK:
        return RowCost(*fitted(WORK[config.kind], spec, config))
    gaps = (2 if spec.supervision == "candidates" else 1) if config.time_gaps else 0
    widths = sum(field.width for field in (*spec.event, *spec.action)) + gaps
    total = Polynomial([0.0, config.dim * widths]) + _TOWERS.get(config.kind, _blocks)(spec, config)
    fixed, linear, quadratic = [*total.coef.tolist(), 0.0, 0.0][:3]
    return RowCost(fixed, linear, quadratic)


def _blocks(spec: InputSpec, config: Model) -> Polynomial:
    """Each layer projects keys and values of the tokens it takes in; queries, attention over all it takes in, gate and
    FFN are of those it puts out. With `candidates` supervision the layers on top need a cone of a few tokens only
    (model/cone.py): its width does not grow with the row."""
    dim = config.dim
    needed = _needed(spec, config, config.layer_windows)
    of_put_out = (3 if config.gated else 2) * dim**2 + 3 * dim * config.hidden_dim
    total = Polynomial([0.0])
    for window, taken, put_out in zip(config.layer_windows, needed, needed[1:], strict=False):
        total += taken * (2 * dim**2) + put_out * of_put_out + _pairs(window, taken, put_out) * (2 * dim)
    return total


def _pairs(window: int | None, taken: Polynomial, put_out: Polynomial) -> Polynomial:
    """Of queries and keys that a layer multiplies (model/attention.py). All of a long row put out by a full layer:
    each chunk meets the keys before its end, half of all and half a chunk more. By a sliding layer: each block meets
    itself and the one before, blocks being multiples of 16 and as wide as the window reaches. Else all with all."""
    grows = put_out.degree() > 0 and put_out.coef[1] > 0
    if not grows:
        return put_out * taken
    if window is None:
        return put_out * (taken + QUERIES_PER_CHUNK) * 0.5
    return put_out * (2.0 * 16 * -(-max(1, window - 1) // 16))


def _units(spec: InputSpec, config: Model) -> Polynomial:
    """HSTU: values and keys of what is taken in; gate, query and f2 of what is put out."""
    needed, dim = _needed(spec, config, (None,) * config.num_layers), config.dim
    return _layers(needed, of_taken=2 * dim**2, of_put_out=3 * dim**2, of_pair=2 * dim)


def _crosses(spec: InputSpec, config: Model) -> Polynomial:
    """DCN-V2: all of it is of positions."""
    own, width = config.dcnv2, (_num_fields(spec, config) + 2) * config.dim
    deep = _mlp(width, *own.hidden)
    return _positions(spec) * (own.cross_layers * width * (2 * own.rank or width) + deep)


def _target_attention(spec: InputSpec, config: Model) -> Polynomial:
    """DIN: a network over pairs of event and position, one over positions."""
    own, dim = config.din, config.dim
    first = own.attention_hidden[0]
    of_pair = 2 * dim * first + _mlp(*own.attention_hidden, 1)
    of_position = dim * first + _mlp((_num_fields(spec, config) + 2) * dim, *own.hidden)
    pairs = Polynomial([0.0, 1.0]) if spec.supervision == "candidates" else Polynomial([0.0, -0.5, 0.5])
    return pairs * of_pair + _positions(spec) * of_position


_TOWERS: dict[str, Callable[[InputSpec, Model], Polynomial]] = {
    "hstu": _units,
    "dcnv2": _crosses,
    "din": _target_attention,
}


def _layers(needed: list[Polynomial], *, of_taken: int, of_put_out: int, of_pair: int) -> Polynomial:
    """Of all layers: multiplications a token taken in, a token put out, and a pair of both."""
    total = Polynomial([0.0])
    for taken, put_out in pairwise(needed):
        total += taken * of_taken + put_out * of_put_out + put_out * taken * of_pair
    return total


def _mlp(*widths: int) -> int:
    return sum(a * b for a, b in pairwise(widths))


def _num_fields(spec: InputSpec, config: Model) -> int:
    return len(group_fields([field.name for field in spec.static], config.tokens))


def _positions(spec: InputSpec) -> Polynomial:
    """Supervised ones."""
    return Polynomial([1.0]) if spec.supervision == "candidates" else Polynomial([0.0, 1.0])


def _needed(spec: InputSpec, config: Model, windows: Sequence[int | None]) -> list[Polynomial]:
    """Tokens of the stream that each layer takes in, bottom up, and that the top one puts out."""
    candidates = spec.supervision == "candidates"
    acts = any(history.action for history in spec.histories) and not merges_actions(spec, config)
    events = Polynomial([0, 2 if acts else 1])
    every = events + (_num_fields(spec, config) + (2 if candidates else 1))
    needed = [_positions(spec)]
    for window in reversed(windows):
        sliding = needed[-1] + ((window or 1) - 1) if candidates else events
        needed.append(every if window is None else sliding)
    return needed[::-1]
