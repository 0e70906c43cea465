"""The `checkpoint` verbs on tables that need not fit in memory, and in an object store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import fs

from embeddings.held import whole
from tests.benchmarks.memory import MemoryMeter
from tests.pipelines.s3_server import OPTIONS, s3_server
from tests.trainer.runs import differing
from tests.trainer.saved_runs import GOLDEN, GOLDEN_STEP, tensors_of
from trainer.checkpoint import manifest
from trainer.checkpoint.saving import save_tensors
from trainer.checkpoint.state import read_state
from trainer.checkpoint_verbs import verbs

MEBI = 2**20
ROWS, WIDTH = 6_000_000, 16  # 366 MiB


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """A bucket's URI, but for what is below it: {} stands for that."""
    credentials = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in credentials}
    os.environ |= credentials
    try:
        with s3_server() as address:
            uri = f"s3://verbs/{{}}?endpoint_override={address}&{OPTIONS}"
            fs.FileSystem.from_uri(uri.format("x"))[0].create_dir("verbs")
            yield uri
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def test_a_checkpoint_may_be_in_a_store(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = store.format("run/step_00000004")
    verbs.reshard(str(GOLDEN), 2, there, None)
    assert differing(tensors_of(there), tensors_of(GOLDEN_STEP)) == []
    verbs.show_list(store.format("run"), False)
    verbs.check(None, store.format("run"), None, True)
    verbs.diff(str(GOLDEN), there, str(tmp_path / "diff"), None, str(GOLDEN / "config.toml"))
    verbs.unshard(store.format("run"), str(tmp_path / "remote"), None, str(GOLDEN / "config.toml"))
    verbs.unshard(str(GOLDEN), str(tmp_path / "local"), None, None)
    said = capsys.readouterr().out
    assert said.count(": fine") == 1
    assert "dense parameters: 0 changed" in said
    assert list((tmp_path / "diff" / "rows").iterdir()) == []
    for path in (tmp_path / "local").rglob("*.*"):
        assert (tmp_path / "remote" / path.relative_to(tmp_path / "local")).read_bytes() == path.read_bytes()
    with pytest.raises(Exception, match="holds a checkpoint"):
        verbs.reshard(str(GOLDEN), 2, there, None)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_verb_holds_a_table(tmp_path: Path) -> None:
    tensors = tensors_of(GOLDEN_STEP)
    tensors["tables/item_id/weight"] = torch.from_numpy(np.random.default_rng(0).random((ROWS, WIDTH), np.float32))
    tensors["tables/item_id/momentum1"] = torch.zeros(ROWS, 1)
    state = read_state(GOLDEN_STEP, manifest.read_commit(GOLDEN_STEP)).model_dump_json()
    for name in ("a", "b"):
        folder = tmp_path / name / "checkpoints" / "step_00000004"
        save_tensors(folder, {key: whole(tensor) for key, tensor in tensors.items()}, 4, state)
        text = (GOLDEN / "config.toml").read_text()
        text = text.replace("rows = 200\nwidth = 0", f"rows = {ROWS}\nwidth = {WIDTH}")
        (tmp_path / name / "config.toml").write_text(text)
        tensors["tables/item_id/weight"][::3] += 1
    del tensors
    run = str(tmp_path / "a")
    verbs.unshard(str(GOLDEN), str(tmp_path / "warm"), None, None)
    growth = {}
    for name, call in {
        "verify": lambda: verbs.check(run, None, None, False),
        "diff": lambda: verbs.diff(run, str(tmp_path / "b"), str(tmp_path / "diff"), None, None),
        "reshard": lambda: verbs.reshard(run, 2, str(tmp_path / "resharded"), None),
        "unshard": lambda: verbs.unshard(run, str(tmp_path / "export"), None, None),
    }.items():
        with MemoryMeter() as memory:
            call()
        growth[name] = memory.growth
    print({name: round(size / MEBI) for name, size in growth.items()})
    assert max(growth.values()) < ROWS * WIDTH * 4 / 2
