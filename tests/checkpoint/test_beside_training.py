"""Checkpoints that are written while training goes on, full and as differences: each is the model as it stood at its
step, bit for bit."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.batch import Position
from pipelines.schema import Column, Schema, Task
from tests.checkpoint.live_model import ALL, LiveModel
from trainer.checkpoint import manifest, snapshot
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.folder import Folder, Location
from trainer.checkpoint.manifest import Commit
from trainer.checkpoint.reading import SavedTensors
from trainer.checkpoint.retention import keep
from trainer.checkpoint.state import CheckpointState
from trainer.config_sections import Checkpoint
from trainer.errors import CheckpointError
from trainer.run_dir import RunDir

pytestmark = pytest.mark.timeout(60)
SCHEMA = Schema(
    user="user",
    columns={"user": Column(role="user", kind="id"), "click": Column(role="label", kind="dense")},
    tasks={"click": Task(label="click")},
)
Sink = Callable[[Folder, str], AbstractContextManager[Callable[[Any], object]]]


def state_of(step: int) -> CheckpointState:
    position = Position(epoch=0, segment=step // 10, batch=step, name=f"day {step // 10}", fingerprint="f")
    return CheckpointState(step=step, data_schema=SCHEMA, position=position)


def checkpointer_of(path: Path, model: LiveModel, **config: Any) -> Checkpointer:
    run_dir = RunDir(path, config.get("store", ""))
    return Checkpointer(run_dir, Checkpoint(**config), touched=model.touched)


def read_all(path: Location) -> dict[str, torch.Tensor]:
    with SavedTensors(path) as saved:
        saved.check_files()
        return {name: saved.read(name) for name in saved.tensors}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


class Gate:
    """Holds the writer before each of its writes: `step` lets one through and waits until it stands at the next."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._turn = threading.Semaphore(0)
        self.standing = threading.Event()
        self.open = False
        original: Sink = Folder.sink

        @contextmanager
        def sink(folder: Folder, name: str) -> Iterator[Callable[[Any], object]]:
            with original(folder, name) as write:

                def held(content: Any) -> None:
                    if not self.open:
                        self.standing.set()
                        assert self._turn.acquire(timeout=30)
                    write(content)

                yield held

        monkeypatch.setattr(Folder, "sink", sink)

    def step(self) -> None:
        assert self.standing.wait(30)
        self.standing.clear()
        self._turn.release()

    def release(self) -> None:
        self.open = True
        self._turn.release()


