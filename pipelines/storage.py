"""Paths and URIs to pyarrow file systems: the one place that knows where files are."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

COLUMNAR_SUFFIXES = (".parquet", ".parq", ".pq")


def resolve(path: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI (s3://, gs://, hdfs://, file://), and the path in it. Raises ValueError for an
    unknown scheme."""
    if "://" not in path:
        return fs.LocalFileSystem(), path
    base, query = _split_uri(path)
    file_system, prefix = _file_system(base, query)
    return file_system, prefix + urlsplit(path).path.lstrip("/")


def open_file(path: str) -> pa.NativeFile:
    """For random access. Raises FileNotFoundError, or OSError as the store gives it."""
    file_system, inner = resolve(path)
    return file_system.open_input_file(inner)


def list_files(folder: str) -> list[tuple[str, str]]:
    """(path, path relative to the folder) of every file below it, sorted; names beginning with "_" or "." are left out.

    Raises FileNotFoundError.
    """
    file_system, inner = resolve(folder)
    inner = inner.rstrip("/") or "/"
    infos = file_system.get_file_info(fs.FileSelector(inner, recursive=True))
    found = []
    for info in infos:
        relative = info.path[len(inner) :].lstrip("/")
        hidden = any(part.startswith(("_", ".")) for part in relative.split("/"))
        if info.is_file and not hidden:
            found.append((join(folder, relative), relative))
    return sorted(found)


def is_file(path: str) -> bool:
    """Whether a path names an existing file."""
    file_system, inner = resolve(path)
    return bool(file_system.get_file_info(inner).is_file)


def join(folder: str, relative: str) -> str:
    """A path below a folder; the options in a URI's query stay."""
    if "://" not in folder:
        return f"{folder.rstrip('/')}/{relative}"
    path, question, query = folder.partition("?")
    return f"{path.rstrip('/')}/{relative}{question}{query}"


def _split_uri(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}", f"?{parts.query}" if parts.query else ""


@lru_cache(maxsize=16)
def _file_system(base: str, query: str) -> tuple[fs.FileSystem, str]:
    """Made once a store: making one may ask the network for its region."""
    file_system, path = fs.FileSystem.from_uri(f"{base}/x{query}")
    return file_system, path.removesuffix("x")
