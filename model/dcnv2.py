"""DCN-V2 (arXiv 2008.13535): explicit crosses of all inputs, beside a deep network ("parallel" structure).

    x_0     = [fields; target; mean of what is known of the history]
    x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l          Eq. 1; with a rank r, W_l = U_l V_lᵀ (Eq. 2)
    logits  = head [x_L; MLP(x_0)]                  Fig. 1b, Eq. 4

The mean over a history's known past is the one part that the paper does not have: its inputs are pooled before. In
`history` supervision there is such a mean for every event, made of running sums.

Shape suffixes: R rows · M events, row after row and oldest first · S supervised positions · D width · X = width of
x_0 · K tasks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from model.config import Model
from model.examples import Examples, ExampleTokens, as_logits
from model.inputs import InputSpec, RankerInput
from model.mlp import MLP, fan_in_linear
from model.timeline import exclusive_cumsum


class Cross(nn.Module):
    """One cross layer; `rank` 0: a full matrix."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = fan_in_linear(width, rank, bias=False) if rank else None
        self.linear = fan_in_linear(rank or width, width)

    def forward(self, x0_SX: torch.Tensor, x_SX: torch.Tensor) -> torch.Tensor:
        mixed_SX: torch.Tensor = self.linear(x_SX if self.down is None else self.down(x_SX))
        return x0_SX * mixed_SX + x_SX


class DCNv2(nn.Module):
    """forward(RankerInput) → logits [S, K]."""

    def __init__(self, spec: InputSpec, config: Model) -> None:
        super().__init__()
        own = config.dcnv2
        self.tokens = ExampleTokens(spec, config)
        width = self.tokens.field_width + 2 * config.dim
        self.crosses = nn.ModuleList(Cross(width, own.rank) for _ in range(own.cross_layers))
        self.deep = MLP(width, own.hidden, lambda _: nn.ReLU(), config.dropout)
        self.head = fan_in_linear(width + self.deep.out, len(spec.tasks))
        nn.init.trunc_normal_(self.head.weight, std=0.02)

    def forward(self, batch: RankerInput) -> torch.Tensor:
        examples: Examples = self.tokens(batch)
        past_SD = mean_of_row(examples) if self.tokens.of_candidates else mean_before(examples)
        field_SX, target_SD = examples.field_RX.index_select(0, examples.row_S), examples.target_SD
        x0_SX = torch.cat([field_SX, target_SD, past_SD.to(target_SD.dtype)], dim=1)
        x_SX = x0_SX
        for cross in self.crosses:
            x_SX = cross(x0_SX, x_SX)
        return as_logits(self.head(torch.cat([x_SX, self.deep(x0_SX)], dim=1)))


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Sums of many are taken in float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def mean_of_row(examples: Examples) -> torch.Tensor:
    """[S, D] mean of the row's events, 0 where it has none."""
    event_MD = _wide(examples.event_MD)
    rows = examples.counts_R.shape[0]
    sum_RD = event_MD.new_zeros(rows, event_MD.shape[1]).index_add(0, examples.row_M, event_MD)
    mean_RD = sum_RD / examples.counts_R.clamp(min=1).unsqueeze(1)
    return mean_RD.index_select(0, examples.row_S)


def mean_before(examples: Examples) -> torch.Tensor:
    """[S, D] mean over the events before each position of (event + its action, where that is known by then), 0 where
    there are none.

    An event counts from the next place on, an action from the first place that knows it on: both are put there, and
    one running sum along each row does the rest.
    """
    event_MD = _wide(examples.event_MD)
    starts_R = exclusive_cumsum(examples.counts_R)
    place_M = torch.arange(examples.row_M.shape[0], device=examples.row_M.device)
    rank_M = place_M - starts_R.index_select(0, examples.row_M)
    newly_MD = _shifted(event_MD, 1).where((rank_M >= 1).unsqueeze(1), 0)
    if examples.action_MD is not None:
        known_M = first_knowing(examples)
        last_M = (starts_R + examples.counts_R).index_select(0, examples.row_M) - 1
        ever = (known_M <= last_M).nonzero().squeeze(1)
        newly_MD = newly_MD.index_add(0, known_M.index_select(0, ever), _wide(examples.action_MD).index_select(0, ever))
    sum_MD = running_sum(newly_MD, rank_M)
    sum_SD = sum_MD.index_select(0, examples.first_S + examples.behind_S)
    return sum_SD / examples.behind_S.clamp(min=1).unsqueeze(1)


def first_knowing(examples: Examples) -> torch.Tensor:
    """[M] the first place of its row whose clock is after the event's action (one past the row's last where none is);
    never the event's own or an earlier one. Clocks do not fall along a row."""
    total = examples.row_M.shape[0]
    # Places and actions on one line, by row and clock; a place stands before the actions of its own clock.
    clock = torch.cat([examples.clock_M, examples.action_clock_M])
    row = examples.row_M.repeat(2)
    order = clock.argsort(stable=True)
    order = order.index_select(0, row.index_select(0, order).argsort(stable=True))
    places_so_far = (order < total).long().cumsum(0)
    found = torch.empty_like(order).scatter_(0, order, places_so_far)[total:]
    place_M = torch.arange(total, device=found.device)
    return found.maximum(place_M + 1)


def running_sum(x_MD: torch.Tensor, rank_M: torch.Tensor) -> torch.Tensor:
    """Sums along each row up to and including each place, by doubling: log₂ T additions of shifted copies. No padding,
    and unlike one sum over the whole batch, no row's rounding reaches another row."""
    step, longest = 1, int(rank_M.max()) + 1 if rank_M.shape[0] else 0
    while step < longest:
        x_MD = x_MD + _shifted(x_MD, step).where((rank_M >= step).unsqueeze(1), 0)
        step *= 2
    return x_MD


def _shifted(x_MD: torch.Tensor, by: int) -> torch.Tensor:
    """x[m − by] at m; zeros at first."""
    return F.pad(x_MD[: max(0, x_MD.shape[0] - by)], (0, 0, min(by, x_MD.shape[0]), 0))


def build_dcnv2(spec: InputSpec, config: Model) -> DCNv2:
    return DCNv2(spec, config.model_copy(update={"kind": "dcnv2"}))
