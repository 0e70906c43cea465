"""What a run directory and its checkpoints promise, in one process: commits, cadence, refusals, and no pickle."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.held import Held, whole
from pipelines.schema import Column, Schema, Task
from trainer.checkpoint import manifest
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.folder import Folder
from trainer.checkpoint.saving import save_tensors
from trainer.checkpoint.state import CheckpointState
from trainer.config_sections import Checkpoint
from trainer.errors import CheckpointError, ConfigError
from trainer.run_dir import RunDir, write_atomic

SCHEMA = Schema(
    user="user",
    columns={"user": Column(role="user", kind="id"), "city": Column(role="context", kind="id", source="log_city")},
    tasks={"click": Task(label="click")},
)


def _state(step: int, schema: Schema = SCHEMA) -> CheckpointState:
    return CheckpointState(step=step, data_schema=schema, extra={"note": [1, None, "x"]})


def _run(path: Path, **config: Any) -> tuple[RunDir, Checkpointer]:
    run_dir = RunDir(path / "run")
    run_dir.prepare("auto")
    return run_dir, Checkpointer(run_dir, Checkpoint(**config))


def _ones() -> dict[str, Held]:
    tensors = {
        "dense/w": torch.ones(4, 3),
        "dense/half": torch.ones(2, dtype=torch.bfloat16),
        "n": torch.ones((), dtype=torch.int64),
    }
    return {name: whole(tensor) for name, tensor in tensors.items()}


def _zeros() -> dict[str, Held]:
    return {name: whole(torch.zeros_like(value(held))) for name, held in _ones().items()}


def value(held: Held) -> torch.Tensor:
    return held.chunks[0].tensor


def _recommit(path: Path) -> None:
    """What an attacker who can write the directory does: COMMIT agrees with the changed files."""
    commit = json.loads((path / "COMMIT").read_text())
    commit["files"] = {name: manifest.digest(path / name).model_dump() for name in commit["files"]}
    (path / "COMMIT").write_text(json.dumps(commit))


def test_round_trip_and_files(tmp_path: Path) -> None:
    run_dir, checkpointer = _run(tmp_path)
    saved = checkpointer.save(_state(20), _ones)
    assert saved.path == run_dir.checkpoints / "step_00000020" == checkpointer.latest()
    assert sorted(file.name for file in saved.path.iterdir()) == [
        "COMMIT",
        "metadata.json",
        "rank_00000_000.safetensors",
        "state.json",
    ]
    assert saved.bytes == sum(f.stat().st_size for f in saved.path.iterdir() if f.name != "COMMIT")
    tensors = _zeros()
    assert checkpointer.load(saved.path, tensors, SCHEMA) == _state(20)
    for name, held in _ones().items():
        assert torch.equal(value(tensors[name]), value(held))


def test_tensors_that_share_memory_and_views_are_saved_alone(tmp_path: Path) -> None:
    _, checkpointer = _run(tmp_path)
    base = torch.arange(6.0)
    tensors = {"a": whole(base), "b": whole(base), "row": whole(base.view(3, 2).t())}
    path = checkpointer.save(_state(1), lambda: tensors).path
    loaded = {"a": whole(torch.zeros(6)), "b": whole(torch.zeros(6)), "row": whole(torch.zeros(2, 3))}
    checkpointer.load(path, loaded)
    assert torch.equal(value(loaded["b"]), base)
    assert torch.equal(value(loaded["row"]), base.view(3, 2).t())


def test_large_ranks_write_several_files(tmp_path: Path) -> None:
    run_dir, checkpointer = _run(tmp_path)
    path = run_dir.step_dir(1)
    named = {f"t{i}": whole(torch.full((20,), float(i))) for i in range(3)}
    save_tensors(path, named, 1, _state(1).model_dump_json(), max_file_bytes=100)
    assert len(list(path.glob("*.safetensors"))) == 3
    tensors = {name: whole(torch.zeros(20)) for name in named}
    checkpointer.load(path, tensors)
    assert all(torch.equal(value(tensors[name]), value(held)) for name, held in named.items())


class _Bomb:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.flag),))


@pytest.mark.parametrize("target", [".metadata", "rank_00000_000.safetensors", "metadata.json", "state.json", "COMMIT"])
@pytest.mark.parametrize("recommitted", [False, True])
def test_a_planted_pickle_is_never_executed(tmp_path: Path, target: str, recommitted: bool) -> None:
    _, checkpointer = _run(tmp_path)
    path = checkpointer.save(_state(1), _ones).path
    flag = tmp_path / "executed"
    (path / target).write_bytes(pickle.dumps(_Bomb(flag)))
    if recommitted and target != "COMMIT":
        _recommit(path)
    if target == ".metadata":  # a file that torch's own reader would unpickle; ours does not know it
        assert checkpointer.load(path, _zeros()).step == 1
    else:
        with pytest.raises(CheckpointError) as error:
            checkpointer.load(path, _zeros())
        assert all(line.count(" → ") == 2 for line in error.value.problems)
    assert not flag.exists()
    pickle.loads(pickle.dumps(_Bomb(flag)))
    assert flag.exists(), "the bomb works"


def test_a_changed_or_missing_file_is_named(tmp_path: Path) -> None:
    _, checkpointer = _run(tmp_path)
    path = checkpointer.save(_state(1), _ones).path
    shard = path / "rank_00000_000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    tensors = _zeros()
    with pytest.raises(CheckpointError, match=r"rank_00000_000\.safetensors has another sha256"):
        checkpointer.load(path, tensors)
    assert not value(tensors["dense/w"]).any()
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"rank_00000_000\.safetensors is missing"):
        checkpointer.load(path, _zeros())


def test_a_chunk_outside_the_directory_is_refused(tmp_path: Path) -> None:
    _, checkpointer = _run(tmp_path)
    path = checkpointer.save(_state(1), _ones).path
    index = (path / "metadata.json").read_text().replace("rank_00000_000.safetensors", "../elsewhere.safetensors")
    (path / "metadata.json").write_text(index)
    _recommit(path)
    with pytest.raises(CheckpointError, match=r"metadata\.json cannot be read"):
        checkpointer.load(path, _zeros())


def test_a_hole_in_what_was_saved_is_found(tmp_path: Path) -> None:
    _, checkpointer = _run(tmp_path)
    path = checkpointer.save(_state(1), _ones).path
    index = json.loads((path / "metadata.json").read_text())
    index["tensors"]["dense/w"]["chunks"][0]["sizes"] = [3, 3]
    (path / "metadata.json").write_text(json.dumps(index))
    _recommit(path)
    with pytest.raises(CheckpointError, match="9 of 12 values of dense/w"):
        checkpointer.load(path, _zeros())


def test_another_model_is_told_line_by_line(tmp_path: Path) -> None:
    _, checkpointer = _run(tmp_path)
    path = checkpointer.save(_state(1), _ones).path
    with pytest.raises(CheckpointError) as error:
        checkpointer.load(path, {"dense/w": whole(torch.zeros(5, 3)), "dense/new": whole(torch.zeros(1))})
    assert [line.split(": ")[1].split(" → ")[0] for line in error.value.problems] == [
        "tensor dense/w is [4, 3], the model's is [5, 3]",
        "tensor dense/new is missing",
    ]


def test_another_schema_is_told_difference_by_difference(tmp_path: Path) -> None:
    _, checkpointer = _run(tmp_path)
    path = checkpointer.save(_state(1), _ones).path
    moved = SCHEMA.model_copy(
        update={"file": "elsewhere.toml", "columns": {**SCHEMA.columns, "city": Column(role="context", kind="id")}}
    )
    assert checkpointer.load(path, _zeros(), moved).step == 1
    other = Schema(
        user="user",
        supervision="history",
        columns={
            "user": Column(role="user", kind="id"),
            "city": Column(role="context", kind="dense"),
            "age": Column(role="user", kind="dense"),
        },
    )
    with pytest.raises(CheckpointError) as error:
        checkpointer.load(path, _zeros(), other)
    assert [line.split(": ", 1)[1].split(" → ")[0] for line in error.value.problems] == [
        "schema.columns.age was not there",
        "schema.columns.city.kind was 'id' and is 'dense'",
        "schema.supervision was 'candidates' and is 'history'",
        "schema.tasks.click is gone",
    ]


def test_cadence_by_steps_and_minutes(tmp_path: Path) -> None:
    now = 0.0
    run_dir, _ = _run(tmp_path)
    checkpointer = Checkpointer(run_dir, Checkpoint(every_steps=100, every_minutes=2.0), clock=lambda: now)
    assert [step for step in range(1, 301) if checkpointer.due(step)] == [100, 200, 300]
    assert checkpointer.seconds_since_save() is None
    now = 119.0
    assert not checkpointer.due(7)
    now = 120.0
    assert checkpointer.due(7)
    checkpointer.save(_state(7), _ones)
    assert not checkpointer.due(7)
    now = 150.0
    assert not checkpointer.due(8)
    assert checkpointer.seconds_since_save() == 30.0
    off = Checkpointer(run_dir, Checkpoint(every_steps=0, every_minutes=0.0), clock=lambda: now)
    now = 1e9
    assert not any(off.due(step) for step in range(1, 1000))


def test_the_newest_stay_and_leftovers_go(tmp_path: Path) -> None:
    run_dir, checkpointer = _run(tmp_path, keep=2)
    run_dir.step_dir(5).mkdir()
    for step in (10, 20, 30):
        checkpointer.save(_state(step), _ones)
    assert [(d.step, d.complete) for d in run_dir.step_dirs()] == [(20, True), (30, True)]


def test_the_checkpoint_just_loaded_is_not_written_again(tmp_path: Path) -> None:
    run_dir, checkpointer = _run(tmp_path)
    path = checkpointer.save(_state(10), _ones).path
    before = (path / "COMMIT").stat().st_mtime_ns
    resumed = Checkpointer(run_dir, Checkpoint())
    resumed.load(path, _zeros())
    saved = resumed.save(_state(10), _zeros)
    assert (saved.path, saved.written) == (path, False)
    assert (path / "COMMIT").stat().st_mtime_ns == before


def test_an_interrupted_save_is_named_ignored_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir, checkpointer = _run(tmp_path)
    complete = checkpointer.save(_state(10), _ones).path
    broken = checkpointer.save(_state(20), _ones).path
    (broken / "COMMIT").unlink()
    with caplog.at_level("INFO"):
        assert run_dir.prepare("auto") == complete == run_dir.prepare("must")
    assert "step_00000020" in caplog.text
    with pytest.raises(CheckpointError, match="no COMMIT"):
        checkpointer.load(broken, _zeros())
    assert Checkpointer(run_dir, Checkpoint()).save(_state(20), _ones).path == run_dir.latest()
    Folder(complete).remove()
    (broken / "COMMIT").unlink()
    with pytest.raises(CheckpointError, match=r"no complete checkpoint \(without COMMIT: step_00000020\)"):
        run_dir.prepare("must")


def test_run_directory_rules(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "a" / "run")
    assert run_dir.prepare("never") is None
    run_dir.write_json(run_dir.env, {"é": 1})
    with pytest.raises(ConfigError) as error:
        run_dir.prepare("never")
    assert error.value.exit_code == 2
    assert error.value.problems[0].startswith(f"run directory {run_dir.path} holds checkpoints, consumed, env.json → ")
    assert run_dir.prepare("auto") is None
    with pytest.raises(CheckpointError, match="has no complete checkpoint"):
        run_dir.require_latest()
    with pytest.raises(CheckpointError) as missing:
        run_dir.prepare("must")
    assert missing.value.exit_code == 5
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="must be a directory"):
        RunDir(file).prepare("never")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "plan.txt"
    write_atomic(target, "old")
    with pytest.raises(ValueError):
        RunDir(tmp_path).write_json(target, float("nan"))
    assert target.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["plan.txt"]


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c.d", "e/f"]),
        st.tuples(st.sampled_from([torch.float32, torch.int64, torch.uint8]), st.lists(st.integers(0, 3), max_size=3)),
    )
)
def test_any_shapes_survive(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, tuple[torch.dtype, list[int]]]
) -> None:
    _, checkpointer = _run(tmp_path_factory.mktemp("any"))
    named = {name: torch.randint(0, 100, shape).to(dtype) for name, (dtype, shape) in shapes.items()}
    path = checkpointer.save(_state(1), lambda: {name: whole(tensor) for name, tensor in named.items()}).path
    tensors = {name: whole(torch.zeros_like(tensor)) for name, tensor in named.items()}
    checkpointer.load(path, tensors)
    for name, tensor in named.items():
        assert torch.equal(value(tensors[name]), tensor)
