"""The gate between the tower and the tables: a bad step never reaches either.

Tables are updated inside backward, so a NaN must be stopped where the gradient leaves the tower. The gate is the first
autograd
node of a forward, hence the last of the tower to run backward: by then every dense gradient of this rank exists too.
Ranks agree on one flag; on a bad step the tables receive zeros and the dense optimizer skips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from trainer.step_split import StepClock

NAMED = 5  # tables of a group


class GradientGate:
    """Checks loss, gradients of table rows, and dense gradients, and agrees over `group`.

    `ok`: after a backward, whether its gradients are sound, the same on every rank. `labelled`: whether there was
    anything to learn from. `bad_steps`: how many were not sound, so far. `step_loss`: of the global batch, the same on
    every rank; None where it is not known (nothing to learn from, a bad step). `culprits`: of the newest bad step, what
    this rank found not to be finite.
    """

    def __init__(self, group: dist.ProcessGroup | None, clock: StepClock | None = None) -> None:
        self._group = group
        self._clock = clock or StepClock(on=False)
        self._world_size = 1 if group is None else dist.get_world_size(group)
        self._loss: torch.Tensor | None = None
        self._row_groups: tuple[str, ...] = ()
        self.parameters: Mapping[str, torch.Tensor] = {}  # dense ones, to name what is not finite
        self.tables: Mapping[str, list[str]] = {}  # of each group of rows, for the same
        self.dense_gradients: Callable[[], list[torch.Tensor]] = list  # of the backward under way
        self.ok = True
        self.labelled = True
        self.bad_steps = 0
        self.step_loss: float | None = None
        self.overflowed = False
        self.culprits: list[str] = []

    @property
    def is_bad(self) -> bool:
        """Whether the newest step was not sound in any part; the same on every rank."""
        return not self.ok or self.overflowed

    @property
    def applies(self) -> bool:
        """Whether the dense step is taken. Without a label in the global batch it is not: moments and decay would move
        the weights although nothing was learnt."""
        return self.ok and self.labelled

    def watch_loss(self, loss: torch.Tensor, labelled: bool = True) -> None:
        """Called by the forward with this step's loss. labelled: some rank's batch has a label of weight > 0."""
        self._loss = loss.detach()
        self.labelled = labelled
        self.step_loss, self.overflowed = None, False

    def overflow(self) -> None:
        """Called where the sum of all ranks' gradients is not finite although each of them was: a bad step too."""
        self.bad_steps += 1
        self.overflowed = True
        self.culprits = ["the dense gradient, summed over ranks"]

    def agree(self, gradients: list[torch.Tensor]) -> bool:
        """Collective: True iff loss and all gradients are finite on every rank."""
        # A rank may have looked up no row of a table.
        found = [g for g in gradients + self.dense_gradients() if g.numel()]
        # Of a tensor with a NaN both extremes are NaN. The norm of infinite order asks the same, and takes 20 times as
        # long on CPU (docs/benchmarks/scaling.md).
        seen = [extreme for gradient in found for extreme in torch.aminmax(gradient)]
        loss = torch.zeros((), device=seen[0].device if seen else None) if self._loss is None else self._loss
        seen.append(loss)
        is_bad = torch.isfinite(torch.stack(seen)).all().logical_not()
        # The loss travels with the flag, and costs nothing beside it.
        told = torch.stack([is_bad.double(), torch.nan_to_num(loss.double(), nan=0.0, posinf=0.0, neginf=0.0)])
        if self._world_size > 1:
            with self._clock.part("exposed_communication"):
                dist.all_reduce(told, group=self._group)
        bad, total = told.tolist()
        self.ok = bad == 0
        self.bad_steps += not self.ok
        self.step_loss = total / self._world_size if self.applies and self._loss is not None else None
        if not self.ok:
            self.culprits = self._name(gradients)
        return self.ok

    def _name(self, gradients: list[torch.Tensor]) -> list[str]:
        """What is not finite on this rank. After a NaN loss everything behind it is: then the loss alone is named."""
        if self._loss is not None and not torch.isfinite(self._loss):
            return ["the loss"]
        rows = zip(self._row_groups, gradients, strict=False)
        found = {f"the gradient of rows of {self._tables_of(group)}": gradient for group, gradient in rows}
        found |= {f"the gradient of {name}": p.grad for name, p in self.parameters.items() if p.grad is not None}
        return [name for name, gradient in found.items() if not torch.isfinite(gradient).all()]

    def _tables_of(self, group: str) -> str:
        tables = self.tables.get(group, [group])
        more = f" and {len(tables) - NAMED} more" if len(tables) > NAMED else ""
        return f"table{'s' * (len(tables) > 1)} {', '.join(tables[:NAMED])}{more}"

    def through(self, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same rows; their gradients pass only in a good step."""
        if not torch.is_grad_enabled() or not any(r.requires_grad for r in rows.values()):
            return rows
        self._row_groups = tuple(rows)
        gated = _Gate.apply(self, *rows.values())  # type: ignore[no-untyped-call]
        return dict(zip(rows, gated, strict=True))


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: GradientGate, *rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.gate = gate
        return tuple(r.view_as(r) for r in rows)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gate.agree(list(gradients)):
            return (None, *gradients)
        return (None, *(torch.zeros_like(g) for g in gradients))
