"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import DataError


@contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """Yields a hidden folder beside `out`; on success it becomes `out` in one rename, on any error it is removed.

    Raises DataError where `out` exists and is not an empty folder: nothing of a user's is ever overwritten.
    """
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"output {out} is not empty → it must be absent or an empty folder → remove it or name another")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".unfinished", dir=out.parent))
    try:
        yield work
        work.chmod(0o777 & ~_umask())  # mkdtemp's 0700 would keep colleagues and Ray's nodes out
        os.replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
