"""What a ranker reads: plain packed tensors and lengths, so that it is tested alone and runs where TorchRec is not
installed.

Shape suffixes: R request rows · E events of one history over all rows (row after row, oldest first) · C candidates
over all rows · S supervised positions (C, or E of the supervised history) · W embedding width of a field (fields may
differ) · K tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch


@dataclass(frozen=True)
class FieldSpec:
    """One input field. `width`: of its embedding rows, or the length of its dense vector. `dense`: float features,
    which pass through a linear layer of their own as they are; otherwise embedding rows."""

    name: str
    width: int
    dense: bool = False


@dataclass(frozen=True)
class HistorySpec:
    """One named history: which of the spec's event and action fields it has (by name). Absent ones read as zeros."""

    name: str
    event: tuple[str, ...]
    action: tuple[str, ...]
    max_length: int


@dataclass(frozen=True)
class InputSpec:
    """What a ranker is built for. `event`: fields of a behaviour and of a candidate, in token order, under their
    candidate's name."""

    static: tuple[FieldSpec, ...]
    event: tuple[FieldSpec, ...]
    action: tuple[FieldSpec, ...]
    histories: tuple[HistorySpec, ...]
    candidate: tuple[str, ...]
    tasks: tuple[str, ...]
    supervision: Literal["candidates", "history"]
    supervised_history: str = ""


@dataclass
class HistoryInput:
    """lengths_R int64; event and action {field: float [E, W]}; time_E, clock_E, action_clock_E int64 (microseconds or
    indices: an action is known at a position p iff action_clock < clock of p)."""

    lengths_R: torch.Tensor
    event: dict[str, torch.Tensor]
    action: dict[str, torch.Tensor]
    time_E: torch.Tensor
    clock_E: torch.Tensor
    action_clock_E: torch.Tensor


@dataclass
class RankerInput:
    """static {field: float [R, W]}; histories by name; candidates {field: float [C, W]}; candidate_lengths_R int64
    (zeros in `history` supervision); time_R, clock_R int64 of the request.

    blocks: static fields that stand side by side already: {their names: float [R, ΣW]}, fields of one field token in
    its order. A field is in `static` or in a block; thousands of fields come as few tensors.
    """

    static: dict[str, torch.Tensor]
    histories: dict[str, HistoryInput]
    candidates: dict[str, torch.Tensor]
    candidate_lengths_R: torch.Tensor
    time_R: torch.Tensor
    clock_R: torch.Tensor
    blocks: dict[tuple[str, ...], torch.Tensor] = field(default_factory=dict)
