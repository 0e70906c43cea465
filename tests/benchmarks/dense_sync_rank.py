"""One rank of the benchmark dense_sync: all contestants, in turn, on one tower each; its figures into a file.

    python -m tests.benchmarks.dense_sync_rank RANK FOLDER

The step is the trainer's without tables: forward, the gate, backward, clipping, AdamW. FOLDER/task.json says what is
measured; FOLDER/figures_RANK.json is the answer.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.benchmarks import harness
from trainer import machine
from trainer.config_sections import Optim, Train
from trainer.dense_optim import DenseOptimizer
from trainer.dense_sync import DenseSync
from trainer.gate import GradientGate

RANKS = 2
ALONE, DDP, SYNC, DELAYED, DELAYED_BF16 = "no exchange", "DDP", "sync", "delayed", "delayed, bf16"
EXCHANGE, EXCHANGE_BF16 = "exchange alone", "exchange alone, bf16"
UNCOUNTED = 2  # steps of a turn
DDP_BUCKET_MB = 25.0  # its default; ours is in Train


@dataclass(frozen=True)
class Task:
    """address: rank 0's. width, layers: of the tower. batch: rows of a rank. steps: of each contestant in a round."""

    address: str
    port: int
    width: int
    layers: int
    batch: int
    rounds: int
    steps: int


class Tower(nn.Module):
    """Residual blocks: x + W · silu(norm(x)), and a head."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, 1)

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Logits (B,)."""
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x_BD = x_BD + block(nn.functional.silu(norm(x_BD)))
        return self.head(x_BD).squeeze(1)  # type: ignore[no-any-return]


class Contestant:
    """What is common: the tower, its rows and labels, the gate, the loss."""

    def __init__(self, task: Task, gate: GradientGate) -> None:
        torch.manual_seed(0)
        self.tower: nn.Module = Tower(task.width, task.layers)
        self.gate = gate
        self._rows = torch.randn(task.batch, task.width, requires_grad=True)  # as the tables hand them over
        self._labels = (torch.rand(task.batch) < 0.5).float()

    def backward(self) -> None:
        """Forward and backward; the gradient of the rows is the tables'."""
        self._rows.grad = None
        rows = self.gate.through({"rows": self._rows})["rows"]
        loss = nn.functional.binary_cross_entropy_with_logits(self.tower(rows), self._labels)
        self.gate.watch_loss(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """One whole step."""
        raise NotImplementedError

    def drain(self) -> None:
        """Nothing of this contestant is on its way afterwards."""


class Ours(Contestant):
    """The trainer's own parts."""

    def __init__(self, task: Task, gate: GradientGate, group: dist.ProcessGroup, train: Train) -> None:
        super().__init__(task, gate)
        self.sync = DenseSync(group, train.bucket_mb, train.first_bucket_mb, wire=getattr(torch, train.dense_wire))
        self.sync.attach(dict(self.tower.named_parameters()))
        gate.dense_gradients = self.sync.flat_gradients
        self._optimizer = DenseOptimizer(self.sync.parameters, self.sync, gate, Optim(), train)
        self._optimizer.begin(0)
        self._steps = 0

    def step(self) -> None:
        self._optimizer.now(self._steps, self._steps)
        self._steps += 1
        self._optimizer.zero_grad()
        self.backward()
        self._optimizer.step()

    def drain(self) -> None:
        self.sync.in_flight_tensors()

    def exchange(self) -> None:
        """Of zeros: all buckets at once, and until they have arrived."""
        self.sync.wait()
        self.sync.zero_grad()


class Ddp(Contestant):
    """DistributedDataParallel in the place of DenseSync."""

    def __init__(self, task: Task, gate: GradientGate, group: dist.ProcessGroup) -> None:
        super().__init__(task, gate)
        config = Optim()
        self.tower = DistributedDataParallel(
            self.tower, process_group=group, bucket_cap_mb=DDP_BUCKET_MB, gradient_as_bucket_view=True
        )
        self._parameters = list(self.tower.parameters())
        gate.dense_gradients = lambda: [p.grad for p in self._parameters if p.grad is not None]
        self._adamw = torch.optim.AdamW(
            [
                {"params": [p for p in self._parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
                {"params": [p for p in self._parameters if p.dim() < 2], "weight_decay": 0.0},
            ],
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            fused=True,
        )

    def step(self) -> None:
        self._adamw.zero_grad()
        self.backward()
        if self.gate.applies:
            nn.utils.clip_grad_norm_(self._parameters, Optim().clip_norm)
            self._adamw.step()


def contestants(task: Task) -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
    """{name: (one step, what ends its turn)}."""
    groups = [dist.new_group([rank]) for rank in range(RANKS)]  # every rank makes both
    alone = groups[dist.get_rank()]
    dense, flag = dist.new_group(), dist.new_group()
    assert isinstance(dense, dist.ProcessGroup)
    assert isinstance(flag, dist.ProcessGroup)
    assert isinstance(alone, dist.ProcessGroup)
    delayed = partial(Train, dense_sync="delayed", delayed_after_steps=0)
    towers: dict[str, Ours | Ddp] = {
        ALONE: Ours(task, GradientGate(None), alone, Train()),
        DDP: Ddp(task, GradientGate(flag), dense),
        SYNC: Ours(task, GradientGate(flag), dense, Train()),
        DELAYED: Ours(task, GradientGate(flag), dense, delayed()),
        DELAYED_BF16: Ours(task, GradientGate(flag), dense, delayed(dense_wire="bfloat16")),
    }
    found = {name: (tower.step, tower.drain) for name, tower in towers.items()}
    for name, wire in ((EXCHANGE, "float32"), (EXCHANGE_BF16, "bfloat16")):
        ours = Ours(task, GradientGate(flag), dense, Train(dense_wire=wire))  # type: ignore[arg-type]
        ours.sync.zero_grad()
        found[name] = (ours.exchange, ours.drain)
    return found


def turn(step: Callable[[], None], end: Callable[[], None], steps: int) -> tuple[float, float]:
    """(seconds, CPU seconds of all threads) a step. The first two are not counted: from then on `delayed` has as much
    on its way at either end."""
    dist.barrier()
    for _ in range(UNCOUNTED):
        step()
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    figures = (time.perf_counter() - start) / steps, (time.process_time() - cpu) / steps
    end()
    return figures


def main(rank: int, folder: Path) -> None:
    """Joins the other rank, measures, writes."""
    task = Task(**json.loads((folder / "task.json").read_text()))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})  # gloo's threads too, which are started from here
    torch.set_num_threads(1)
    machine.keep_freed_memory()
    timeout = timedelta(seconds=60)
    store = dist.TCPStore(task.address, task.port, RANKS, is_master=rank == 0, timeout=timeout)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timeout)
    found = contestants(task)
    for step, end in found.values():
        turn(step, end, 1)  # warm: connections, the optimizers' states
    figures = harness.in_turn(
        {n: partial(turn, step, end, task.steps) for n, (step, end) in found.items()}, task.rounds
    )
    (folder / f"figures_{rank}.json").write_text(json.dumps(figures))
    dist.barrier()
    dist.destroy_process_group()


def write_task(folder: Path, task: Task) -> None:
    """For both ranks."""
    (folder / "task.json").write_text(json.dumps(asdict(task)))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