@pytest.mark.parametrize("kind", ["full", "delta"])
def test_a_save_beside_steps_is_the_save_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The writer stands still between any two pieces of the file, and a step is taken at each."""
    monkeypatch.setattr(snapshot, "BLOCK_BYTES", 60)
    torch.manual_seed(1)
    model = LiveModel()
    checkpointer = checkpointer_of(tmp_path / "run", model, full_every=2)
    if kind == "delta":
        checkpointer.save(state_of(1), model.held)
        model.update([0, 1, 2, 5, 6, 10, 12, 13, 16])
    expected = model.whole()
    gate = Gate(monkeypatch)
    checkpointer.begin(state_of(2), model.held)
    for step in range(6):
        gate.step()
        model.update([(5 * step + k * k) % ALL for k in range(4)])
        assert checkpointer.poll() == []
    gate.release()
    (saved,) = checkpointer.wait()
    assert saved.kind == kind
    assert not same(expected, model.whole())
    assert same(read_all(saved.path), expected)


def test_a_chain_of_differences_is_every_step_as_it_was(tmp_path: Path) -> None:
    """Also after the run has been resumed in between: the chain goes on where it was."""
    torch.manual_seed(2)
    model = LiveModel()
    checkpointer = checkpointer_of(tmp_path / "run", model, full_every=3, keep=9)
    expected: dict[Path, dict[str, torch.Tensor]] = {}
    kinds = []
    for step in range(1, 9):
        if step == 6:  # another process takes over
            model = LiveModel()
            checkpointer = checkpointer_of(tmp_path / "run", model, full_every=3, keep=9)
            path = checkpointer.newest_good(checkpointer.run_dir)
            assert isinstance(path, Path)
            held = model.held()
            checkpointer.load(path, held)
            model.ids.copy_(held["id_maps/a/ids"].chunks[0].tensor)
            assert same(model.whole(), expected[path])
        model.update([step, (step * 5) % ALL, (step * 7) % ALL])
        now = model.whole()
        checkpointer.begin(state_of(step), model.held)
        model.update([step, (step * 3) % ALL])  # before it is known to be written
        for saved in checkpointer.wait():
            expected[saved.path] = now  # type: ignore[index]
            kinds.append(saved.kind)
    assert kinds == ["full", "delta", "delta", "full", "delta", "delta", "full", "delta"]
    for path, then in expected.items():
        assert same(read_all(path), then), path
        loaded = LiveModel().held()
        checkpointer.load(path, loaded)
        assert all(torch.equal(torch.cat([c.tensor for c in loaded[n].chunks], -1), then[n]) for n in then)
    sizes = {path.name: manifest.read_commit(path).total_bytes() for path in expected}
    assert sizes["step_00000002"] < sizes["step_00000001"]


def test_an_id_map_that_changed_a_little_is_little(tmp_path: Path) -> None:
    before = torch.zeros(8, 100, dtype=torch.int64)
    after = before.clone()
    after[3, 7], after[5, 99] = 1, 2
    model = LiveModel()
    checkpointer = checkpointer_of(tmp_path / "run", model, full_every=5)
    model.ids = before
    checkpointer.save(state_of(1), model.held)
    model.ids = after
    path = checkpointer.save(state_of(2), model.held).path
    with SavedTensors(path) as saved:
        (chunk,) = saved.tensors["id_maps/a/ids"].chunks
        assert chunk.positions
        assert torch.equal(saved.read("id_maps/a/ids"), after)
        assert torch.equal(saved.read("id_maps/a/ids", (2, 0), (3, 100)), after[2:5])


@pytest.mark.parametrize("kind", ["full", "delta"])
def test_a_full_disk_is_said_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    model = LiveModel()
    checkpointer = checkpointer_of(tmp_path / "run", model, full_every=2 if kind == "delta" else 1)
    good = checkpointer.save(state_of(1), model.held).path
    expected = model.whole()
    model.update([3, 4])

    @contextmanager
    def full(folder: Folder, name: str) -> Iterator[Callable[[Any], object]]:
        def write(content: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        yield write

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "sink", full)
        checkpointer.begin(state_of(2), model.held)
        while not checkpointer.failed:
            model.update([5])  # goes on
        assert checkpointer.poll() == []
        with pytest.raises(CheckpointError, match=r"No space left on device\) → .* → make room"):
            checkpointer.begin(state_of(3), model.held)
    assert [found.name for found in checkpointer.run_dir.step_dirs()] == ["step_00000001"]
    assert same(read_all(good), expected)


def test_the_next_one_waits_for_the_one_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = LiveModel()
    checkpointer = checkpointer_of(tmp_path / "run", model)
    gate = Gate(monkeypatch)
    checkpointer.begin(state_of(1), model.held)
    assert gate.standing.wait(30)
    threading.Timer(0.2, gate.release).start()
    with caplog.at_level("INFO"):
        stalled = checkpointer.begin(state_of(2), model.held)
    assert stalled >= 0.1
    assert "checkpoint of step 1 is still being written" in caplog.text
    assert [saved.step for saved in checkpointer.wait()] == [1, 2]


# --- damage ---------------------------------------------------------------------------------------------------------


def _flip(path: Path, name: str = "rank_00000_000.safetensors") -> None:
    content = bytearray((path / name).read_bytes())
    content[-1] ^= 1
    (path / name).write_bytes(content)


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Checkpointer, list[Path]]:
    """full 1, delta 2, delta 3, full 4, delta 5."""
    model = LiveModel()
    checkpointer = checkpointer_of(tmp_path / "run", model, full_every=3, keep=9)
    paths = []
    for step in range(1, 6):
        model.update([step, step + 1])
        path = checkpointer.save(state_of(step), model.held).path
        assert isinstance(path, Path)
        paths.append(path)
    return checkpointer, paths


def test_damaged_ones_are_named_and_the_newest_good_one_is_used(
    chain: tuple[Checkpointer, list[Path]], caplog: pytest.LogCaptureFixture
) -> None:
    checkpointer, paths = chain
    assert checkpointer.newest_good(checkpointer.run_dir) == paths[4]
    _flip(paths[4])
    assert checkpointer.newest_good(checkpointer.run_dir) == paths[3]
    assert "step_00000005: file rank_00000_000.safetensors has another sha256" in caplog.text
    (paths[3] / "rank_00000_000.safetensors").unlink()  # the base of 5 as well
    assert checkpointer.newest_good(checkpointer.run_dir) == paths[2]
    (paths[2] / "COMMIT").unlink()  # half-written
    assert checkpointer.newest_good(checkpointer.run_dir) == paths[1]
    _flip(paths[0], "metadata.json")  # a broken base breaks the chain
    with pytest.raises(CheckpointError) as none_good:
        checkpointer.newest_good(checkpointer.run_dir)
    assert all(line.count(" → ") == 2 for line in none_good.value.problems)
    assert any("step_00000001: file metadata.json" in line for line in none_good.value.problems)


def test_a_difference_is_read_over_its_own_base_only(chain: tuple[Checkpointer, list[Path]]) -> None:
    checkpointer, paths = chain
    commit = paths[3] / "COMMIT"
    commit.write_text(commit.read_text() + "\n")  # as good a checkpoint, but another
    with pytest.raises(CheckpointError, match="its base step_00000004 is not the one it was written for"):
        checkpointer.load(paths[4], LiveModel().held())
    shutil.rmtree(paths[3])
    with pytest.raises(CheckpointError, match="its base step_00000004 has no COMMIT"):
        checkpointer.load(paths[4], LiveModel().held())
    assert checkpointer.newest_good(checkpointer.run_dir) == paths[2]


def test_a_newer_format_is_refused_not_passed_over(chain: tuple[Checkpointer, list[Path]]) -> None:
    checkpointer, paths = chain
    commit = paths[4] / "COMMIT"
    commit.write_text(commit.read_text().replace('"format_version": 2', '"format_version": 3, "of_later": 1'))
    with pytest.raises(CheckpointError, match="format 3 → this version reads formats 1, 2"):
        checkpointer.newest_good(checkpointer.run_dir)


# --- what stays -----------------------------------------------------------------------------------------------------


def _commits(*steps: tuple[int, str, float, int]) -> dict[str, Commit]:
    """(step, segment, its NE, step of its base or 0)."""
    return {
        f"step_{step}": Commit(
            format_version=2,
            step=step,
            files={},
            segment=segment,
            scores={"click.ne": ne} if ne else {},
            base=manifest.Base(name=f"step_{base}", sha256="") if base else None,
        )
        for step, segment, ne, base in steps
    }


def _kept(commits: dict[str, Commit], **config: Any) -> list[int]:
    return sorted(commits[name].step for name in keep(commits, Checkpoint(**config), "click"))


def test_what_stays() -> None:
    commits = _commits(
        (1, "mon", 0.9, 0), (2, "mon", 0.7, 1), (3, "tue", 0.8, 0), (4, "tue", 0.0, 3), (5, "wed", 0.95, 4)
    )
    assert _kept(commits, keep=1) == [3, 4, 5], "a base in use stays"
    assert _kept(commits, keep=1, keep_best=1) == [1, 2, 3, 4, 5]
    assert _kept(commits, keep=1, keep_best=1, best="click.auc") == [3, 4, 5]
    assert _kept(commits, keep=1, keep_segments=3) == [1, 2, 3, 4, 5]
    loose = _commits(
        (1, "mon", 0.9, 0), (2, "mon", 0.7, 0), (3, "tue", 0.8, 0), (4, "tue", 0.0, 0), (5, "wed", 0.95, 0)
    )
    assert _kept(loose, keep=1) == [5]
    assert _kept(loose, keep=2, keep_best=2) == [2, 3, 4, 5]
    assert _kept(loose, keep=1, keep_segments=3) == [2, 4, 5]


def test_retention_removes_differences_before_bases(tmp_path: Path) -> None:
    model = LiveModel()
    checkpointer = checkpointer_of(tmp_path / "run", model, full_every=3, keep=2)
    there = []
    for step in range(1, 8):
        model.update([step])
        checkpointer.save(state_of(step), model.held)
        there.append([found.step for found in checkpointer.run_dir.step_dirs()])
    assert there == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [4, 5], [4, 5, 6], [4, 5, 6, 7]]
