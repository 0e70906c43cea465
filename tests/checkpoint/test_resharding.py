"""Saved at two ranks, loaded at one, two and three and under another sharding: weights and optimizer states bit for
bit."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.held import LocalChunk, whole
from pipelines.batch import Position
from pipelines.schema import Column, Schema
from tests.distributed.ranks import run_ranks
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.manifest import TensorRecord
from trainer.checkpoint.row_states import read_row_state
from trainer.checkpoint.state import CheckpointState
from trainer.config_sections import Checkpoint
from trainer.errors import CheckpointError
from trainer.run_dir import RunDir

SCHEMA = Schema(user="user", columns={"user": Column(role="user", kind="id")})
SHARDINGS = ("row_wise", "table_wise", "column_wise")
POSITION = Position(epoch=0, segment=1, batch=7, name="dt=2026-11-20", fingerprint="abc")


def _checkpointer(folder: str) -> Checkpointer:
    run_dir = RunDir(folder)
    return Checkpointer(run_dir, Checkpoint())


def _train_and_save(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """{sharding: [state when saved, the same after load, state one step later, the loaded one's after that step]}."""
    from tests.checkpoint.sharded_model import Sharded

    found: dict[str, Any] = {}
    for sharding in SHARDINGS:
        checkpointer = _checkpointer(f"{folder}/{sharding}")
        trained = Sharded(sharding, seed=0)
        for step in range(3):
            trained.step(step)
        state = CheckpointState(step=3, examples=24, position=POSITION, data_schema=SCHEMA, world_size=world_size)
        saved = checkpointer.save(state, trained.tensors)
        assert not rank or saved.path == checkpointer.latest()
        at_save = trained.gathered()
        trained.step(3)
        loaded = Sharded(sharding, seed=1)
        assert checkpointer.load(saved.path, loaded.tensors(), SCHEMA) == state
        after_load = loaded.gathered()
        loaded.step(3)
        found[sharding] = (at_save, after_load, trained.gathered(), loaded.gathered())
    found["damaged"] = _failures_on_one_rank(rank, folder)
    return found


def _failures_on_one_rank(rank: int, folder: str) -> list[str]:
    """A file that one rank finds damaged, a directory that one cannot make: errors on every rank, never a hang."""
    path = Path(f"{folder}/damaged/checkpoints/step_00000003")
    if rank == 0:
        shutil.copytree(f"{folder}/column_wise", f"{folder}/damaged")
        with (path / "rank_00001_000.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"!")
        (Path(folder) / "blocked").mkdir()
        (Path(folder) / "blocked" / "checkpoints").write_text("a file")
    torch.distributed.barrier()
    with pytest.raises(CheckpointError, match="has another sha256") as damaged:
        _checkpointer(f"{folder}/damaged").load(path, {})
    with pytest.raises(CheckpointError, match="must be writable") as blocked:
        _checkpointer(f"{folder}/blocked").save(
            CheckpointState(step=1, data_schema=SCHEMA), lambda: {"w": whole(torch.ones(2))}
        )
    return damaged.value.problems + blocked.value.problems + _failing_beside_training(rank, folder)


def _failing_beside_training(rank: int, folder: str) -> list[str]:
    """Rank 1 cannot write: the next save says so on both, and the run has no such checkpoint."""
    from tests.checkpoint.live_model import LiveModel
    from trainer.checkpoint.folder import Folder

    model = LiveModel()
    background = torch.distributed.new_group(backend="gloo")
    run_dir = RunDir(f"{folder}/full")
    checkpointer = Checkpointer(run_dir, Checkpoint(), touched=model.touched, background=background)
    assert checkpointer.is_async
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:

            def full(self: Folder, name: str) -> Any:
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(Folder, "sink", full)
        checkpointer.begin(CheckpointState(step=1, data_schema=SCHEMA), model.held)
        model.update([1, 2])
        with pytest.raises(CheckpointError, match=r"rank_00001_000\.safetensors cannot be written") as failed:
            checkpointer.begin(CheckpointState(step=2, data_schema=SCHEMA), model.held)
    torch.distributed.barrier()  # rank 0 has removed what there was
    assert run_dir.step_dirs() == []
    return failed.value.problems


def _load(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """{(saved as, loaded as): state}."""
    from tests.checkpoint.sharded_model import Sharded

    found: dict[str, Any] = {}
    for saved_as in SHARDINGS:
        checkpointer = _checkpointer(f"{folder}/{saved_as}")
        path = checkpointer.latest()
        assert path
        for loaded_as in SHARDINGS:
            model = Sharded(loaded_as, seed=2)
            state = checkpointer.load(path, model.tensors(), SCHEMA)
            assert (state.step, state.position, state.world_size) == (3, POSITION, 2)
            found[saved_as, loaded_as] = model.gathered()
    return found


def _as_seen_by(state: dict[str, Any], saved_as: str, loaded_as: str) -> dict[str, Any]:
    """What loading should give: all of it to the bit, but for row-wise states where the column shards differ in
    number, by the rule of row_states."""
    if (saved_as == "column_wise") == (loaded_as == "column_wise"):
        return state
    expected = dict(state)
    for name in ("tables/user/momentum1", "tables/item/momentum1"):
        rows = torch.tensor(state[name])
        if saved_as == "column_wise":
            expected[name] = (rows[:, :1] + 0.5 * (rows[:, 1:] - rows[:, :1])).tolist()
        else:
            expected[name] = rows.expand(-1, 2).tolist()
    return expected


@pytest.mark.timeout(500)
def test_any_plan_and_world_size_loads_what_any_other_saved(tmp_path: Path) -> None:
    saved, other = run_ranks(_train_and_save, 2, str(tmp_path), timeout=240)
    assert saved["damaged"] == other["damaged"]
    assert [line.count(" → ") for line in saved["damaged"]] == [2, 2, 2]
    for sharding in SHARDINGS:
        at_save, after_load, went_on, resumed = saved[sharding]
        assert len(at_save) == 2 * 2 + 2 + 2 * 3
        assert after_load == at_save
        assert resumed == went_on
        assert went_on != at_save
    for world_size in (1, 2, 3):
        for (saved_as, loaded_as), state in run_ranks(_load, world_size, str(tmp_path), timeout=240)[0].items():
            assert state == _as_seen_by(saved[saved_as][0], saved_as, loaded_as), (world_size, saved_as, loaded_as)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31))
def test_row_states_under_another_number_of_column_shards(before: int, after: int, seed: int) -> None:
    """Against columns written out: a state of p shards as 60 columns, averaged over each new shard's columns."""
    states = torch.rand(5, before, generator=torch.Generator().manual_seed(seed)) * 10
    found = reshaped(states, after)
    columns = states.double().repeat_interleave(60 // before, dim=1)
    torch.testing.assert_close(found.double(), columns.view(5, after, -1).mean(2), rtol=1e-6, atol=0)
    if after % before == 0:
        assert torch.equal(reshaped(found, before), states), "split and joined again: bit for bit"


def reshaped(states: torch.Tensor, shards: int) -> torch.Tensor:
    class Saved:
        def __init__(self) -> None:
            self.tensors = {"tables/t/momentum1": TensorRecord(dtype="float32", size=list(states.shape), chunks=[])}

        def read(self, name: str, offsets: tuple[int, int], sizes: tuple[int, int]) -> torch.Tensor:
            return states[offsets[0] : offsets[0] + sizes[0], offsets[1] : offsets[1] + sizes[1]]

    chunk = LocalChunk((0, 0), torch.full((len(states), shards), torch.nan))
    read_row_state(Saved(), "tables/t/momentum1", chunk, shards)  # type: ignore[arg-type]
    return chunk.tensor
