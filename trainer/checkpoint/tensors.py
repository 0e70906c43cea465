"""Names of what a checkpoint holds: paths such as `weights/NAME`; a rank's own pieces (id maps, RNG) are
`piece/RANK/NAME`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

PIECE = "piece"
SPARSE_STATE = "tables_optimizer/"  # fused optimizer state, as model_state.py names it


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
