"""Checkpoints of earlier releases stay readable."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from trainer.checkpoint import manifest
from trainer.checkpoint.reading import SavedTensors
from trainer.checkpoint.state import read_state

GOLDEN = Path(__file__).parent / "golden"


def test_format_1_is_read_under_todays_names() -> None:
    """Saved by 0.1.0 on two ranks: a vocabulary (row-wise), a column-wise and several row-wise tables."""
    path = GOLDEN / "format_1" / "checkpoints" / "step_00000004"
    state = read_state(path, manifest.read_commit(path))
    assert (state.step, state.world_size) == (4, 2)
    with SavedTensors(path) as saved:
        saved.check_files()
        sizes = {name: tuple(record.size) for name, record in saved.tensors.items()}
        assert sizes["tables/author/weight"] == (50, 8)
        assert sizes["tables/author/momentum1"] == (50, 2)
        assert sizes["tables/user_id/momentum1"] == (120, 1)
        assert sizes["id_maps/user_id/ids"] == (8, 15)
        touched = (saved.read("tables/author/momentum1") > 0).any(1)
        assert touched.any()
        assert not touched.all()
        content = hashlib.sha256()
        for name in sorted(sizes):
            tensor = saved.read(name)
            assert tensor.dtype == torch.int64 or bool(torch.isfinite(tensor).all()), name
            content.update(name.encode() + tensor.contiguous().numpy().tobytes())
    assert content.hexdigest() == "20e3ce331f2dee24e6fa4bbb01b749bdaa003e707c3d4bbd094453fe5f0542c1"
