"""A checkpoint that is being written by a thread of its own, which the one that trains may wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from trainer.checkpoint.folder import Location
from trainer.checkpoint.manifest import Kind
from trainer.checkpoint.snapshot import Snapshot
from trainer.checkpoint.state import CheckpointState


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint. bytes: of all its files, on rank 0. seconds: from its step to its COMMIT.
    stall_seconds: of these, training stood still on this rank. written: False where it was there already."""

    path: Location
    step: int
    examples: int
    bytes: int
    seconds: float
    written: bool = True
    stall_seconds: float = 0.0
    kind: Kind = "full"


class InFlight:
    """write: does it all and returns the bytes; collective over a group that nothing else uses meanwhile.

    stall_seconds: what training has waited for it so far, copying rows aside apart.
    """

    def __init__(
        self, path: Location, state: CheckpointState, kind: Kind, snapshot: Snapshot, write: Callable[[], int]
    ) -> None:
        self.path, self.step, self.kind = path, state.step, kind
        self._examples = state.examples
        self._snapshot, self._write = snapshot, write
        self._started = time.perf_counter()
        self._thread = threading.Thread(target=self._run, name=f"checkpoint-{state.step}", daemon=True)
        self._bytes = 0
        self._seconds = 0.0
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self.stall_seconds = 0.0

    def start(self) -> None:
        """From here on it is being written."""
        self._thread.start()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    @property
    def failed(self) -> bool:
        return self.ended and self._error is not None

    def join(self, timeout: float | None = None) -> float:
        """Waits for the end, or for so many seconds; returns how many it took."""
        started = time.perf_counter()
        self._ended.wait(timeout)
        return time.perf_counter() - started

    def result(self) -> Saved:
        """After the end. Raises what the writing raised."""
        if self._error is not None:
            raise self._error
        stall = self.stall_seconds + self._snapshot.waited_seconds
        return Saved(
            self.path, self.step, self._examples, self._bytes, self._seconds, stall_seconds=stall, kind=self.kind
        )

    def _run(self) -> None:
        try:
            self._bytes = self._write()
        except BaseException as error:
            self._error = error
        finally:
            self._snapshot.close()
            self._seconds = time.perf_counter() - self._started
            self._ended.set()
