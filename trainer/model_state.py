"""What of a model a checkpoint holds, by name, as tensors: weights, both optimizers' states, id maps."""

from __future__ import annotations

from typing import Any

from trainer.assembly import Assembly

ID_MAPS = "id_maps"


def model_tensors(assembly: Assembly, step: int | None = None) -> dict[str, Any]:
    """{name: Tensor or ShardedTensor}; collective-free. Weights and optimizer states are the model's own memory, id
    maps are copies.

    weights/…: every parameter and buffer, tables as ShardedTensors. tables_optimizer/…: fused state. dense_optimizer/…:
    AdamW's. id_maps/…: as of `step` (ids are mapped ahead of being trained), None = as they are.
    """
    tensors: dict[str, Any] = {f"weights/{name}": value for name, value in assembly.model.state_dict().items()}
    fused: dict[str, dict[str, Any]] = assembly.model.fused_optimizer.state_dict()["state"]
    for parameter, state in fused.items():
        tensors |= {f"tables_optimizer/{parameter}/{key.rsplit('.', 1)[-1]}": value for key, value in state.items()}
    tensors |= {f"dense_optimizer/{name}": value for name, value in assembly.optimizer.state_tensors().items()}
    return tensors | {f"{ID_MAPS}/{name}": value for name, value in assembly.mapper.state_dict(step).items()}


def load_rest(assembly: Assembly, tensors: dict[str, Any]) -> None:
    """After a load into `model_tensors`: what was a copy goes back where it belongs."""
    prefix = f"{ID_MAPS}/"
    assembly.mapper.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
