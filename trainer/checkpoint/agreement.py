"""What goes wrong on one rank is raised on all of them, as the same lines: never a hang."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

from trainer.checkpoint.manifest import DamagedError
from trainer.errors import CheckpointError, UserError

Value = TypeVar("Value")


def gather(value: Value, group: dist.ProcessGroup | None) -> list[Value]:
    """Collective: every rank's value, by rank. Between ranks of one run only: it pickles."""
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered


@contextmanager
def agree(group: dist.ProcessGroup | None) -> Iterator[None]:
    """Collective at its end: if the body failed on any rank, CheckpointError on every rank with all their lines, and
    DamagedError where all of them are.

    What its user cannot have caused is raised as it is where it happened, and as a RuntimeError elsewhere.
    """
    failed: Exception | None = None
    try:
        yield
    except Exception as error:
        failed = error
    found = [rank for rank in gather((_lines(failed), isinstance(failed, DamagedError)), group) if rank[0]]
    lines = list(dict.fromkeys(line for of_rank, _ in found for line in of_rank if line))
    if failed is not None and not _lines(failed)[0]:
        raise failed
    if lines:
        kind = DamagedError if all(is_damaged for _, is_damaged in found) else CheckpointError
        raise kind(lines) from failed
    if found:
        raise RuntimeError("another rank failed: its own traceback says why")


def _lines(error: Exception | None) -> list[str]:
    """[] for none, [""] for one that no line explains."""
    if error is None:
        return []
    if isinstance(error, UserError):
        return list(error.problems)
    if isinstance(error, OSError):
        return [
            f"checkpoint: {error.filename or 'a file'}: {error.strerror} → its files must be writable, with room on "
            "the disk → make room or choose another --run-dir"
        ]
    return [""]
