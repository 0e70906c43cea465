"""The dense optimizer as the training pipeline calls it: wait for the exchange, check, clip, step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from trainer.config_sections import Optim, Train
from trainer.dense_sync import DenseSync, Update
from trainer.gate import GradientGate
from trainer.step_split import StepClock


def learning_rate(config: Optim, examples: int) -> float:
    """Peak · linear warm-up · cosine decay, of examples since the model's birth."""
    if examples < config.warmup_examples:
        return config.lr * (examples + 1) / config.warmup_examples
    if not config.decay_examples:
        return config.lr
    progress = min(1.0, (examples - config.warmup_examples) / config.decay_examples)
    return config.lr * (config.final_lr_share + (1 - config.final_lr_share) * 0.5 * (1 + math.cos(math.pi * progress)))


class DenseOptimizer:
    """AdamW behind the gate. grad_norm (dense, before clipping) and lr are of the last update."""

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        sync: DenseSync,
        gate: GradientGate,
        config: Optim,
        train: Train,
        clock: StepClock | None = None,
    ) -> None:
        self._config, self._train, self._sync, self._gate = config, train, sync, gate
        self._clock = clock or StepClock(on=False)
        self._parameters = parameters
        matrices = [p for p in parameters.values() if p.dim() >= 2]
        rest = [p for p in parameters.values() if p.dim() < 2]  # gains and biases are not decayed
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=True
        )
        self.examples = 0
        self.steps_done = 0
        self.grad_norm = torch.zeros(())
        self.lr = learning_rate(config, 0)

    def announcement(self) -> str:
        """What was chosen, for the user."""
        train, buckets = self._train, self._sync.buckets
        words = f"dense gradients: {sum(buckets) / 2**20:.3g} MB"
        if self._sync.is_alone:
            words += ", not exchanged: this rank is alone"
            if train.dense_sync == "delayed":
                words += f"; one step behind all the same, after step {train.delayed_after_steps:,}"
        else:
            words += f" in {len(buckets)} bucket{'s' * (len(buckets) != 1)}, exchanged during "
            words += (
                f"the step after theirs, after step {train.delayed_after_steps:,}"
                if train.dense_sync == "delayed"
                else "backward"
            )
            words += "" if train.dense_wire == "float32" else f", as {train.dense_wire}"
        if train.accumulate > 1:
            words += f" · one dense step on the mean of {train.accumulate} batches, tables updated at every one"
        return words

    @property
    def is_delayed(self) -> bool:
        """Whether the step under way takes the update before its own."""
        return self._train.dense_sync == "delayed" and self.steps_done >= self._train.delayed_after_steps

    @property
    def in_flight_examples(self) -> int | None:
        """What a checkpoint keeps of the update in flight, beside its tensors; None where none is."""
        return None if self._sync.in_flight is None else self._sync.in_flight.examples

    def weight_norm(self) -> torch.Tensor:
        """L2 norm of all dense parameters as they are: one pass over them."""
        return nn.utils.get_total_norm([parameter.detach() for parameter in self._parameters.values()])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Gradients live in the exchange's buffers, which are zeroed in place."""
        with self._clock.part("optimizer"):
            self._sync.zero_grad()

    def step(self) -> None:
        """Called once a batch. Nothing at all for a bad batch, or one without labels: moments and step counts stay as
        they were."""
        if not self._sync.ends_window:
            self._sync.keep(self._gate.applies)
            return
        self._take(self._sync.send(self._gate.applies, self.examples))

    def now(self, steps_done: int, examples: int) -> None:
        """Before each step: since the model's birth."""
        self.steps_done, self.examples = steps_done, examples
        self._sync.launches_in_backward = not self.is_delayed  # there is the whole next step to travel in

    def begin(self, steps_done: int) -> None:
        """Before the first step of a run. One that goes on in `sync` takes at once what an earlier one in `delayed`
        left in flight."""
        self.steps_done = steps_done
        if not self.is_delayed:
            self._apply(self._sync.swap(None))

    def end(self) -> None:
        """After the last step of a run: its unfinished window. Collective."""
        if not self._sync.between_windows:
            self._take(self._sync.flush(self.examples))

    def _take(self, update: Update | None) -> None:
        self._apply(self._sync.swap(update) if self.is_delayed else update)

    def _apply(self, update: Update | None) -> None:
        """W + g. An update that does not fit the wire's format, or whose sum overflows, counts as a bad step."""
        if update is None:
            return
        with self._clock.part("exposed_communication"):
            update.gradients.wait()
        update.gradients.show()
        max_norm = self._config.clip_norm or math.inf
        self.grad_norm = nn.utils.clip_grad_norm_(list(self._parameters.values()), max_norm)
        if not torch.isfinite(self.grad_norm):
            self._gate.overflow()
            return
        self.lr = learning_rate(self._config, update.examples)
        for group in self.adamw.param_groups:
            group["lr"] = self.lr
        self.adamw.step()

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """{parameter name/moment: tensor}: what a checkpoint holds. Made with zeros where no step has been taken yet,
        so that it can be loaded into."""
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self._parameters.items():
            state: dict[str, Any] = self.adamw.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            tensors |= {f"{name}/{key}": value for key, value in state.items()}
        return tensors
