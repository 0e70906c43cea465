"""Checkpoints, spoiled: values of COMMIT, metadata.json, state.json and of the tensors' headers, and bytes of all
files; with hashes that no longer agree, or made to agree as whoever can write the store could; through `checkpoint
list`, `verify` and `reshard`, and loading as a run does that goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from embeddings.held import Held, whole
from pipelines.schema import Column, Schema, Task
from tests.checkpoint.live_model import LiveModel
from tests.security.mutations import BEYOND_INT64, spoiled, spoiled_bytes, values
from tests.security.watched import outcome
from tests.trainer.saved_runs import GOLDEN, GOLDEN_STEP, save, tensors_of
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.state import CheckpointState
from trainer.cli import cli
from trainer.config_sections import Checkpoint
from trainer.run_dir import RunDir

SMALL = Schema(
    user="user", columns={"user": Column(role="user", kind="id")}, tasks={"click": Task(label="click")}
)  # fmt: skip
JSON_FILES = ("COMMIT", "metadata.json", "state.json")
TENSORS = "rank_00000_000.safetensors"
ODD = st.one_of(values, st.sampled_from(BEYOND_INT64))


@dataclass(frozen=True)
class Case:
    """run: "golden" (one of format 1, one of format 2) or "chain" (a full one, a difference). file: of its `step`, with
    content. recommit: hashes are made to agree."""

    run: str
    step: int
    file: str
    content: bytes
    recommit: bool


STEPS = {"golden": (4, 5), "chain": (1, 2)}
_files: dict[tuple[str, int, str], bytes] = {}


def prepare(folder: Path) -> None:
    """The runs whose checkpoints are spoiled; they are fine as they are."""
    torch.manual_seed(1)
    golden, chain = folder / "good" / "golden", folder / "good" / "chain"
    shutil.copytree(GOLDEN, golden)
    save(golden / "checkpoints" / "step_00000005", tensors_of(GOLDEN_STEP), step=5)
    model, run_dir = LiveModel(), RunDir(chain)
    run_dir.prepare("auto")
    checkpointer = Checkpointer(run_dir, Checkpoint(full_every=2, mode="sync"), touched=model.touched)
    for step in STEPS["chain"]:
        model.update([step, step + 1])
        checkpointer.save(CheckpointState(step=step, data_schema=SMALL), model.held)
    for run, steps in STEPS.items():
        for step in steps:
            for file in (*JSON_FILES, TENSORS):
                path = folder / "good" / run / "checkpoints" / f"step_{step:08d}" / file
                _files[run, step, file] = path.read_bytes()
    assert "base" in json.loads(_files["chain", 2, "COMMIT"])
    wanted.cache_clear()
    wanted(folder / "good")


def cases() -> st.SearchStrategy[Case]:
    """After `prepare`."""
    return st.one_of([_of_file(*key) for key in _files])


@st.composite
def _of_file(draw: st.DrawFn, run: str, step: int, file: str) -> Case:
    content = _files[run, step, file]
    recommit = draw(st.integers(0, 3)) > 0
    if draw(st.integers(0, 4)) == 0:
        content = draw(spoiled_bytes(content))
    elif file == TENSORS:
        length = int.from_bytes(content[:8], "little")
        text = json.dumps(draw(spoiled(json.loads(content[8 : 8 + length]), odd=ODD))).encode()
        content = len(text).to_bytes(8, "little") + text + content[8 + length :]
    else:
        content = json.dumps(draw(spoiled(json.loads(content), odd=ODD))).encode()
    return Case(run, step, file, content, recommit)


def check(case: Case, folder: Path, codes: Counter[int] | None = None) -> None:
    """Every way in which a checkpoint is read."""
    root = folder / "case"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    run = root / "run"
    shutil.copytree(folder / "good" / case.run, run)
    path = run / "checkpoints" / f"step_{case.step:08d}"
    (path / case.file).write_bytes(case.content)
    if case.recommit:
        _recommit(run, case)
    for number, command in enumerate(_commands(run, path, root, wanted(folder / "good")[case.run])):
        code = outcome(command, root, codes)
        assert code != 0 or number != 3 or (root / "out").is_dir()


def _commands(run: Path, path: Path, root: Path, tensors: dict[str, Held]) -> list[Callable[[], Any]]:
    def called(*arguments: str) -> Callable[[], Any]:
        return lambda: cli.main(["checkpoint", *arguments], prog_name="tokenformer", standalone_mode=False)

    def load() -> None:
        run_dir = RunDir(run)
        checkpointer = Checkpointer(run_dir, Checkpoint())
        found = checkpointer.newest_good(run_dir)
        if found is not None:
            checkpointer.load(found, tensors)

    return [
        called("list", "--run", str(run)),
        called("list", "--run", str(run), "--json"),
        called("verify", "--run", str(run), "--all"),
        called("reshard", str(path), "--world-size", "2", "--out", str(root / "out")),
        load,
    ]


@lru_cache(maxsize=1)
def wanted(good: Path) -> dict[str, dict[str, Held]]:
    """What a run that goes on asks its checkpoint for."""
    found = {}
    for run, steps in STEPS.items():
        tensors = tensors_of(good / run / "checkpoints" / f"step_{steps[-1]:08d}")
        found[run] = {name: whole(torch.zeros_like(tensor)) for name, tensor in tensors.items()}
    return found


def _recommit(run: Path, case: Case) -> None:
    """What an attacker who can write the store does: COMMIT agrees with the files, and the difference with its base."""
    base = b""
    for step in STEPS[case.run]:
        path = run / "checkpoints" / f"step_{step:08d}"
        try:
            commit = json.loads((path / "COMMIT").read_bytes())
            if not (step == case.step and case.file == "COMMIT"):
                for name in commit["files"]:
                    content = (path / name).read_bytes()
                    commit["files"][name] = {
                        "bytes": len(content),
                        "sha256": hashlib.sha256(content).hexdigest(),
                    }
            if base and commit.get("base"):
                commit["base"]["sha256"] = hashlib.sha256(base).hexdigest()
            (path / "COMMIT").write_text(json.dumps(commit))
        except (ValueError, TypeError, KeyError, AttributeError, OSError):  # COMMIT itself is spoiled: it stays so
            pass
        base = (path / "COMMIT").read_bytes()
