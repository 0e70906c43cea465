"""Specs and random inputs for the model's tests, in float64."""

from __future__ import annotations

import torch

from model.config import Model
from model.inputs import FieldSpec, HistoryInput, HistorySpec, InputSpec, RankerInput

SECOND = 1_000_000


def make_spec(
    supervision: str = "candidates", histories: int = 1, *, static: int = 3, max_length: int = 8
) -> InputSpec:
    """The second history lacks an event field and has no action. The supervised one is not the first of the spec."""
    named = (
        HistorySpec("seen", ("item", "shop", "price"), ("click", "dwell"), max_length),
        HistorySpec("bought", ("item", "price"), (), max_length),
        HistorySpec("liked", ("shop", "item"), ("dwell",), max_length),
    )[:histories]
    return InputSpec(
        static=tuple(FieldSpec(f"f{i}", 2 + i, dense=i == 1) for i in range(static)),
        event=(FieldSpec("item", 4), FieldSpec("shop", 3), FieldSpec("price", 1, dense=True)),
        action=(FieldSpec("click", 2), FieldSpec("dwell", 1, dense=True)),
        histories=named[::-1] if supervision == "history" else named,
        candidate=("item", "shop", "price"),
        tasks=("click", "buy"),
        supervision=supervision,  # type: ignore[arg-type]
        supervised_history="seen" if supervision == "history" else "",
    )


def make_config(**changes: object) -> Model:
    return Model(**{"dim": 8, "num_layers": 4, "num_heads": 2, "ffn_dim": 12, "windows": (4, 2), **changes})  # type: ignore[arg-type]


def _history(spec: InputSpec, history: HistorySpec, lengths: list[int], generator: torch.Generator) -> HistoryInput:
    widths = {field.name: field.width for field in (*spec.event, *spec.action)}
    total = sum(lengths)
    stretches = [torch.randint(0, 12, (length,), generator=generator).sort().values for length in lengths]
    time_E = torch.cat([torch.empty(0, dtype=torch.int64), *stretches]) * SECOND
    late_E = torch.randint(0, 3, (total,), generator=generator) * SECOND
    return HistoryInput(
        lengths_R=torch.tensor(lengths),
        event={name: _rows(total, widths[name], generator) for name in history.event},
        action={name: _rows(total, widths[name], generator) for name in history.action},
        time_E=time_E,
        clock_E=time_E.clone(),
        action_clock_E=time_E + late_E,
    )


def _rows(count: int, width: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


def make_input(
    spec: InputSpec, lengths: dict[str, list[int]], candidates: list[int] | None = None, seed: int = 0
) -> RankerInput:
    """Times fall on few seconds, so that many are equal, and actions come up to two seconds late."""
    generator = torch.Generator().manual_seed(seed)
    num_rows = len(next(iter(lengths.values())))
    widths = {field.name: field.width for field in spec.event}
    given = candidates if spec.supervision == "candidates" and candidates else [0] * num_rows
    request_R = torch.randint(11, 14, (num_rows,), generator=generator) * SECOND
    return RankerInput(
        static={field.name: _rows(num_rows, field.width, generator) for field in spec.static},
        histories={
            history.name: _history(spec, history, lengths[history.name], generator) for history in spec.histories
        },
        candidates={name: _rows(sum(given), widths[name], generator) for name in spec.candidate},
        candidate_lengths_R=torch.tensor(given),
        time_R=request_R,
        clock_R=request_R.clone(),
    )


def float_leaves(batch: RankerInput) -> list[torch.Tensor]:
    """Every float tensor of the input, in a fixed order."""
    parts = [batch.static, *(part for h in batch.histories.values() for part in (h.event, h.action)), batch.candidates]
    return [tensor for part in parts for tensor in part.values()]


def rows_of_history(history: HistoryInput, rows: list[int]) -> HistoryInput:
    ends = history.lengths_R.cumsum(0).tolist()
    index = torch.tensor(
        [e for r in rows for e in range(ends[r] - int(history.lengths_R[r]), ends[r])], dtype=torch.int64
    )
    return HistoryInput(
        history.lengths_R[rows],
        {name: value[index] for name, value in history.event.items()},
        {name: value[index] for name, value in history.action.items()},
        history.time_E[index],
        history.clock_E[index],
        history.action_clock_E[index],
    )


def select(batch: RankerInput, rows: list[int], candidates: list[list[int]] | None = None) -> RankerInput:
    """Chosen rows in that order; `candidates`: which of each row's candidates (all by default)."""
    counts = batch.candidate_lengths_R.tolist()
    starts = [sum(counts[:r]) for r in range(len(counts))]
    chosen = candidates or [list(range(counts[r])) for r in rows]
    index = torch.tensor([starts[r] + c for r, cs in zip(rows, chosen, strict=True) for c in cs], dtype=torch.int64)
    return RankerInput(
        {name: value[rows] for name, value in batch.static.items()},
        {name: rows_of_history(history, rows) for name, history in batch.histories.items()},
        {name: value[index] for name, value in batch.candidates.items()},
        torch.tensor([len(cs) for cs in chosen]),
        batch.time_R[rows],
        batch.clock_R[rows],
    )
