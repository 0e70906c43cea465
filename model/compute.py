"""How a ranker's blocks are computed, which changes no parameter and no name: number format, compiler, what is kept for
backward. A run's choice, not the model's, so that it is no key of `[model]`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Compute:
    """dtype:    of matrix products and what lies between them; None = the parameters' own. Parameters, norms and the
              residual stream stay as they are.
    fused:       the halves of a block with backward passes of their own (model/fused_block.py); False: plain modules.
    compiled:    the plain halves through torch.compile, with any number of tokens.
    checkpoint:  a block's inside is computed again in backward and not kept.
    """

    dtype: torch.dtype | None = None
    fused: bool = True
    compiled: bool = False
    checkpoint: bool = False


def set_compute(ranker: nn.Module, compute: Compute) -> int:
    """Of every part that has a choice; returns how many have one."""
    parts = [module for module in ranker.modules() if isinstance(getattr(module, "compute", None), Compute)]
    for part in parts:
        part.compute = compute  # type: ignore[assignment]
    return len(parts)
