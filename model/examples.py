"""What the rankers read that score one position at a time (DCN-V2, DIN): per supervised position a target, and which
events of its row lie behind it. The vectors are TokenFormer's own (model/tokens.py): one a field group, one an event.

`candidates` supervision: the targets are the candidates, each with its row's whole history; actions that are known at
the request are part of their event's vector. `history` supervision: each event of the supervised history is a target,
without its action, and what lies behind it are the events before it on its row's merged timeline; actions are handed
over beside the events, because which of them are known differs from position to position.

Shape suffixes: R request rows · E events as in timeline.py · M the same events merged, row after row and oldest first ·
S supervised positions · F field tokens · D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.config import Model
from model.inputs import InputSpec, RankerInput
from model.timeline import Timeline, chosen, exclusive_cumsum, merge, rows_of
from model.tokens import RequestTokens


@dataclass(frozen=True)
class Examples:
    """Floats:
    field_RX:       all field tokens of a row, end to end: X = F · D.
    target_SD:      of the supervised positions.
    event_MD:       of the events.
    action_MD:      what an event's action adds once it is known, zeros where it has none; None where nothing is left
                    to add.

    int64:
    counts_R:       events of a row.
    row_M, clock_M, action_clock_M: of the events.
    row_S, clock_S: of the supervised positions.
    first_S, behind_S: events first … first + behind − 1 of M lie behind a position. In `history` supervision the
                    next one is the position's own.
    """

    field_RX: torch.Tensor
    target_SD: torch.Tensor
    event_MD: torch.Tensor
    action_MD: torch.Tensor | None
    counts_R: torch.Tensor
    row_M: torch.Tensor
    clock_M: torch.Tensor
    action_clock_M: torch.Tensor
    row_S: torch.Tensor
    clock_S: torch.Tensor
    first_S: torch.Tensor
    behind_S: torch.Tensor


class ExampleTokens(RequestTokens):
    """RankerInput → Examples."""

    def __init__(self, spec: InputSpec, config: Model) -> None:
        of_candidates = spec.supervision == "candidates"
        super().__init__(spec, config.tokens, config.dim, time_gaps=config.time_gaps, merge_actions=of_candidates)
        self.of_candidates = of_candidates

    @property
    def field_width(self) -> int:
        """X."""
        return len(self.fields.groups) * self.fields.dim

    def forward(self, batch: RankerInput) -> Examples:
        with torch.no_grad():
            histories = [batch.histories[history.name] for history in self.events.histories]
            timeline = merge(histories, [False] * len(histories), batch)
            starts_R = exclusive_cumsum(timeline.counts_R)
            order_M = _order(timeline, starts_R) if len(histories) > 1 else None
        states, actions = self.events.events(batch, timeline)
        event_ED = _joined(states, self.events.projection.weight)
        action_ED = self._actions(states, actions)
        if self.of_candidates:
            target_SD = self.events.candidates(batch, timeline)
            row_S = rows_of(batch.candidate_lengths_R, target_SD.shape[0])
            behind_S, clock_S = timeline.counts_R.index_select(0, row_S), batch.clock_R.index_select(0, row_S)
        else:
            target_SD = states[0]
            part = slice(0, target_SD.shape[0])
            row_S, behind_S, clock_S = timeline.row_E[part], timeline.rank_E[part], timeline.clock_E[part]
        return Examples(
            field_RX=self.fields(batch, event_ED.dtype).flatten(1),
            target_SD=target_SD,
            event_MD=chosen(event_ED, order_M),
            action_MD=None if action_ED is None else chosen(action_ED, order_M),
            counts_R=timeline.counts_R,
            row_M=chosen(timeline.row_E, order_M),
            clock_M=chosen(timeline.clock_E, order_M),
            action_clock_M=chosen(timeline.action_clock_E, order_M),
            row_S=row_S,
            clock_S=clock_S,
            first_S=starts_R.index_select(0, row_S),
            behind_S=behind_S,
        )

    def _actions(self, states: list[torch.Tensor], actions: list[torch.Tensor]) -> torch.Tensor | None:
        """[E, D], None where no action token was made."""
        if not actions:
            return None
        given = iter(actions)
        has_action = self.events.with_action_token
        return torch.cat(
            [next(given) if has else torch.zeros_like(s) for s, has in zip(states, has_action, strict=True)]
        )


def _order(timeline: Timeline, starts_R: torch.Tensor) -> torch.Tensor:
    """[M] index into E."""
    place_E = starts_R.index_select(0, timeline.row_E) + timeline.rank_E
    return torch.empty_like(place_E).scatter_(0, place_E, torch.arange(place_E.shape[0], device=place_E.device))


def _joined(parts: list[torch.Tensor], weight_DW: torch.Tensor) -> torch.Tensor:
    return torch.cat(parts) if parts else weight_DW.new_empty(0, weight_DW.shape[0])


def as_logits(logits_SK: torch.Tensor) -> torch.Tensor:
    """float32, or float64 for a float64 module."""
    return logits_SK if logits_SK.dtype == torch.float64 else logits_SK.float()
