"""Where one sequence happens: a few rows, a run file, a store for checkpoints, and what a run has come to there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from tests.chaos.bucket import Bucket
from tests.pipelines.rows import write_segments
from tests.trainer.runs import tiny_config
from trainer.config import dump_config
from trainer.run_dir import RunDir

# 64 rows: 14 global batches of 5 an epoch, in windows of 3; the last batch of each segment is short.
SEGMENTS = {"2026-01-01": [14, 9], "2026-01-02": [16, 8], "2026-01-03": [17]}
EPOCHS, ROWS, STEPS = 3, 192, 42
SAVED_EVERY = 4
DISK_SIZE = "16m"
TAIL_BYTES = 1 << 16


def write_scene(folder: Path, store: str) -> None:
    """Rows and run file, by paths relative to the folder: the same text in every sequence. Dropout, whose randomness
    has to be found again; shuffled; checkpoints beside the training, every second one of them a difference."""
    write_segments(folder / "rows", SEGMENTS)
    config = tiny_config(
        Path("rows"),
        data={"order": "shuffle", "epochs": EPOCHS},
        model={"dropout": 0.2},
        train={"log_every": 1},
        checkpoint={
            "every_steps": SAVED_EVERY,
            "every_minutes": 0.0,
            "store": "disk/store",
            "full_every": 2,
            "keep": 4,
        },
        launch={"watchdog_seconds": 2.0, "timeout_seconds": 30.0, "threads": 1},
        telemetry={"tables_every": 0, "live": "off", "linger_seconds": 0.0},
    )
    (folder / "run.toml").write_text(dump_config(config))


class Scene:
    """folder: of the sequence. disk: what the store is on, unless it is in a bucket."""

    def __init__(self, folder: Path, bucket: Bucket | None = None) -> None:
        self.folder, self.rows, self.disk = folder, folder / "rows", folder / "disk"
        self.store = self.disk / "store"
        self.damaged = 0  # checkpoints, so far
        self._bucket = bucket
        place = bucket.uri(folder.name, past_proxy=True) if bucket is not None else str(self.store)
        self.run_dir = RunDir(folder / "run", place)

    def require_bucket(self) -> Bucket:
        """Of a sequence that has one."""
        assert self._bucket is not None
        return self._bucket

    def files(self) -> list[Path]:
        """Of rows."""
        return sorted(self.rows.rglob("*.parquet"))

    def saved_step(self) -> int:
        """Of the newest complete checkpoint; 0 where there is none."""
        complete = [found.step for found in self.run_dir.step_dirs() if found.complete]
        return complete[-1] if complete else 0

    def saved(self) -> int:
        """Complete checkpoints."""
        return sum(found.complete for found in self.run_dir.step_dirs())


@contextlib.contextmanager
def staged(folder: Path, bucket: Bucket | None = None) -> Iterator[Scene]:
    """A scene in an empty folder; its store in the bucket, or on a small file system of its own where that is
    permitted."""
    folder.mkdir(parents=True)
    write_scene(folder, "disk/store" if bucket is None else bucket.uri(folder.name))
    scene = Scene(folder, bucket)
    scene.disk.mkdir()
    if bucket is not None or not can_mount():
        yield scene
        return
    _call("mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}", "chaos", str(scene.disk))
    try:
        yield scene
    finally:
        kept = folder / "disk.kept"  # for whoever looks at it after a failure
        shutil.copytree(scene.disk, kept)
        _call("umount", "--lazy", str(scene.disk))
        scene.disk.rmdir()
        kept.rename(scene.disk)


@lru_cache(maxsize=1)
def can_mount() -> bool:
    """Whether this process may make file systems."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(["mount", "-t", "tmpfs", "chaos", folder], capture_output=True, check=False)
        if tried.returncode == 0:
            _call("umount", "--lazy", folder)
        return tried.returncode == 0


def remount(disk: Path, how: str) -> None:
    """how: "ro" or "rw"."""
    _call("mount", "-o", f"remount,{how}", str(disk))


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Watch:
    """What a run comes to from the moment on that it is watched: what an earlier attempt left does not count."""

    def __init__(self, scene: Scene) -> None:
        self._run_dir = scene.run_dir
        self._there = {found.name for found in self._run_dir.step_dirs()}
        self._before = self._stamp()
        self._read = self._before
        self._step = 0

    def step(self) -> int:
        """The newest that is told in metrics.jsonl, 0 before the first. A resumed run takes lines back before it
        writes its own, so that the last line is never one of an earlier attempt's."""
        stamp = self._stamp()
        if stamp not in (self._before, self._read):
            self._read = stamp
            self._step = max(self._step, _last_step(self._run_dir.metrics))
        return self._step

    def is_saving(self, step: int) -> bool:
        """Whether a new checkpoint, of this step or a later one, is half written."""
        return any(not complete for complete in self._new(step))

    def has_saved(self, step: int) -> bool:
        """Whether one is complete."""
        return any(self._new(step))

    def _new(self, step: int) -> list[bool]:
        found = self._run_dir.step_dirs()
        return [each.complete for each in found if each.step >= step and each.name not in self._there]

    def _stamp(self) -> tuple[int, int]:
        try:
            status = self._run_dir.metrics.stat()
        except FileNotFoundError:
            return (0, 0)
        return (status.st_mtime_ns, status.st_size)


def _last_step(metrics: Path) -> int:
    """Of the last whole line that tells of a step."""
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            told = json.loads(line)
            return int(told["step"]) if told["kind"] == "train" else 0
    return 0
