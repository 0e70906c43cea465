"""The rows of tower.py: looked-up fields as tensors that want gradients, packed for ours and padded for plain ones.

Sizes: R request rows · E events · C candidates · B = C padded rows · T the batch's longest history · M fields · W
embedding width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from model.config import Model
from model.inputs import FieldSpec, HistoryInput, HistorySpec, InputSpec, RankerInput

EVENT_FIELDS = 3
SECOND = 1_000_000
Supervision = Literal["candidates", "history"]


@dataclass(frozen=True)
class Shape:
    """Histories: 0 … `longest` events, all lengths alike, so half of it on average; every event with one action."""

    rows: int
    longest: int = 200
    fields: int = 20
    width: int = 32
    dim: int = 128
    heads: int = 4
    layers: int = 4
    full_layers: int = 2
    windows: tuple[int, ...] = (32, 16)

    def facts(self) -> dict[str, Any]:
        """For printing."""
        return {**asdict(self), "event fields": EVENT_FIELDS, "actions": 1, "tasks": 1}

    def model(self, **changes: Any) -> Model:
        """`[model]` of ours."""
        given = {
            "dim": self.dim,
            "num_layers": self.layers,
            "num_heads": self.heads,
            "full_layers": self.full_layers,
            "windows": self.windows,
        }
        return Model(**given | changes)


def spec_of(shape: Shape, supervision: Supervision, *, actions: bool = True) -> InputSpec:
    """One history, one task."""
    event = tuple(FieldSpec(f"event_{i}", shape.width) for i in range(EVENT_FIELDS))
    names = tuple(field.name for field in event)
    return InputSpec(
        static=tuple(FieldSpec(f"field_{i}", shape.width) for i in range(shape.fields)),
        event=event,
        action=(FieldSpec("action", shape.width),) if actions else (),
        histories=(HistorySpec("events", names, ("action",) if actions else (), shape.longest),),
        candidate=names if supervision == "candidates" else (),
        tasks=("click",),
        supervision=supervision,
        supervised_history="events" if supervision == "history" else "",
    )


def uniform_lengths(shape: Shape, seed: int = 5) -> list[int]:
    """Every share of 0 … longest alike, the ends among them: two draws differ in order only."""
    lengths = np.linspace(0, shape.longest, shape.rows).round().astype(int)
    return [int(length) for length in np.random.default_rng(seed).permutation(lengths)]


def draw(spec: InputSpec, lengths: list[int], candidates: int, dtype: torch.dtype = torch.float32) -> RankerInput:
    """Rows of these history lengths with so many candidates each (0 in `history` supervision). Float tensors are leaves
    that want gradients; every action is known a second later."""
    generator = torch.Generator().manual_seed(3)
    widths = {field.name: field.width for field in (*spec.static, *spec.event, *spec.action)}
    rows, events = len(lengths), sum(lengths)

    def leaves(names: tuple[str, ...], count: int) -> dict[str, torch.Tensor]:
        return {
            name: torch.randn(count, widths[name], generator=generator).to(dtype).requires_grad_() for name in names
        }

    time_E = torch.cat([torch.arange(length) for length in lengths]) * 60 * SECOND
    request_R = torch.full((rows,), 10_000 * 60 * SECOND)
    (history,) = spec.histories
    return RankerInput(
        static=leaves(tuple(field.name for field in spec.static), rows),
        histories={
            history.name: HistoryInput(
                lengths_R=torch.tensor(lengths),
                event=leaves(history.event, events),
                action=leaves(history.action, events),
                time_E=time_E,
                clock_E=time_E.clone(),
                action_clock_E=time_E + SECOND,
            )
        },
        candidates=leaves(spec.candidate, rows * candidates),
        candidate_lengths_R=torch.full((rows,), candidates),
        time_R=request_R,
        clock_R=request_R.clone(),
    )


def leaves_of(batch: RankerInput) -> list[torch.Tensor]:
    """All float tensors."""
    parts = [batch.static, *(part for h in batch.histories.values() for part in (h.event, h.action)), batch.candidates]
    return [tensor for part in parts for tensor in part.values()]


@dataclass(frozen=True)
class Padded:
    """The same rows, one a candidate: fields_BMW, event_BTW and candidate_BW (event fields end to end), action_BTW, and
    padding_BT bool. Floats are leaves."""

    fields_BMW: torch.Tensor
    event_BTW: torch.Tensor
    action_BTW: torch.Tensor
    candidate_BW: torch.Tensor
    padding_BT: torch.Tensor

    def leaves(self) -> list[torch.Tensor]:
        return [self.fields_BMW, self.event_BTW, self.action_BTW, self.candidate_BW]


def pad(batch: RankerInput, dtype: torch.dtype) -> Padded:
    """Every candidate's row, its history padded to the batch's longest."""
    (history,) = batch.histories.values()
    row_B = torch.repeat_interleave(batch.candidate_lengths_R)
    kept_RT = torch.arange(int(history.lengths_R.max())) < history.lengths_R.unsqueeze(1)

    def padded(fields: dict[str, torch.Tensor]) -> torch.Tensor:
        packed_EW = torch.cat([value.detach() for value in fields.values()], dim=1)
        padded_RTW = packed_EW.new_zeros(*kept_RT.shape, packed_EW.shape[1])
        padded_RTW[kept_RT] = packed_EW
        return padded_RTW[row_B].to(dtype).requires_grad_()

    return Padded(
        fields_BMW=torch.stack([v.detach() for v in batch.static.values()], 1)[row_B].to(dtype).requires_grad_(),
        event_BTW=padded(history.event),
        action_BTW=padded(history.action),
        candidate_BW=torch.cat([v.detach() for v in batch.candidates.values()], 1).to(dtype).requires_grad_(),
        padding_BT=~kept_RT[row_B],
    )
