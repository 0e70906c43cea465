"""How a training process ends: after everything that Python does at its end, but before the C++ libraries take
themselves apart.

The process groups of a run outlive `destroy_process_group`: models, optimizers and pipelines hold them in cycles, and
gloo's threads (three a group) live on into the end of the interpreter. Now and then one of them is then met half taken
apart, and a process whose work is long done, and saved, dies of "terminate called without an active exception"
(SIGABRT, torch 2.13). torchrun calls that a failed run.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys

_code: int | None = None
_has_joined = False


def prepare() -> None:
    """First thing in the process: what is registered first is called last, after all that libraries and threads do."""
    atexit.register(_leave)


def joined_a_group() -> None:
    """From here on this process has threads that do not survive the end of the interpreter."""
    global _has_joined  # noqa: PLW0603 - there is one process
    _has_joined = True


def with_code(code: int) -> int:
    """The exit code, given back to `sys.exit`."""
    global _code  # noqa: PLW0603
    _code = code
    return code


def _leave() -> None:
    """Threads are joined and exit handlers called by now; what was said is flushed here."""
    if not _has_joined or _code is None:
        return
    logging.shutdown()
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except (OSError, ValueError):  # nobody reads it any more: the interpreter has its own word and code for that
        return
    os._exit(_code)
