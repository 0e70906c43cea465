"""The dense optimizer as the training pipeline calls it: wait for the exchange, check, clip, step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from trainer.config_sections import Optim
from trainer.dense_sync import DenseSync
from trainer.gate import GradientGate


def learning_rate(config: Optim, examples: int) -> float:
    """Peak · linear warm-up · cosine decay, of examples since the model's birth."""
    if examples < config.warmup_examples:
        return config.lr * (examples + 1) / config.warmup_examples
    if not config.decay_examples:
        return config.lr
    progress = min(1.0, (examples - config.warmup_examples) / config.decay_examples)
    return config.lr * (config.final_lr_share + (1 - config.final_lr_share) * 0.5 * (1 + math.cos(math.pi * progress)))


class DenseOptimizer:
    """AdamW behind the gate. `examples` is set by the loop before each step; grad_norm (dense, before clipping) and lr
    are of the last step."""

    def __init__(self, parameters: dict[str, nn.Parameter], sync: DenseSync, gate: GradientGate, config: Optim) -> None:
        self._config, self._sync, self._gate = config, sync, gate
        self._parameters = parameters
        matrices = [p for p in parameters.values() if p.dim() >= 2]
        rest = [p for p in parameters.values() if p.dim() < 2]  # gains and biases are not decayed
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=True
        )
        self.examples = 0
        self.grad_norm = torch.zeros(())
        self.lr = learning_rate(config, 0)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Gradients live in the exchange's buffers, which are zeroed in place."""
        self._sync.zero_grad()

    def step(self) -> None:
        """Nothing at all in a bad step, or one without labels: moments and step counts stay as they were."""
        self._sync.wait()
        if not self._gate.applies:
            return
        parameters = list(self._parameters.values())
        max_norm = self._config.clip_norm or math.inf
        self.grad_norm = nn.utils.clip_grad_norm_(parameters, max_norm)
        self.lr = learning_rate(self._config, self.examples)
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
