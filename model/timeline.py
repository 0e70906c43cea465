"""All histories of a row on one line of time: which event comes when, without a Python loop over rows.

Shape suffixes: R request rows · E events of all histories, history after history, each row after row · M the same
events merged, row after row and oldest first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.inputs import HistoryInput, HistorySpec, InputSpec, RankerInput

MICROSECONDS_PER_DAY = 86_400e6


@dataclass(frozen=True)
class Timeline:
    """Everything int64, in E order except where the suffix says otherwise.

    row_E: row of each event. rank_E: its place among its row's events, from 0, oldest first. tokens_before_E: stream
    tokens of its row's earlier events. has_action_E: bool, an action token follows its state token. clock_E,
    action_clock_E, time_E: as in HistoryInput.
    gap_E: microseconds since the row's previous event, 0 for the first. counts_R: events of a row. tokens_R: their
    stream tokens.
    newest_gap_R: microseconds from the newest event to the request, 0 where there is none.
    """

    row_E: torch.Tensor
    rank_E: torch.Tensor
    tokens_before_E: torch.Tensor
    has_action_E: torch.Tensor
    clock_E: torch.Tensor
    action_clock_E: torch.Tensor
    time_E: torch.Tensor
    gap_E: torch.Tensor
    counts_R: torch.Tensor
    tokens_R: torch.Tensor
    newest_gap_R: torch.Tensor


def ordered_histories(spec: InputSpec) -> tuple[HistorySpec, ...]:
    """The order in which histories stand where times are equal: the spec's, but the supervised one first, so that an
    event of another history that is caused by a supervised event of the same instant (its click, say) never stands
    before it."""
    return tuple(sorted(spec.histories, key=lambda history: history.name != spec.supervised_history))


def exclusive_cumsum(counts: torch.Tensor) -> torch.Tensor:
    return counts.cumsum(0) - counts


def counts_of(index: torch.Tensor, total: int) -> torch.Tensor:
    """int64 [total]: how often each of 0 … total − 1 stands in `index`. Unlike bincount it does not wait for the
    device."""
    return torch.zeros(total, dtype=torch.int64, device=index.device).scatter_add_(0, index, torch.ones_like(index))


def chosen(values: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """values[index] along the first axis; None for all."""
    return values if index is None else values.index_select(0, index)


def rows_of(lengths_R: torch.Tensor, total: int) -> torch.Tensor:
    """Row of each element of a packed tensor. `total` spares a wait for the device."""
    rows_R = torch.arange(lengths_R.shape[0], device=lengths_R.device)
    return torch.repeat_interleave(rows_R, lengths_R, output_size=total)


def _inverse(order: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))


def _merge_order(row_E: torch.Tensor, time_E: torch.Tensor, clock_E: torch.Tensor) -> torch.Tensor:
    """[M] index into E: stable by row, then time, then clock. The clock decides only where a schema orders events of
    one time."""
    order = torch.arange(row_E.shape[0], device=row_E.device)
    for key_E in (clock_E, time_E, row_E):
        order = order.index_select(0, key_E.index_select(0, order).argsort(stable=True))
    return order


def _joined(parts: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    return torch.cat(parts) if parts else like.new_empty(0)


def merge(histories: list[HistoryInput], with_action_token: list[bool], batch: RankerInput) -> Timeline:
    """Merges histories by time. `with_action_token`: per history, whether an action token follows each of its state
    tokens."""
    clock_R = batch.clock_R
    row_E = _joined([rows_of(history.lengths_R, history.time_E.shape[0]) for history in histories], clock_R)
    time_E = _joined([history.time_E for history in histories], clock_R)
    clock_E = _joined([history.clock_E for history in histories], clock_R)
    flags = [
        torch.full_like(history.time_E, wanted, dtype=torch.bool)
        for history, wanted in zip(histories, with_action_token, strict=True)
    ]
    has_action_E = _joined(flags, clock_R.bool())
    counts_R = torch.zeros_like(clock_R)
    for history in histories:
        counts_R = counts_R + history.lengths_R

    order_M = (
        _merge_order(row_E, time_E, clock_E)
        if len(histories) > 1
        else torch.arange(row_E.shape[0], device=row_E.device)
    )
    place_E = _inverse(order_M)
    rank_E = place_E - exclusive_cumsum(counts_R).index_select(0, row_E)
    before_M = exclusive_cumsum(1 + has_action_E.index_select(0, order_M).long())
    before_E = before_M.index_select(0, place_E)
    tokens_R = torch.zeros_like(counts_R).scatter_add_(0, row_E, 1 + has_action_E.long())

    time_M = time_E.index_select(0, order_M)
    gap_E = torch.cat([time_M[:1], time_M[1:] - time_M[:-1]]).index_select(0, place_E).where(rank_E > 0, 0)
    newest_R = torch.full_like(batch.time_R, torch.iinfo(torch.int64).min).scatter_reduce_(0, row_E, time_E, "amax")
    return Timeline(
        row_E=row_E,
        rank_E=rank_E,
        tokens_before_E=before_E - exclusive_cumsum(tokens_R).index_select(0, row_E),
        has_action_E=has_action_E,
        clock_E=clock_E,
        action_clock_E=_joined([history.action_clock_E for history in histories], clock_R),
        time_E=time_E,
        gap_E=gap_E,
        counts_R=counts_R,
        tokens_R=tokens_R,
        newest_gap_R=(batch.time_R - newest_R).where(counts_R > 0, 0),
    )


def log_days(gap: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """log(1 + seconds) of a gap in microseconds, as a share of a day's: 0 at once, 1 after a day. Negative gaps count
    as 0."""
    day = torch.log1p(torch.tensor(MICROSECONDS_PER_DAY / 1e6, dtype=torch.float64)).item()
    return (gap.clamp(min=0).to(dtype) / 1e6).log1p() / day
