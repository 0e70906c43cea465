"""Rows of a ranker's input taken by number: some of them, or some several times.

Shape suffixes: R rows given · X rows taken · C candidates of the rows taken · E events of one history.
"""

from __future__ import annotations

import torch

from model.inputs import HistoryInput, RankerInput
from model.timeline import exclusive_cumsum, rows_of


def rows_at(
    batch: RankerInput, row_X: torch.Tensor, candidates: dict[str, torch.Tensor], candidate_lengths_X: torch.Tensor
) -> RankerInput:
    """Rows `row_X` (index into R) with their fields and histories, and with these candidates."""
    return RankerInput(
        {name: value.index_select(0, row_X) for name, value in batch.static.items()},
        {name: _history_at(history, row_X) for name, history in batch.histories.items()},
        candidates,
        candidate_lengths_X,
        batch.time_R.index_select(0, row_X),
        batch.clock_R.index_select(0, row_X),
        blocks={names: value.index_select(0, row_X) for names, value in batch.blocks.items()},
    )


def _history_at(history: HistoryInput, row_X: torch.Tensor) -> HistoryInput:
    lengths_X = history.lengths_R.index_select(0, row_X)
    total = int(lengths_X.sum())
    taken_E = rows_of(lengths_X, total)
    first_X = exclusive_cumsum(history.lengths_R).index_select(0, row_X) - exclusive_cumsum(lengths_X)
    index_E = torch.arange(total, device=row_X.device) + first_X.index_select(0, taken_E)
    return HistoryInput(
        lengths_X,
        {name: value.index_select(0, index_E) for name, value in history.event.items()},
        {name: value.index_select(0, index_E) for name, value in history.action.items()},
        history.time_E.index_select(0, index_E),
        history.clock_E.index_select(0, index_E),
        history.action_clock_E.index_select(0, index_E),
    )
