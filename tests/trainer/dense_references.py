"""What the modes of dense synchronisation are held against, run by the public trainer in place of them: the recurrences
as they are written down, and torch's DistributedDataParallel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper, DistributedModelParallel
from torchrec.distributed.types import ShardingEnv

from tests.trainer.runs import Run, train_runs
from trainer import assembly
from trainer.dense_optim import DenseOptimizer, learning_rate
from trainer.dense_sync import DenseSync, Update


@dataclass(frozen=True)
class Rule:
    """One process. delayed: steps (from 1) that take the gradient of the step before. accumulate: batches to a step."""

    delayed: frozenset[int] = frozenset()
    accumulate: int = 1


class Written(DenseOptimizer):
    """W_k = W_{k-1} + g_{k-1} in a delayed step, W_k = W_{k-1} + g_k in another: copies and a list, no buckets."""

    rule = Rule()

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._window: list[list[torch.Tensor] | None] = []
        self._before: tuple[list[torch.Tensor], int] | None = None

    def step(self) -> None:
        self._sync.wait()
        step = self.steps_done + 1
        if step not in self.rule.delayed and self._before is not None:
            raise AssertionError("settled before the step")
        gradients = [p.grad.clone() for p in self._parameters.values() if p.grad is not None]
        self._window.append(gradients if self._gate.applies else None)
        if len(self._window) == self.rule.accumulate:
            self._close(step in self.rule.delayed)
        if step + 1 not in self.rule.delayed:
            self._update(self._before)
            self._before = None

    def end(self) -> None:
        if self._window:
            self._close(delayed=False)

    def _close(self, delayed: bool) -> None:
        good = [g for g in self._window if g is not None]
        self._window = []
        own = ([sum(parts) / len(good) for parts in zip(*good, strict=True)], self.examples) if good else None
        self._update(self._before if delayed else own)
        self._before = own if delayed else None

    def _update(self, due: tuple[list[torch.Tensor], int] | None) -> None:
        if due is None:
            return
        for parameter, gradient in zip(self._parameters.values(), due[0], strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(list(self._parameters.values()), self._config.clip_norm or math.inf)
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate(self._config, due[1])
        self.adamw.step()


class Ddp(DenseSync):
    """TorchRec's default: the dense part inside a DistributedDataParallel."""

    wrapped = 0

    def wrap(self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device) -> None:
        sharded = set(DistributedModelParallel._sharded_parameter_names(dmp._dmp_wrapped_module))
        named = dmp._dmp_wrapped_module.named_parameters()
        self.parameters = {name: p for name, p in named if name not in sharded}
        # A step in which a parameter has no gradient is met here, as it is in training.
        DefaultDataParallelWrapper(static_graph=False, find_unused_parameters=True).wrap(dmp, env, device)
        Ddp.wrapped += isinstance(dmp._dmp_wrapped_module, DistributedDataParallel)

    @property
    def buckets(self) -> list[int]:
        return [sum(p.nbytes for p in self.parameters.values())]

    def flat_gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.zero_()

    def send(self, good: bool, examples: int) -> Update | None:
        return Update(_There(), examples) if good else None  # type: ignore[arg-type]


class _There:
    """Gradients that are in their place already."""

    def wait(self) -> None:
        pass

    def show(self) -> None:
        pass


@contextmanager
def _in_place(**parts: Any) -> Iterator[None]:
    kept = {name: getattr(assembly, name) for name in parts}
    for name, part in parts.items():
        setattr(assembly, name, part)
    try:
        yield
    finally:
        for name, part in kept.items():
            setattr(assembly, name, part)


def train_as_written(rank: int, world_size: int, runs: list[tuple[Run, Rule]]) -> None:
    """Each run by its rule."""
    for run, rule in runs:
        with _in_place(DenseOptimizer=type("Ruled", (Written,), {"rule": rule})):
            train_runs(rank, world_size, [run])


def train_with_ddp(rank: int, world_size: int, ours: list[Run], ddp: list[Run]) -> None:
    """The first by our own exchange, the second by DDP."""
    train_runs(rank, world_size, ours)
    with _in_place(DenseSync=Ddp):
        train_runs(rank, world_size, ddp)
    assert Ddp.wrapped == len(ddp)
