"""From modules and optimizers to the named tensors of a checkpoint. Everything here aliases: loading in place changes
the model.

Names are paths: dense parameters and tables `model/NAME`, fused (sparse) optimizer state `fused/PARAMETER/KEY`, dense
optimizer state `dense_optimizer/PARAMETER/KEY`, the metrics `metrics`. A rank's own pieces (id maps, RNG) are
`piece/RANK/NAME`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

PIECE = "piece"


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": tensor}} → {"a/b": tensor}. Raises TypeError for a leaf that is no tensor: it belongs into
    state.json."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            inner = flatten(value, f"{name}/")
        elif isinstance(value, torch.Tensor | ShardedTensor):
            inner = {name: value}
        else:
            raise TypeError(f"{name} is a {type(value).__name__}: only tensors are checkpointed this way")
        if overlap := flat.keys() & inner.keys():
            raise ValueError(f"two tensors named {sorted(overlap)[0]}")
        flat |= inner
    return flat


def fused_tensors(fused_optimizer: Any) -> dict[str, dict[str, Any]]:
    """State of a TorchRec KeyedOptimizer (`DistributedModelParallel.fused_optimizer`): {parameter: {key:
    ShardedTensor}}."""
    state: dict[str, dict[str, Any]] = fused_optimizer.state_dict()["state"]
    return state


def adam_tensors(
    optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, dict[str, torch.Tensor]]:
    """State of Adam or AdamW by parameter name. State that is not there yet is made as the optimizer itself would at
    its first step, so that a fresh optimizer can be loaded into."""
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for name, parameter in named:
        group = groups.get(parameter)
        if group is None:
            continue
        state = optimizer.state[parameter]
        if not state:
            on_device = bool(group.get("fused") or group.get("capturable"))
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if on_device else "cpu")
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        tensors[name] = dict(state)
    return tensors


def rng_pieces() -> dict[str, torch.Tensor]:
    """This rank's random generators, as pieces."""
    pieces = {"rng/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        pieces["rng/cuda"] = torch.cuda.get_rng_state()
    return pieces


def restore_rng(pieces: Mapping[str, torch.Tensor]) -> None:
    """The inverse of rng_pieces, with the pieces that the same rank saved."""
    if "rng/cpu" in pieces:
        torch.set_rng_state(pieces["rng/cpu"])
    if "rng/cuda" in pieces and torch.cuda.is_available():
        torch.cuda.set_rng_state(pieces["rng/cuda"])
