"""A folder of prepared segments, and how it changes: whole segments, each old or new at any moment.

    OUT/SEGMENT/part-NNNNN.parquet  rows by (hash of user, time)       OUT/SEGMENT/_segment.json  what they are
    OUT/_prepare.json               settings, files of the log read    OUT/_state/SEGMENT/        users' tails after it
    OUT/_new/                       what is being made                 OUT/_journal.json          what is being swapped

New segments are made below `_new`. Writing the journal decides: then each is exchanged with the old one by one rename,
`_prepare.json` is written, and the journal goes. A journal found at the start is carried out to its end; `_new` without
one is thrown away. Names beginning with "_" are no reader's business.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.errors import DataError

log = logging.getLogger(__name__)

MANIFEST, SEGMENT_FILE, JOURNAL, NEW, STATE = "_prepare.json", "_segment.json", "_journal.json", "_new", "_state"
RENAME_EXCHANGE = 2
AT_FDCWD = -100


def is_prepared(out: Path) -> bool:
    """Whether `data prepare` made this folder."""
    return (out / MANIFEST).is_file() or (out / JOURNAL).is_file()


@contextmanager
def opened(out: Path) -> Iterator[Path]:
    """Yields an empty folder for new segments of `out`, for one process at a time; a swap that was cut off is finished
    first. Raises DataError where another process is at it."""
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"'{out}' is being prepared by another process → one at a time → wait for it") from None
        recover(out)
        (out / NEW).mkdir()
        yield out / NEW
    finally:
        if not (out / JOURNAL).exists():
            shutil.rmtree(out / NEW, ignore_errors=True)
        os.close(descriptor)


def recover(out: Path) -> None:
    """Finishes a swap that was cut off, or throws away what was not decided."""
    if (out / JOURNAL).is_file():
        log.warning("an earlier `data prepare` of %s was cut off while it swapped segments: finishing it", out)
        _carry_out(out)
    shutil.rmtree(out / NEW, ignore_errors=True)


def commit(out: Path, journal: dict[str, Any]) -> None:
    """Puts what is below `_new` in place.

    journal: {"put": {segment: version}, "drop": [segment], "touch": {segment: its new _segment.json}, "states": {"put":
    [name], "keep": [name]}, "manifest": …}.
    """
    write_json(out / JOURNAL, journal)
    _carry_out(out)


def read_manifest(out: Path) -> dict[str, Any]:
    """`_prepare.json`."""
    found: dict[str, Any] = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    return found


def read_segments(out: Path) -> dict[str, dict[str, Any]]:
    """{folder: its `_segment.json`}, in name order."""
    paths = sorted(out.glob(f"*/{SEGMENT_FILE}"))
    return {
        p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in paths if not p.parent.name.startswith("_")
    }


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    draft = path.with_name(f"{path.name}.draft")
    with draft.open("w", encoding="utf-8") as file:
        file.write(f"{json.dumps(content, indent=1, sort_keys=True)}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def exchange(first: Path, second: Path) -> None:
    """Two folders take each other's name, in one step where the file system can (Linux: ext4, xfs, btrfs, tmpfs)."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(first), os.fsencode(second))
    if libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise OSError(code, os.strerror(code), str(first))
    log.warning("the file system of %s cannot exchange folders: for a moment the segment is not there", second)
    aside = first.with_name(f"{first.name}.old")
    os.replace(second, aside)
    os.replace(first, second)


def _carry_out(out: Path) -> None:
    """Every step may have been done before."""
    journal = json.loads((out / JOURNAL).read_text(encoding="utf-8"))
    new = out / NEW
    for name, version in journal["put"].items():
        if _version(out / name) == version:
            continue
        if (out / name).exists():
            exchange(new / name, out / name)
        else:
            os.replace(new / name, out / name)
    for name in journal["drop"]:
        if (out / name).exists():
            os.replace(out / name, new / f"{name}.dropped")
    for name, content in journal["touch"].items():
        write_json(out / name / SEGMENT_FILE, content)
    (out / STATE).mkdir(exist_ok=True)
    for name in journal["states"]["put"]:
        if (new / STATE / name).exists():
            shutil.rmtree(out / STATE / name, ignore_errors=True)
            os.replace(new / STATE / name, out / STATE / name)
    for path in (out / STATE).iterdir():
        if path.name not in journal["states"]["keep"]:
            shutil.rmtree(path)
    write_json(out / MANIFEST, journal["manifest"])
    (out / JOURNAL).unlink()


def _version(segment: Path) -> int:
    try:
        return int(json.loads((segment / SEGMENT_FILE).read_text(encoding="utf-8"))["version"])
    except FileNotFoundError:
        return 0
