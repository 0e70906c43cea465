"""Dense gradients over ranks: the mean of every rank's, whatever the buckets and whoever had none."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.ranks import run_ranks

WORLD_SIZE = 3
LIMITS = {  # (bucket_mb, first_bucket_mb)
    "one for all": (25.0, 25.0),
    "one a parameter": (1e-6, 1e-6),
    "a small first one": (25.0, 1e-6),
    "two": (0.0002, 1e-6),
}


class Tower(nn.Module):
    """`rare` is used by rank 0 alone, `never` by none."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Parameter(torch.randn(8, 8))
        self.rare = nn.Parameter(torch.randn(8))
        self.never = nn.Parameter(torch.randn(3))
        self.second = nn.Parameter(torch.randn(8, 4))

    def loss(self, rank: int, step: int) -> torch.Tensor:
        x_BD = torch.randn(5, 8, generator=torch.Generator().manual_seed(100 * step + rank))
        hidden_BD = x_BD @ self.first
        if rank == 0:
            hidden_BD = hidden_BD * self.rare
        return (hidden_BD.tanh() @ self.second).square().mean()


def _steps(rank: int, world_size: int) -> dict[str, list[list[torch.Tensor]]]:
    """{limits: [gradients of a step, for two steps and one more with the first's data]}."""
    from trainer.dense_sync import DenseSync

    group = dist.new_group(backend="gloo")
    found = {}
    for name, (bucket_mb, first_bucket_mb) in LIMITS.items():
        tower = Tower(seed=rank)  # ranks begin apart
        sync = DenseSync(group, bucket_mb, first_bucket_mb)
        sync.attach(dict(tower.named_parameters()))
        found[name] = []
        for step in (0, 1, 0):
            sync.zero_grad()
            tower.loss(rank, step).backward()
            sync.wait()
            found[name].append([parameter.grad.clone() for parameter in tower.parameters()])
    return found


def _sent_in_backward(rank: int, world_size: int) -> dict[bool, tuple[int, list[torch.Tensor]]]:
    """{launches_in_backward: (buckets on their way when backward is over, gradients when they have arrived)}."""
    from trainer.dense_sync import DenseSync

    group = dist.new_group(backend="gloo")
    found = {}
    for early in (True, False):
        tower = Tower(seed=0)
        sync = DenseSync(group, 1e-6, 1e-6)
        sync.attach({"first": tower.first, "second": tower.second})
        sync.launches_in_backward = early
        sync.zero_grad()
        tower.loss(rank, 0).backward()
        sent = sum(bucket.work is not None for bucket in sync._filling.buckets)
        sync.wait()
        found[early] = sent, [sync.parameters[name].grad.clone() for name in ("first", "second")]
    return found


def test_delayed_sends_nothing_while_backward_runs() -> None:
    """The gate looks at gradients that nobody is adding to."""
    (early, expected), (late, gradients) = run_ranks(_sent_in_backward, 2, timeout=60)[0].values()
    assert (early, late) == (2, 0)
    assert all(map(torch.equal, gradients, expected))


def _expected(step: int) -> list[torch.Tensor]:
    tower = Tower(seed=0)
    losses = torch.stack([tower.loss(rank, step) for rank in range(WORLD_SIZE)])
    gradients = torch.autograd.grad(losses.mean(), list(tower.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(tower.parameters(), gradients, strict=True)]


def test_gradients_are_the_mean_over_ranks_and_the_same_bits_on_each() -> None:
    by_rank = run_ranks(_steps, WORLD_SIZE, timeout=100)
    expected = [_expected(step) for step in (0, 1, 0)]
    assert all(any(g.abs().max() > 1e-3 for g in gradients) for gradients in expected)
    for name in LIMITS:
        torch.testing.assert_close(by_rank[0][name], expected, rtol=1e-5, atol=1e-7)
        for other in by_rank[1:]:
            torch.testing.assert_close(other[name], by_rank[0][name], rtol=0, atol=0)


WIRES = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # unit roundoff


def _means(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """{wire: what arrives}; gradients over ten orders of magnitude."""
    from trainer.dense_sync import DenseSync

    found = {}
    for wire in WIRES:
        parameter = nn.Parameter(torch.zeros(4096))
        sync = DenseSync(dist.new_group(backend="gloo"), 25.0, 1.0, wire=getattr(torch, wire))
        sync.attach({"p": parameter})
        sync.zero_grad()
        (parameter * _gradient(rank)).sum().backward()
        sync.wait()
        assert parameter.grad is not None
        found[wire] = parameter.grad.clone()
    return found


def _gradient(rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    magnitudes = 10 ** torch.linspace(-8, 1, 4096)
    return torch.randn(4096, generator=generator) * magnitudes


@pytest.fixture(scope="module")
def means() -> list[dict[str, torch.Tensor]]:
    return list(run_ranks(_means, WORLD_SIZE, timeout=100))


@pytest.mark.parametrize("wire", WIRES)
def test_half_the_bits_stay_within_the_stated_bound(means: list[dict[str, torch.Tensor]], wire: str) -> None:
    """trainer.dense_buckets.Gradients states it."""
    gradients = torch.stack([_gradient(rank) for rank in range(WORLD_SIZE)]).double()
    error = (means[0][wire].double() - gradients.mean(0)).abs()
    smallest = 2.0**-34 if wire == "float16" else 0.0
    bound = 1.05 * WORLD_SIZE * (WIRES[wire] * gradients.abs().mean(0) + smallest)
    assert (error <= bound).all()
    assert (error > 0).any()
    for other in means[1:]:
        assert torch.equal(other[wire], means[0][wire])
