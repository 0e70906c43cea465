"""One checkpoint's folder, on a disk or in an object store; and which there are in a place.

On a disk a file is replaced whole (temporary file, fsync, rename). An object appears when its upload ends, so nothing
is renamed there: COMMIT, written last, is what makes a checkpoint one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from pipelines import storage
from pipelines.retries import READ_RETRIES, retrying

COMMIT = "COMMIT"
PIECE = 1 << 23  # bytes read at a time where a whole file goes by
_KEYS = re.compile(r"://[^/@]*@")
_STEP_DIR = re.compile(r"step_(\d{8,})")

Location = Path | str  # a Path on a disk that every rank sees, else a URI
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class StepDir:
    """A folder that is named like a checkpoint. complete: it holds a COMMIT file."""

    path: Location
    step: int
    complete: bool

    @property
    def name(self) -> str:
        return name_of(self.path)


def name_of(location: Location) -> str:
    """The last part of a path or URI, without the options of its store."""
    return str(location).partition("?")[0].rstrip("/").rpartition("/")[2]


def spoken(location: Location) -> str:
    """For messages: without the options of its store, and without the keys that a URI may hold."""
    return _KEYS.sub("://", str(location).partition("?")[0])


def step_name(step: int) -> str:
    """Of the folder of a step's checkpoint."""
    return f"step_{step:08d}"


def below(location: Location, name: str) -> Location:
    """A path or URI below another."""
    return location / name if isinstance(location, Path) else storage.join(location, name)


def sibling(location: Location, name: str) -> Location:
    """Another folder beside it."""
    if isinstance(location, Path):
        return location.parent / name
    path, question, query = location.partition("?")
    return f"{path.rstrip('/').rpartition('/')[0]}/{name}{question}{query}"


def located(place: str) -> Location:
    """What a user wrote: a URI stays one, a path is made absolute."""
    if "://" not in place:
        return Path(place).absolute()
    return Path(place.removeprefix("file://")) if place.startswith("file://") else place


def step_dirs(place: Location) -> list[StepDir]:
    """The checkpoints in a place, oldest step first; none where there is no such place."""
    if isinstance(place, Path):
        if not place.is_dir():
            return []
        named = ((path, _STEP_DIR.fullmatch(path.name)) for path in place.iterdir())
        local = [StepDir(path, int(match[1]), (path / COMMIT).is_file()) for path, match in named if match]
        return sorted(local, key=lambda found: found.step)
    store, inner = storage.resolve(place)
    selector = fs.FileSelector(inner.rstrip("/"), recursive=False, allow_not_found=True)
    listed = _asked(lambda: store.get_file_info(selector), place)
    matches = [match for info in listed if (match := _STEP_DIR.fullmatch(info.base_name))]
    commits = [f"{inner.rstrip('/')}/{match[0]}/{COMMIT}" for match in matches]
    infos = _asked(lambda: store.get_file_info(commits), place) if commits else []
    found = [
        StepDir(below(place, match[0]), int(match[1]), bool(info.is_file))
        for match, info in zip(matches, infos, strict=True)
    ]
    return sorted(found, key=lambda step_dir: step_dir.step)


class Folder:
    """Of one checkpoint. Names are plain: nothing outside it can be named."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.name = name_of(location)
        self._local = location if isinstance(location, Path) else None
        self._store, self._inner = storage.resolve(str(location))
        self._inner = self._inner.rstrip("/")

    def __str__(self) -> str:
        return spoken(self.location)

    def create(self) -> None:
        """Makes it, empty: what an interrupted save left there goes."""
        self.remove()
        if self._local is not None:
            self._local.mkdir(parents=True)

    def remove(self) -> None:
        """COMMIT first: what is half removed is not complete."""
        if self._local is not None:
            if self._local.exists():
                (self._local / COMMIT).unlink(missing_ok=True)
                shutil.rmtree(self._local)
            return
        if self._store.get_file_info(f"{self._inner}/{COMMIT}").is_file:
            self._store.delete_file(f"{self._inner}/{COMMIT}")
        if self._store.get_file_info(self._inner).type != fs.FileType.NotFound:
            self._store.delete_dir(self._inner)

    def write(self, name: str, content: bytes) -> None:
        """A whole small file, durable when this returns, and never half of it to be seen."""
        if self._local is None:
            with self._store.open_output_stream(f"{self._inner}/{name}") as out:
                out.write(content)
            return
        part = self._local / f".{name}.part"
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._local / name)
        self.settle()

    @contextmanager
    def sink(self, name: str) -> Iterator[Callable[[Any], object]]:
        """Yields what writes bytes to a new file, from its start to its end; durable once left."""
        if self._local is None:
            with self._store.open_output_stream(f"{self._inner}/{name}") as out:
                yield lambda content: out.write(pa.py_buffer(content))
            return
        with (self._local / name).open("wb", buffering=0) as file:
            yield lambda content: _write_all(file, content)
            os.fsync(file.fileno())

    def settle(self) -> None:
        """Makes the names in it, and its own, durable."""
        for folder in (self._local, self._local.parent) if self._local is not None else ():
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def read(self, name: str) -> bytes:
        """A whole file. Raises FileNotFoundError or OSError."""
        with self.open(name) as file:
            content: bytes = file.read()
            return content

    def size(self, name: str) -> int | None:
        """Of a file in bytes, None where there is none."""
        if self._local is not None:
            path = self._local / name
            return path.stat().st_size if path.is_file() else None
        info = _asked(lambda: self._store.get_file_info(f"{self._inner}/{name}"), str(self))
        return int(info.size) if info.is_file else None

    def open(self, name: str) -> pa.NativeFile:
        """For random access. Raises FileNotFoundError or OSError."""
        return _asked(lambda: self._store.open_input_file(f"{self._inner}/{name}"), f"{self}/{name}")


def _write_all(file: Any, content: Any) -> None:
    """A raw write may take less than it is given."""
    left = memoryview(content).cast("B")
    while len(left):
        left = left[file.write(left) :]


def _asked(call: Callable[[], Answer], what: str) -> Answer:
    return retrying(call, what, READ_RETRIES)
