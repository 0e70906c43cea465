"""An object store that answers after a while: real Parquet footers, as many files as one likes, and no disk.

Every request (a list page of a thousand names, a look at one file, a read) waits without holding the GIL. Files are the
ends of a few real Parquet files, under as many names as asked for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.schema import Column, History, Schema, Task

PAGE = 1000
TAIL = 2**16
CHANGED_NS = 1_700_000_000_000_000_000
FIELDS = 14  # and nine columns more: 23


def log_schema() -> Schema:
    """23 columns: a user, static ids, the time, one history, candidates with a label."""
    columns = {f"field_{i}": Column(role="context", kind="id") for i in range(FIELDS)}
    columns["user"] = Column(role="user", kind="id")
    columns["time"] = Column(role="time", kind="time")
    for name in ("item", "category"):
        columns[name] = Column(role="item", kind="id", group="candidates")
        columns[f"past_{name}"] = Column(role="item", kind="id", group="history.past", shares=name)
    columns["click"] = Column(role="label", kind="dense", group="candidates")
    columns["past_action"] = Column(role="action", kind="id", group="history.past")
    columns["past_time"] = Column(role="time", kind="time", group="history.past")
    return Schema(
        user="user",
        columns=columns,
        histories={"past": History(max_length=8, time="past_time")},
        tasks={"click": Task(label="click")},
    )


def log_file(rows: int, row_group_rows: int, seed: int = 0) -> bytes:
    """One Parquet file of `log_schema`, with random ids and lists of one."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {}
    for name, spec in log_schema().columns.items():
        values = pa.array(rng.integers(0, 2, rows))
        columns[name] = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1), pa.int32()), values)
        if not spec.group:
            columns[name] = values
    out = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), out, row_group_size=row_group_rows, compression="zstd")
    return bytes(out.getvalue())


class SlowStore(fs.FileSystemHandler):
    """names: {path: which of the files it is}. seconds: that a request takes. reads, looks, pages: requests so far.

    most_at_once: requests that were under way at a time. Opening costs nothing, as in S3 where the size is known.
    light: reads are of memory, without Python, and opening takes the time of the one read that a footer needs: so that
    a benchmark measures the reader and not this class.
    """

    def __init__(self, names: dict[str, int], files: list[bytes], seconds: float, light: bool = False) -> None:
        self.names, self.seconds = names, seconds
        self.sizes = [len(content) for content in files]
        self.changed: dict[str, int] = {}
        self._tails = [content[-TAIL:] for content in files]
        self.reads = self.looks = self.pages = 0
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        self._whole = [pa.py_buffer(content) for content in files] if light else []
        self.before_read: Callable[[str], None] = lambda path: None

    def wait(self) -> None:
        """A request."""
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        time.sleep(self.seconds)
        with self._lock:
            self._at_once -= 1

    def get_type_name(self) -> str:
        return "slow"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        self.looks += len(paths)
        for _ in paths:
            self.wait()
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        folder = selector.base_dir.rstrip("/") + "/"
        found = [path for path in self.names if path.startswith(folder)]
        if not selector.recursive:
            found = [path for path in found if "/" not in path[len(folder) :]]
        if not found and not selector.allow_not_found:
            raise FileNotFoundError(selector.base_dir)
        for _ in range(-(-max(1, len(found)) // PAGE)):
            self.pages += 1
            self.wait()
        return [self._info(path) for path in found]

    def open_input_file(self, path: str) -> pa.NativeFile:
        if path not in self.names:
            raise FileNotFoundError(path)
        if self._whole:
            self.reads += 1
            self.wait()
            return pa.BufferReader(self._whole[self.names[path]])
        return pa.PythonFile(_End(self, path), mode="r")

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def read(self, path: str, offset: int, size: int) -> bytes:
        """A ranged read of the file's end."""
        self.reads += 1
        self.before_read(path)
        self.wait()
        number = self.names[path]
        begin = offset - (self.sizes[number] - len(self._tails[number]))
        assert begin >= 0, "only the ends of files are kept"
        return self._tails[number][begin : begin + size]

    def _info(self, path: str) -> fs.FileInfo:
        if path in self.names:
            changed = self.changed.get(path, CHANGED_NS)
            return fs.FileInfo(path, fs.FileType.File, size=self.sizes[self.names[path]], mtime_ns=changed)
        return fs.FileInfo(path, fs.FileType.NotFound)

    def _refuse(self, *args: Any) -> Any:
        raise NotImplementedError("this store is only read")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _refuse
    move = copy_file = open_output_stream = open_append_stream = _refuse


class _End:
    """A file object, as pyarrow wants one."""

    closed = False

    def __init__(self, store: SlowStore, path: str) -> None:
        self._store, self._path, self._at = store, path, 0
        self._size = store.sizes[store.names[path]]

    def read(self, size: int = -1) -> bytes:
        content = self._store.read(self._path, self._at, self._size - self._at if size < 0 else size)
        self._at += len(content)
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def size(self) -> int:
        return self._size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


def file_names(segments: int, files_a_segment: int, folder: str = "log") -> list[str]:
    """log/dt=00001/part-00001.parquet …"""
    return [
        f"{folder}/dt={segment:06}/part-{part:06}.parquet"
        for segment in range(segments)
        for part in range(files_a_segment)
    ]
