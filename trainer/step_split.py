"""Where the time of a step goes: a clock with one running part at a time.

    with clock.part("forward"):      forward runs
        with clock.part("lookup"):   lookup runs, forward stands still
            ...

Parts exclude each other, so they add up; what no part claims is `other`. On CPU a part's time is the wall time that
this process spent in it, which includes what it waited. On CUDA the parts are marked on the stream that computes: a
part's time is what passed there between its marks, so work that the device does behind the host's back counts where it
is done, and a wait that the device's work hides counts nothing. Events are read when they are done; no step is
synchronised for them. (The CUDA side follows the documentation of torch.cuda.Event; its book-keeping is tested, the
device itself was never at hand.)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.profiler import record_function

PARTS = {
    "data_wait": "the reader had no batch ready",
    "host_to_device": "the batch made into tensors, copied to the device",
    "id_exchange": "ranks agree on the next batch, ids mapped and sent to the ranks that hold their rows",
    "lookup": "rows looked up and sent back",
    "forward": "the tower and the loss",
    "backward": "the tower's, and the tables' with their update and the exchange of rows' gradients",
    "exposed_communication": "waiting for the dense gradients' exchange, the bad-step flag and the copies of 2D tables",
    "optimizer": "of dense parameters: gradients zeroed, clipped, the update",
    "telemetry": "sums of metrics, records, reports",
}
OTHER = "other"
Part = str


class Event(Protocol):
    """What of torch.cuda.Event is used. elapsed_time: milliseconds."""

    def record(self, stream: Any = None) -> None: ...

    def query(self) -> bool: ...

    def elapsed_time(self, end: Any) -> float: ...


@dataclass
class HostTimeline:
    """Wall time of this process. seconds: of parts, since last taken."""

    seconds: dict[Part, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def mark(self, ended: Part | None) -> None:
        """`ended` ran until now; None: no part did."""
        now = time.perf_counter()
        if ended is not None:
            self.seconds[ended] = self.seconds.get(ended, 0.0) + now - self._since
        self._since = now

    def take(self) -> dict[Part, float]:
        """{part: seconds} since the last call."""
        taken, self.seconds = self.seconds, {}
        return taken


class DeviceTimeline:
    """Time of one stream, between events recorded on it. What is not done when taken is told the next time."""

    def __init__(self, make_event: Callable[[], Event], stream: Any = None) -> None:
        self._make_event, self._stream = make_event, stream
        self._marks: deque[tuple[Part | None, Event]] = deque()
        self._spare: list[Event] = []

    def mark(self, ended: Part | None) -> None:
        """The stream's work of `ended` is all queued; None: of no part."""
        event = self._spare.pop() if self._spare else self._make_event()
        event.record(self._stream)
        self._marks.append((ended, event))

    def take(self) -> dict[Part, float]:
        """{part: seconds} of what is done since the last call."""
        seconds: dict[Part, float] = {}
        while len(self._marks) > 1 and self._marks[1][1].query():
            _, began = self._marks.popleft()
            part, ended = self._marks[0]
            if part is not None:
                seconds[part] = seconds.get(part, 0.0) + began.elapsed_time(ended) / 1000
            self._spare.append(began)
        return seconds


def timeline_of(device: torch.device) -> HostTimeline | DeviceTimeline:
    """The one that a training step on `device` is told by."""
    if device.type != "cuda":
        return HostTimeline()
    return DeviceTimeline(_timing_event, torch.cuda.current_stream(device))


def _timing_event() -> Event:
    event: Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event


class StepClock:
    """One a process. Only one thread runs parts at a time: the loop, or autograd's while the loop waits for it.

    on: whether parts are timed. traced: whether each part is a span of the profile that is being taken; change both
    outside of every part.
    """

    def __init__(self, device: torch.device | None = None, on: bool = True) -> None:
        self._timeline = timeline_of(device or torch.device("cpu"))
        self._running: list[Part | None] = [None]
        self._parts = {name: _Running(self, name) for name in PARTS}
        self.on, self.traced = on, False

    def part(self, name: Part) -> AbstractContextManager[None]:
        """This part runs inside; the one around it stands still. Raises KeyError for one that PARTS has not."""
        return self._parts[name] if self.on else _NOTHING

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not of a step: evaluation."""
        was_on, self.on = self.on, False
        try:
            yield
        finally:
            self.on = was_on

    def take(self) -> dict[Part, float]:
        """{part: seconds} since the last call, all parts. One that runs now begins anew."""
        self._timeline.mark(self._running[-1])
        return dict.fromkeys(PARTS, 0.0) | self._timeline.take()

    def running(self) -> Part | None:
        """The part that runs now; may be asked from any thread."""
        return self._running[-1]

    def enter(self, name: Part) -> None:
        """Stops the clock of the part around, starts this one's."""
        self._timeline.mark(self._running[-1])
        self._running.append(name)

    def leave(self) -> None:
        """The inverse."""
        self._timeline.mark(self._running.pop())


class _Running:
    """The context manager of one part, made once: a step enters it some dozen times."""

    def __init__(self, clock: StepClock, name: Part) -> None:
        self._clock, self._name = clock, name
        self._spans: list[Any] = []  # of the entries that are open; None where no profile was being taken

    def __enter__(self) -> None:
        span: Any = record_function(self._name) if self._clock.traced else None  # it costs microseconds
        if span is not None:
            span.__enter__()
        self._spans.append(span)
        self._clock.enter(self._name)

    def __exit__(self, *error: object) -> None:
        self._clock.leave()
        span = self._spans.pop()
        if span is not None:
            span.__exit__(None, None, None)


_NOTHING = nullcontext()


def split(seconds: dict[Part, float], steps: int, step_seconds: float) -> dict[Part, float]:
    """Means per step, with what no part claims as `other`: they add up to `step_seconds`. (On CUDA what is in flight
    is told a line later, so that `other` may be short of that.)"""
    means = {part: seconds[part] / steps for part in PARTS}
    return means | {OTHER: max(0.0, step_seconds - sum(means.values()))}
