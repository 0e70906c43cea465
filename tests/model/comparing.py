"""What every ranker's tests ask of it in the same words: equal to a reference, and to itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from model.config import Model
from model.inputs import InputSpec, RankerInput
from model.rankers import build_ranker
from model.tokens import group_fields
from tests.model.builders import float_leaves

Reference = Callable[..., torch.Tensor]


def assert_equal_to(reference: Reference, spec: InputSpec, config: Model, batch: RankerInput, seed: int = 1) -> None:
    """Logits, and gradients of every input and parameter, of a ranker in float64 away from its initial values. Every
    parameter has a gradient: a gradient all-reduce would stall otherwise.

    reference: (spec, config, field groups, parameters by name, batch) → logits.
    """
    torch.manual_seed(seed)
    ranker = build_ranker(spec, config).double()
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    leaves = [leaf.requires_grad_() for leaf in float_leaves(batch)] + list(ranker.parameters())
    groups = group_fields([field.name for field in spec.static], config.tokens)

    ours, theirs = ranker(batch), reference(spec, config, groups, dict(ranker.named_parameters()), batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    pull = torch.randn(ours.shape, dtype=torch.float64)
    expected = torch.autograd.grad((theirs * pull).sum(), leaves, allow_unused=True)
    found = torch.autograd.grad((ours * pull).sum(), leaves, allow_unused=True)
    for leaf, ours_grad, theirs_grad in zip(leaves, found, expected, strict=True):
        zeros = torch.zeros_like(leaf)
        torch.testing.assert_close(
            zeros if ours_grad is None else ours_grad,
            zeros if theirs_grad is None else theirs_grad,
            rtol=1e-9,
            atol=1e-10,
        )
    of_parameters = found[len(found) - len(list(ranker.parameters())) :]
    assert all(gradient is not None for gradient in of_parameters), "a gradient all-reduce would stall"


def assert_repeats_itself(ranker: nn.Module, batch: RankerInput) -> None:
    """The same step twice gives the same bits."""
    gradients = []
    for _ in range(2):
        ranker.zero_grad()
        ranker(batch).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in ranker.parameters() if parameter.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
