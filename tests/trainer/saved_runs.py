"""Checkpoints to look at: the golden one, and what tests make of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from embeddings.held import whole
from trainer.checkpoint import manifest
from trainer.checkpoint.reading import SavedTensors
from trainer.checkpoint.saving import save_tensors
from trainer.checkpoint.state import read_state

GOLDEN = Path(__file__).parents[1] / "checkpoint" / "golden" / "format_1"
GOLDEN_STEP = GOLDEN / "checkpoints" / "step_00000004"
Tensors = dict[str, torch.Tensor]
Command = Callable[..., tuple[int, str, list[str]]]


def tensors_of(path: Path | str) -> Tensors:
    with SavedTensors(path) as saved:
        return {name: saved.read(name) for name in saved.tensors}


def save(path: Path, tensors: Tensors, like: Path = GOLDEN_STEP, **state: Any) -> Path:
    """A full checkpoint of these tensors, its state that of another."""
    known = read_state(like, manifest.read_commit(like)).model_copy(update=state)
    save_tensors(path, {name: whole(tensor) for name, tensor in tensors.items()}, known.step, known.model_dump_json())
    return path


def step(folder: Path, number: int) -> Path:
    return folder / "checkpoints" / f"step_{number:08d}"


def break_byte(path: Path) -> None:
    file = path / "rank_00000_000.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
