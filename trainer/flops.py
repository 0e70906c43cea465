"""Floating-point operations that a ranker's forward pass does for some rows: what MFU is made of.

Counted from lengths alone, on the host: nothing is added to a step. What is counted are the matrix products of packed
tokens, each layer's by the tokens that it takes in and puts out (model/cone.py), and attention over *visible* pairs:
those that causality, window and isolation let see each other. Places of padding count nothing, whatever the attention
makes of them; action tokens that a query's clock hides are counted, they are work done and masked. Norms, gates,
softmax and rotations are left out, as is usual. Backward is twice that; products worked out anew in it count
nothing, nor does what a switched-off saving (`[model.savings]`) makes a step do besides.

Rows are independent of each other, so counts add up over batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.config import Model
from model.inputs import InputSpec
from model.tokens import group_fields

Counts = npt.NDArray[np.float64]  # [R]
FORWARD_AND_BACKWARD = 3


@dataclass(frozen=True)
class Rows:
    """histories: events of each row by history [R]; candidates [R] (zeros in `history` supervision)."""

    histories: dict[str, Counts]
    candidates: Counts


@dataclass(frozen=True)
class Product:
    """[rows, inner] × [inner, columns], so often."""

    rows: float
    inner: int
    columns: int
    times: int = 1

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.inner * self.columns * self.times


@dataclass(frozen=True)
class Pairs:
    """Attention of one layer: `pairs` of query and key, two products of `width` columns (all heads) over them; queries
    and keys: how many there are."""

    pairs: float
    queries: float
    keys: float
    width: int

    @property
    def flops(self) -> float:
        return 4.0 * self.pairs * self.width


@dataclass(frozen=True)
class Work:
    products: tuple[Product, ...]
    attention: tuple[Pairs, ...] = ()

    @property
    def flops(self) -> float:
        return sum(part.flops for part in self.products) + sum(part.flops for part in self.attention)


def ranker_work(spec: InputSpec, config: Model, rows: Rows) -> Work:
    """Of one forward pass over these rows; nothing for a kind that has no counter."""
    from trainer.flops_kinds import KINDS  # noqa: PLC0415 - they are written in the words of this file

    counter = KINDS.get(config.kind)
    return counter(spec, config, rows) if counter else Work(())


Counter = Callable[[InputSpec, Model, Rows], Work]


def num_fields(spec: InputSpec, config: Model) -> int:
    """M."""
    return len(group_fields([field.name for field in spec.static], config.tokens))


def embedding(spec: InputSpec, config: Model, rows: Rows, field_copies: float | None = None) -> list[Product]:
    """Products that make tokens of looked-up fields (model/tokens.py). field_copies: rows that field tokens are made
    for."""
    widths = {field.name: field.width for field in spec.static}
    groups = group_fields(list(widths), config.tokens)
    made_for = float(len(rows.candidates)) if field_copies is None else field_copies
    products = [Product(made_for, sum(widths[name] for name in group), config.dim) for group in groups]
    gaps = (2 if spec.supervision == "candidates" else 1) if config.time_gaps else 0
    of_event = sum(field.width for field in spec.event) + gaps
    of_action = sum(field.width for field in spec.action)
    for history in spec.histories:
        events = float(rows.histories[history.name].sum())
        products.append(Product(events, of_event, config.dim))
        if history.action:
            products.append(Product(events, of_action, config.dim))
    if spec.supervision == "candidates":
        products.append(Product(float(rows.candidates.sum()), of_event, config.dim))
    return products


def supervised(spec: InputSpec, rows: Rows) -> Counts:
    """[R] positions that get logits."""
    return rows.candidates if spec.supervision == "candidates" else rows.histories[spec.supervised_history]
