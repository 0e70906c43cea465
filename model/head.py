"""The last layer of the rankers over tokens."""

from __future__ import annotations

from torch import nn


def task_head(width: int, num_tasks: int) -> nn.Linear:
    """[N, width] → one logit per task, near 0 at first."""
    head = nn.Linear(width, num_tasks)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
