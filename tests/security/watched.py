"""One case of a fuzzer: what the command would have said and returned, and what it did that nothing here may do.

The interpreter's audit events tell of every pickle that names a class or function, every process, every connection and
every file opened for writing by Python; what Arrow writes is found by looking at the folder around the case's own.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.cli_boundary import guarded

FINE = (0, 2, 3, 5)  # success, and the documented errors of a run file, of data and of a checkpoint
MOST_SECONDS = 20.0  # CPU of one case: many times the slowest
FORBIDDEN = ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")
CHANGING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "shutil.rmtree")

_active: list[Watch] = []


@dataclass
class Watch:
    """root: the only folder that may be written to. seen: everything forbidden."""

    root: Path
    seen: list[str] = field(default_factory=list)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """An audit event."""
        if event in FORBIDDEN:
            self.seen.append(f"{event} {args!r:.200}")
        elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._check(event, args[0])
        elif event in CHANGING:
            folder = args[-1] if isinstance(args[-1], int) and args[-1] >= 0 else None  # rmtree names files in it
            for path in args[:2] if event in ("os.rename", "os.symlink", "os.link") else args[:1]:
                self._check(event, path, folder)

    def _check(self, event: str, path: object, folder: int | None = None) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            start = os.readlink(f"/proc/self/fd/{folder}") if folder is not None else ""
            real = os.path.realpath(os.path.join(start, os.fsdecode(path)))
            if not real.startswith(f"{self.root}{os.sep}") and real not in (str(self.root), os.devnull):
                self.seen.append(f"{event} {real}")


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if _active:
        _active[-1].hear(event, args)


sys.addaudithook(_hear)  # for the life of the process: there is no way to take it off


@contextlib.contextmanager
def watching(root: Path) -> Iterator[None]:
    """Fails where anything forbidden was done, or a name has appeared beside `root`."""
    beside = sorted(path.name for path in root.parent.iterdir())
    watch = Watch(Path(os.path.realpath(root)))
    _active.append(watch)
    try:
        yield
    finally:
        _active.pop()
    assert watch.seen == [], watch.seen
    assert sorted(path.name for path in root.parent.iterdir()) == beside


def outcome(command: Callable[[], Any], root: Path, codes: Counter[int] | None = None) -> int:
    """The exit code that the command would end with; fails on a traceback, on an error that is not value → rule →
    remedy, on a control character, and on what `watching` forbids."""
    said = io.StringIO()
    began = time.process_time()
    logging.disable()
    with watching(root), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = guarded(command)
    logging.disable(logging.NOTSET)
    took, text = time.process_time() - began, said.getvalue()
    assert code in FINE, f"exit code {code}\n{text}"
    assert "Traceback" not in text, text
    assert took < MOST_SECONDS, f"{took:.0f} s of CPU\n{text}"
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert bool(code) == bool(lines), text
    assert [line for line in lines if line.count(" → ") < 2] == []
    assert all(c.isprintable() or c == "\n" for c in text), repr(text)
    if codes is not None:
        codes[code] += 1
    return code
