"""Paths and URIs to pyarrow file systems: the one place that knows where files are. docs/storage.md says it for users.

A path without "://" is local. The options of a URI's store follow a "?": `s3://logs/rows?region=eu-west-1`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from pipelines.retries import READ_RETRIES, retrying

COLUMNAR_SUFFIXES = (".parquet", ".parq", ".pq")
# Small requests at a time. An object store answers each in about 30 ms and takes hundreds at once; a disk does not.
IN_FLIGHT, IN_FLIGHT_LOCAL = 256, 16
# Parquet's own reads of column chunks: Arrow's 8 threads are meant for a disk.
IO_THREADS = 32
# So many wanted files in one folder are asked for by listing it, a request for a thousand files.
WORTH_LISTING = 8

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
_MOUNTED: dict[str, fs.FileSystem] = {}


@dataclass(frozen=True)
class File:
    """path: or URI. relative: to the folder that was listed. size: bytes. changed: nanoseconds since 1970 as the store
    tells them (local: nanoseconds; S3: whole seconds), −1 = it does not."""

    path: str
    relative: str
    size: int
    changed: int


def mount(scheme: str, file_system: fs.FileSystem) -> None:
    """From now on `scheme://PATH` is PATH in that file system, in this process: for a store that pyarrow has no URI
    for."""
    _MOUNTED[scheme] = file_system


def resolve(path: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI (s3://, gs://, hdfs://, file://), and the path in it. Raises ValueError for an
    unknown scheme."""
    if "://" not in path:
        return _local(), path
    scheme, _, rest = path.partition("://")
    inner, question, options = rest.partition("?")
    if scheme in _MOUNTED:
        return _MOUNTED[scheme], inner
    host, _, below = inner.partition("/")
    file_system, prefix = _file_system(f"{scheme}://{host}", question + options)
    return file_system, prefix + below


def is_local(path: str) -> bool:
    """Whether its file system is this machine's."""
    return isinstance(resolve(path)[0], fs.LocalFileSystem)


def open_file(path: str) -> pa.NativeFile:
    """For random access. Raises FileNotFoundError, or OSError as the store gives it."""
    file_system, inner = resolve(path)
    return file_system.open_input_file(inner)


def list_folder(folder: str, retries: int = READ_RETRIES) -> list[File]:
    """Every file below it, sorted by path; names beginning with "_" or "." are left out. Raises FileNotFoundError."""
    file_system, inner = resolve(folder)
    inner = inner.rstrip("/") or "/"
    selector = fs.FileSelector(inner, recursive=True)
    infos = retrying(lambda: file_system.get_file_info(selector), f"the list of '{folder}'", retries)
    found = []
    for info in infos:
        relative = info.path[len(inner) :].lstrip("/")
        hidden = any(part.startswith(("_", ".")) for part in relative.split("/"))
        if info.is_file and not hidden:
            found.append(File(join(folder, relative), relative, info.size, _changed(info)))
    return sorted(found, key=lambda file: file.path)


def list_files(folder: str, retries: int = READ_RETRIES) -> list[tuple[str, str]]:
    """(path, path relative to the folder) of `list_folder`."""
    return [(file.path, file.relative) for file in list_folder(folder, retries)]


def is_file(path: str, retries: int = READ_RETRIES) -> bool:
    """Whether a path names an existing file."""
    return bool(_info(path, retries).is_file)


def exists(path: str, retries: int = READ_RETRIES) -> bool:
    """Whether a path names an existing file or folder."""
    return bool(_info(path, retries).type != fs.FileType.NotFound)


def stat_files(paths: Sequence[str], retries: int = READ_RETRIES) -> list[File | None]:
    """Each file as it is now, None where there is none: folders with many of them are listed, the others asked for one
    by one, many at a time."""
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(_folder(path), []).append(path)
    known: dict[str, File] = {}
    alone: list[str] = []
    for folder, wanted in by_folder.items():
        if len(wanted) < WORTH_LISTING:
            alone += wanted
            continue
        known |= {file.path: file for file in _children(folder, retries)}
        alone += [path for path in wanted if path not in known]
    infos = map_requests(partial(_info, retries=retries), alone, not alone or is_local(alone[0]))
    for path, info in zip(alone, infos, strict=True):
        if info.is_file:
            known[path] = File(path, info.base_name, info.size, _changed(info))
    return [known.get(path) for path in paths]


def map_requests(ask: Callable[[Asked], Answer], many: Sequence[Asked], local: bool) -> list[Answer]:
    """The answers in order, as many asked at a time as the store is good for."""
    if len(many) <= 1:
        return list(map(ask, many))
    size = -(-len(many) // (2 * (IN_FLIGHT_LOCAL if local else IN_FLIGHT)))  # a task costs a tenth of a request
    tasks = [many[begin : begin + size] for begin in range(0, len(many), size)]
    return [answer for some in request_pool(local).map(lambda task: list(map(ask, task)), tasks) for answer in some]


@lru_cache(maxsize=2)
def request_pool(local: bool) -> ThreadPoolExecutor:
    """One a process and kind of store: plans of many small segments share it. Tasks in it submit none to it."""
    return ThreadPoolExecutor(IN_FLIGHT_LOCAL if local else IN_FLIGHT, "requests")


def join(folder: str, relative: str) -> str:
    """A path below a folder; the options in a URI's query stay."""
    if "://" not in folder:
        return f"{folder.rstrip('/')}/{relative}"
    path, question, query = folder.partition("?")
    return f"{path.rstrip('/')}/{relative}{question}{query}"


def _folder(path: str) -> str:
    """Of a file; the options in a URI's query stay."""
    if "://" not in path:
        return posixpath.dirname(path) or "."
    inner, question, query = path.partition("?")
    return inner.rpartition("/")[0] + question + query


def _children(folder: str, retries: int) -> list[File]:
    """Files directly in it, hidden ones too; none where there is no such folder."""
    file_system, inner = resolve(folder)
    selector = fs.FileSelector(inner or "/", recursive=False, allow_not_found=True)
    infos = retrying(lambda: file_system.get_file_info(selector), f"the list of '{folder}'", retries)
    return [
        File(join(folder, info.base_name), info.base_name, info.size, _changed(info)) for info in infos if info.is_file
    ]


def _info(path: str, retries: int) -> fs.FileInfo:
    file_system, inner = resolve(path)
    return retrying(lambda: file_system.get_file_info(inner), f"what '{path}' is", retries)


def _changed(info: fs.FileInfo) -> int:
    return -1 if info.mtime_ns is None else int(info.mtime_ns)


@lru_cache(maxsize=1)
def _local() -> fs.LocalFileSystem:
    return fs.LocalFileSystem()


@lru_cache(maxsize=16)
def _file_system(base: str, query: str) -> tuple[fs.FileSystem, str]:
    """Made once a store: making one may ask the network for its region. A client allows as many connections as Arrow
    has IO threads at that moment."""
    threads = pa.io_thread_count() if base.startswith("file:") else IO_THREADS
    pa.set_io_thread_count(IN_FLIGHT)
    try:
        file_system, path = fs.FileSystem.from_uri(f"{base}/x{query}")
    finally:
        pa.set_io_thread_count(threads)
    return file_system, path.removesuffix("x")
