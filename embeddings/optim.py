"""The tables' optimizers, which FBGEMM fuses into backward: an update touches only the rows that were looked up.

With g a row's gradient, summed over its occurrences on all ranks, and w the row:

    sgd              w −= lr · g
    adagrad          s += g², w −= lr · g ÷ (√s + eps)
    rowwise_adagrad  g += weight_decay · w, then one s a row: s += mean(g²), w −= lr · g ÷ (√s + eps)
    adam             Adam with bias correction and weight decay apart from the gradient, on CUDA only
    rowwise_adam     the same with one second moment a row, on CUDA only

Column-wise sharding keeps one row-wise s per column shard. States are float32 for tables of any dtype. A row that no
rank looks up is not touched: neither decay nor moments reach it.
"""

from __future__ import annotations

from typing import Any

import torch
from fbgemm_gpu.tbe.config.optimizer_config import WeightDecayMode
from torch import nn
from torchrec.optim import SGD, Adagrad, Adam, PartialRowWiseAdam, RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from embeddings.specs import TableSpec
from embeddings.tables import module_name

CLASSES = {
    "sgd": SGD,
    "adagrad": Adagrad,
    "rowwise_adagrad": RowWiseAdagrad,
    "adam": Adam,
    "rowwise_adam": PartialRowWiseAdam,
}


def fused_params(spec: TableSpec) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """(TorchRec's optimizer class, its keyword arguments), as apply_optimizer_in_backward takes them."""
    arguments: dict[str, Any] = {"lr": spec.lr}
    if spec.optimizer != "sgd":
        arguments["eps"] = spec.eps
    if spec.weight_decay:
        arguments["weight_decay"] = spec.weight_decay
        if spec.optimizer == "rowwise_adagrad":
            arguments["weight_decay_mode"] = WeightDecayMode.L2
    return CLASSES[spec.optimizer], arguments


def fuse_optimizer(tables: nn.Module, specs: dict[str, TableSpec]) -> None:
    """Marks every table's parameter with its own optimizer; the sharder hands the mark to FBGEMM. Call it before
    sharding. Tables of one width, dtype and optimizer with its settings share an FBGEMM module.
    """
    by_name = {module_name(spec.name): spec for spec in specs.values()}
    for name, parameter in tables.named_parameters():
        optimizer, arguments = fused_params(by_name[name.split(".")[-2]])
        apply_optimizer_in_backward(optimizer, [parameter], arguments)
