"""Attention between two packed sets of tokens of the same rows: queries of one kind look at keys of another.

Both sets lie row after row, in one order of rows. Layouts are made from integers alone and run by attention.attend.

Shape suffixes: Q queries · A keys · q, t places per row of a stretch for queries and keys.
"""

from __future__ import annotations

import torch

from model.attention import Layout, Padding, Stretch, paddings
from model.mask import PADDING_SIGHT, visible


def seen_in(queries: Padding, keys: Padding, sight_Q5: torch.Tensor, sight_A5: torch.Tensor) -> torch.Tensor:
    """bool [b, q, t]: by the rule of mask.py."""
    return visible(queries.pad(sight_Q5, PADDING_SIGHT), keys.pad(sight_A5, PADDING_SIGHT))


def layout_between(
    row_Q: torch.Tensor, row_A: torch.Tensor, num_rows: int, sight_Q5: torch.Tensor, sight_A5: torch.Tensor
) -> Layout:
    """Sights as in mask.py. A query that sees no key reads zeros where its row has none."""
    stretches = []
    for queries, keys in zip(paddings(row_Q, num_rows), paddings(row_A, num_rows), strict=True):
        seen_bqt = seen_in(queries, keys, sight_Q5, sight_A5)
        # The values of places without a token are zero, so is then what is read; no softmax is empty.
        seen_bqt = seen_bqt | ~seen_bqt.any(dim=2, keepdim=True)
        stretches.append(Stretch(queries, keys, seen_bqt.unsqueeze(1)))
    return Layout(None, tuple(stretches))


def layout_over_rows(row_Q: torch.Tensor, row_A: torch.Tensor, num_rows: int) -> Layout:
    """Every query sees all keys of its row; where there is none, it reads zeros."""
    sight_5 = row_Q.new_tensor([0, 0, 0, 1, 0])  # order, first, last, clock, known
    return layout_between(row_Q, row_A, num_rows, sight_5.expand(row_Q.shape[0], 5), sight_5.expand(row_A.shape[0], 5))
