"""The gate between the tower and the tables: a bad step never reaches either.

Tables are updated inside backward, so a NaN must be stopped where the gradient leaves the tower. The gate is the first
autograd
node of a forward, hence the last of the tower to run backward: by then every dense gradient of this rank exists too.
Ranks agree on one flag; on a bad step the tables receive zeros and the dense optimizer skips.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from trainer.step_split import StepClock


class GradientGate:
    """Checks loss, gradients of table rows, and dense gradients, and agrees over `group`.

    `ok`: after a backward, whether its gradients are sound, the same on every rank. `labelled`: whether there was
    anything to learn from. `bad_steps`: how many were not sound, so far.
    """

    def __init__(self, group: dist.ProcessGroup | None, clock: StepClock | None = None) -> None:
        self._group = group
        self._clock = clock or StepClock(on=False)
        self._loss: torch.Tensor | None = None
        self.dense_gradients: Callable[[], list[torch.Tensor]] = list  # of the backward under way
        self.ok = True
        self.labelled = True
        self.bad_steps = 0

    @property
    def applies(self) -> bool:
        """Whether the dense step is taken. Without a label in the global batch it is not: moments and decay would move
        the weights although nothing was learnt."""
        return self.ok and self.labelled

    def watch_loss(self, loss: torch.Tensor, labelled: bool = True) -> None:
        """Called by the forward with this step's loss. labelled: some rank's batch has a label of weight > 0."""
        self._loss = loss.detach()
        self.labelled = labelled

    def agree(self, gradients: list[torch.Tensor]) -> bool:
        """Collective: True iff loss and all gradients are finite on every rank."""
        # A rank may have looked up no row of a table.
        found = [g for g in gradients + self.dense_gradients() if g.numel()]
        # Of a tensor with a NaN both extremes are NaN. The norm of infinite order asks the same, and takes 20 times as
        # long on CPU (docs/benchmarks/scaling.md).
        seen = [extreme for gradient in found for extreme in torch.aminmax(gradient)]
        if self._loss is not None:
            seen.append(self._loss)
        flag = torch.isfinite(torch.stack(seen)).all().to(torch.int32)
        if self._group is not None and dist.get_world_size(self._group) > 1:
            with self._clock.part("exposed_communication"):
                dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=self._group)
        self.ok = bool(flag.item())
        self.bad_steps += not self.ok
        return self.ok

    def through(self, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same rows; their gradients pass only in a good step."""
        if not torch.is_grad_enabled() or not any(r.requires_grad for r in rows.values()):
            return rows
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
