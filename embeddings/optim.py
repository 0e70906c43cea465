"""The tables' optimizer, which FBGEMM fuses into backward: an update touches only the rows that were looked up."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from embeddings.config import Embeddings


def fused_params(config: Embeddings) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """(optimizer class, its keyword arguments), as apply_optimizer_in_backward takes them.

    With g a row's gradient, summed over its occurrences on all ranks:
    sgd: w −= lr · g.  adagrad: s += g², w −= lr · g ÷ (√s + eps).  rowwise_adagrad: one s a row, s += mean(g²).
    Column-wise sharding keeps one row-wise s per column shard.
    """
    if config.optimizer == "sgd":
        return torch.optim.SGD, {"lr": config.lr}
    optimizer = RowWiseAdagrad if config.optimizer == "rowwise_adagrad" else torch.optim.Adagrad
    return optimizer, {"lr": config.lr, "eps": config.eps}


def fuse_optimizer(tables: nn.Module, config: Embeddings) -> None:
    """Marks every parameter of the unsharded tables; the sharder hands the mark to FBGEMM. Call it before sharding."""
    optimizer, kwargs = fused_params(config)
    apply_optimizer_in_backward(optimizer, tables.parameters(), kwargs)
