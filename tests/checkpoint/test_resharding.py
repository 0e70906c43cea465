"""Saved at two ranks, loaded at one, two and three and under another sharding: weights and optimizer states bit for
bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.batch import Position
from pipelines.schema import Column, Schema
from tests.distributed.ranks import run_ranks
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.state import CheckpointState
from trainer.config_sections import Checkpoint
from trainer.errors import CheckpointError
from trainer.run_dir import RunDir

SCHEMA = Schema(user="user", columns={"user": Column(role="user", kind="id")})
POSITION = Position(epoch=0, segment=1, batch=7, name="dt=2026-11-20", fingerprint="abc")


def _checkpointer(folder: str) -> Checkpointer:
    run_dir = RunDir(folder)
    return Checkpointer(run_dir, Checkpoint())


def _train_and_save(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """{sharding: [state when saved, state one step later, the same after load and that step]}; and the line for CW →
    TW."""
    from tests.checkpoint.sharded_model import Sharded

    found: dict[str, Any] = {}
    for sharding in ("row_wise", "table_wise", "column_wise"):
        checkpointer = _checkpointer(f"{folder}/{sharding}")
        trained = Sharded(sharding, seed=0)
        for step in range(3):
            trained.step(step)
        state = CheckpointState(step=3, examples=24, position=POSITION, data_schema=SCHEMA, world_size=world_size)
        saved = checkpointer.save(
            state, trained.tensors(), {f"bucket_{rank}": torch.arange(rank * 3), "rng": torch.tensor([rank])}
        )
        assert not rank or saved.path == checkpointer.latest()
        at_save = trained.gathered()
        trained.step(3)
        loaded = Sharded(sharding, seed=1)
        assert checkpointer.load(saved.path, loaded.tensors(), SCHEMA) == state
        after_load = loaded.gathered()
        loaded.step(3)
        found[sharding] = (at_save, after_load, trained.gathered(), loaded.gathered())
    with pytest.raises(CheckpointError) as refused:
        _checkpointer(f"{folder}/other").load(
            Path(f"{folder}/column_wise/checkpoints/step_00000003"), Sharded("table_wise", 1).tensors()
        )
    found["refused"] = refused.value.problems
    found["damaged"] = _failures_on_one_rank(rank, folder)
    return found


def _failures_on_one_rank(rank: int, folder: str) -> list[str]:
    """A file that one rank finds damaged, a directory that one cannot make: errors on every rank, never a hang."""
    path = Path(f"{folder}/column_wise/checkpoints/step_00000003")
    if rank == 0:
        with (path / "rank_00001_000.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"!")
        (Path(folder) / "blocked").mkdir()
        (Path(folder) / "blocked" / "checkpoints").write_text("a file")
    torch.distributed.barrier()
    with pytest.raises(CheckpointError, match="has another sha256") as damaged:
        _checkpointer(f"{folder}/column_wise").load(path, {"model": {}})
    with pytest.raises(CheckpointError, match="must be writable") as blocked:
        _checkpointer(f"{folder}/blocked").save(CheckpointState(step=1, data_schema=SCHEMA), {"w": torch.ones(2)})
    return damaged.value.problems + blocked.value.problems


def _load(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """{(saved as, loaded as): state}."""
    from tests.checkpoint.sharded_model import Sharded

    found: dict[str, Any] = {}
    for saved_as in ("row_wise", "table_wise"):
        checkpointer = _checkpointer(f"{folder}/{saved_as}")
        path = checkpointer.latest()
        assert path
        pieces = [
            (piece.rank, piece.name, piece.tensor.tolist()) for piece in checkpointer.read_pieces(path, "bucket_")
        ]
        assert pieces == [(0, "bucket_0", []), (1, "bucket_1", [0, 1, 2])]
        for loaded_as in ("row_wise", "table_wise"):
            model = Sharded(loaded_as, seed=2)
            state = checkpointer.load(path, model.tensors(), SCHEMA)
            assert (state.step, state.position, state.world_size) == (3, POSITION, 2)
            found[saved_as, loaded_as] = model.gathered()
    return found


@pytest.mark.timeout(500)
def test_resharding_and_resuming_change_no_bit(tmp_path: Path) -> None:
    saved, other = run_ranks(_train_and_save, 2, str(tmp_path), timeout=240)
    assert saved["damaged"] == other["damaged"]
    assert [line.count(" → ") for line in saved["damaged"]] == [2, 2]
    for sharding in ("row_wise", "table_wise", "column_wise"):
        at_save, after_load, went_on, resumed = saved[sharding]
        assert len(at_save) == 2 * 2 + 2 + 2 * 3
        assert after_load == at_save
        assert resumed == went_on
        assert went_on != at_save
    assert [line.split(" → ")[1] for line in saved["refused"]] == [
        "column-wise sharding keeps one per column shard and cannot be resharded"
    ] * 2
    for world_size in (1, 2, 3):
        for (saved_as, _), state in run_ranks(_load, world_size, str(tmp_path), timeout=240)[0].items():
            assert state == saved[saved_as][0]
