"""Checkpoints in an object store: the same ones, atomic by COMMIT alone, found by every verb that the run's config.toml
leads there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.storage import join, resolve
from tests.checkpoint.live_model import LiveModel
from tests.checkpoint.test_beside_training import checkpointer_of, read_all, same, state_of
from tests.pipelines.rows import write_segments
from tests.pipelines.s3_server import OPTIONS, s3_server, write_object
from tests.trainer.runs import Run, differing, saved_tensors, tiny_config, train_all
from trainer.checkpoint.folder import Folder, below, name_of, sibling, spoken, step_dirs
from trainer.errors import CheckpointError, ConfigError
from trainer.run_dir import RunDir

pytestmark = pytest.mark.timeout(170)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """URI of a bucket in a server of its own."""
    with s3_server() as address:  # ranks are forked from a process that an environment set here would not reach
        uri = f"s3://any:secret@checkpoints?endpoint_override={address}&{OPTIONS}"
        store, inner = resolve(uri)
        store.create_dir(inner)
        yield uri


def test_locations() -> None:
    assert name_of("s3://b/run/step_00000001?region=x") == "step_00000001" == name_of(Path("a/step_00000001"))
    assert below("s3://b/run?region=x", "step_1") == "s3://b/run/step_1?region=x"
    assert sibling("s3://b/run/step_2?region=x", "step_1") == "s3://b/run/step_1?region=x"
    assert str(Folder("file:///tmp/x/step_1")) == "file:///tmp/x/step_1"
    assert spoken("s3://key:secret@b/run/step_1?region=x") == "s3://b/run/step_1"


def test_a_chain_in_a_bucket(tmp_path: Path, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    store = join(bucket, "chain")
    assert step_dirs(store) == []
    model = LiveModel()
    checkpointer = checkpointer_of(tmp_path / "run", model, store=store, full_every=3, keep=2)
    expected = {}
    for step in range(1, 7):
        model.update([step, 2 * step])
        then = model.whole()
        checkpointer.begin(state_of(step), model.held)
        model.update([step])
        expected[checkpointer.wait()[0].step] = then
    found = step_dirs(store)
    assert [(f.step, f.complete) for f in found] == [(4, True), (5, True), (6, True)]
    for step_dir in found:
        assert same(read_all(step_dir.path), expected[step_dir.step])
    loaded = LiveModel()
    checkpointer.load(found[-1].path, loaded.held())
    assert checkpointer.newest_good(checkpointer.run_dir) == found[-1].path
    name = "rank_00000_000.safetensors"
    content = bytearray(Folder(found[-1].path).read(name))
    content[-1] ^= 1
    write_object(below(found[-1].path, name), bytes(content))  # type: ignore[arg-type]
    assert checkpointer.newest_good(checkpointer.run_dir) == found[-2].path
    assert "step_00000006: file rank_00000_000.safetensors has another sha256" in caplog.text
    file_system, inner = resolve(str(below(found[-2].path, "COMMIT")))
    file_system.delete_file(inner)
    assert checkpointer.newest_good(checkpointer.run_dir) == found[-3].path
    assert checkpointer.run_dir.latest() == found[-1].path
    with pytest.raises(CheckpointError, match="its base step_00000005 has no COMMIT"):
        checkpointer.load(found[-1].path, loaded.held())


def test_a_run_whose_disk_is_lost_goes_on_from_its_bucket(tmp_path: Path, bucket: str) -> None:
    store = join(bucket, "run")
    rows = write_segments(tmp_path / "rows", {"1": [12], "2": [9]})
    keeps = {"store": store, "every_steps": 1, "full_every": 4}
    whole = Run(tiny_config(rows), tmp_path / "whole")
    cut = tiny_config(rows, checkpoint=keeps, train={"max_steps": 3})
    train_all([whole, Run(cut, tmp_path / "cut")], 1)
    shutil.rmtree(tmp_path / "cut")
    with pytest.raises(ConfigError, match=r"holds step_00000003 → a store is one run's alone"):
        RunDir(tmp_path / "cut", store).prepare("never")
    shutil.rmtree(tmp_path / "cut")
    uncut = tiny_config(rows, checkpoint=keeps)
    train_all([Run(uncut, tmp_path / "cut", "must")], 1)
    assert RunDir(tmp_path / "cut").latest() == below(store, "step_00000005")  # found by its config.toml
    assert differing(saved_tensors(tmp_path / "cut"), saved_tensors(tmp_path / "whole")) == []
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert "secret" not in (tmp_path / "cut" / "train.log").read_text()
    kinds = [line["checkpoint_kind"] for line in lines if line["kind"] == "checkpoint"]
    assert kinds == ["delta", "full"]
    assert all(line["stall_seconds"] > 0 for line in lines if line["kind"] == "checkpoint")
