"""A rank that has stopped moving is named by the others, with what it was doing; one that is gone ends the run with its
name.

Two threads on every rank. One tells of this rank, and hears of the others, through the store that the process group
met by: about once a second. That store may itself be on a host that stands still, so the other one, which judges, only
looks at what was heard and when.
"""

from __future__ import annotations

import contextlib
import linecache
import logging
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType
from typing import Any

import torch.distributed as dist

from trainer.beats import Beats
from trainer.errors import LostRankError
from trainer.runtime import Runtime
from trainer.stalls import Culprit, Report, Seen, judge, lost, shortened

log = logging.getLogger(__name__)
CADENCE_SECONDS = 1.0
RANKS_A_SECOND = 64  # beyond so many ranks each speaks less often: every one hears every other
STORE = -1  # among ranks that were named: the ranks' meeting place
MISSED = 3.5  # reports of a rank that did not come, after which it is gone where an exchange has failed as well
_BROKEN_EXCHANGE = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|timed out waiting|broken pipe|socket|process ?group", re.IGNORECASE
)
_current: Watchdog | None = None


class Watchdog:
    """Watches from `start` to `close`. seconds: without movement after which a rank is named.

    training_thread: whose stack is shown; the caller's by default. store: that all ranks share, None where there is one
    rank.
    """

    def __init__(self, beats: Beats, rank: int, world_size: int, seconds: float, store: Any = None) -> None:
        self._beats, self._rank, self._world_size, self._seconds = beats, rank, world_size, seconds
        self._store = store
        self.cadence = min(seconds / 4, max(CADENCE_SECONDS, world_size / RANKS_A_SECOND))
        self._thread_id = threading.get_ident()
        self._me = Report(rank, socket.gethostname(), os.getpid())
        self._failed, self._ended = "", False
        self._heard: dict[int, tuple[Report, float]] = {}  # of the other ranks: the newest report, when it came
        self._answered = time.monotonic()  # when the store last did
        self._named: dict[int, float] = {}  # ranks that were named, since when they stand still
        self._looked = time.monotonic()
        self._suspects: set[tuple[int, int]] = set()  # (rank, step) of the look before
        self._over = threading.Event()
        names = ("watchdog-talk", self._talk), ("watchdog", self._watch)
        self._threads = [threading.Thread(target=run, name=name, daemon=True) for name, run in names]

    def start(self) -> None:
        for thread in self._threads if self._store is not None else self._threads[1:]:
            thread.start()

    def close(self, error: BaseException | None = None) -> None:
        """This rank leaves: with an error of its own, which the others are told, or in order. Waits a moment for the
        store, not longer: it may be gone."""
        if error is not None:
            self._failed = self._failed or f"{type(error).__name__}: {error}".splitlines()[0][:300]
        self._ended = error is None
        self._over.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(2 * CADENCE_SECONDS)

    def report(self) -> Report:
        """Of this rank, now."""
        step, phase, moved = self._beats.at
        part = self._beats.part() if phase == "step" else None
        idle = max(0.0, time.monotonic() - moved)
        now = replace(self._me, step=step, phase=part or phase, idle_seconds=idle, failed=self._failed)
        if idle < self.cadence:
            return replace(now, ended=self._ended)
        frame = sys._current_frames().get(self._thread_id)
        stack = _stack(frame) if idle >= self._seconds / 2 else ()  # it has to be there when the others judge
        return replace(now, ended=self._ended, waits=_is_in_exchange(frame), stack=stack)

    def ranks(self) -> dict[int, Seen]:
        """All ranks that were heard of, as this one sees them."""
        now = time.monotonic()
        quiet = max(0.0, now - self._answered - self.cadence)  # nothing was heard of anybody: that is no rank's silence
        seen = {rank: Seen(report, max(0.0, now - came - quiet)) for rank, (report, came) in list(self._heard.items())}
        return seen | {self._rank: Seen(self.report())}

    def lost_ranks(self) -> tuple[list[Culprit], str]:
        """After an exchange has failed: who is gone, and else what another rank says that it failed of. Waits until
        silence tells, a few cadences."""
        stood = time.monotonic() - self._beats.at[2]  # who kept it waiting so long stood as long
        limit = 0.8 * stood if stood > 2 * MISSED * self.cadence else self._seconds
        self._failed = "an exchange with the other ranks failed"
        began = time.monotonic()
        while True:
            found = self.ranks()
            others = {rank: seen for rank, seen in found.items() if rank != self._rank}
            waited = time.monotonic() - began >= (MISSED + 1) * self.cadence
            culprits = lost(others, MISSED * self.cadence) or (judge(others, limit) if waited else [])
            told = [f"{s.report.name} ended with {s.report.failed}" for s in others.values() if _is_own(s.report)]
            if culprits or told or waited:
                return culprits, "; ".join(told)
            time.sleep(self.cadence / 4)

    def store_is_silent(self) -> float:
        """Seconds that the ranks' meeting place has not answered, 0 where it has."""
        silent = time.monotonic() - self._answered
        return silent if self._store is not None and silent > MISSED * self.cadence else 0.0

    # the thread that talks

    def _talk(self) -> None:
        last = False
        while not last:
            last = self._over.wait(self.cadence)
            try:
                self._exchange()
            except RuntimeError:  # not there: how long is what `_watch` says
                continue

    def _exchange(self) -> None:
        self._me = replace(self._me, number=self._me.number + 1)
        self._store.set(str(self._rank), shortened(self.report()).to_json())
        others = [r for r in range(self._world_size) if r != self._rank]
        there = [r for r in others if r in self._heard or self._store.check([str(r)])]
        texts = self._store.multi_get([str(r) for r in there]) if there else []
        now = time.monotonic()
        self._answered = now
        for rank, text in zip(there, texts, strict=True):
            report = Report.from_json(text)
            known = self._heard.get(rank)
            if known is None or known[0].number != report.number:
                self._heard[rank] = report, now

    # the thread that judges

    def _watch(self) -> None:
        while not self._over.wait(self.cadence):
            try:
                self._look()
            except Exception:  # it must never end a run
                log.warning("the watchdog failed, and goes on", exc_info=True)

    def _look(self) -> None:
        now, before = time.monotonic(), self._looked
        self._looked = now
        if now - before > MISSED * self.cadence:  # this process itself stood still: what it heard is old
            self._heard = {rank: (report, now) for rank, (report, _) in self._heard.items()}
            self._answered, self._suspects = now, set()
            return
        ranks = self.ranks()
        culprits = judge(ranks, self._seconds)
        mine = next((c for c in culprits if c.report.rank == self._rank), None)
        names = {culprit.report.rank for culprit in culprits}
        speakers = [rank for rank, seen in ranks.items() if rank not in names and not seen.is_over]
        if mine is not None or self._rank == min(speakers, default=self._rank):
            for culprit in culprits:
                # Reports are not of one moment: what is seen twice is so.
                is_sure = (culprit.report.rank, culprit.report.step) in self._suspects
                if is_sure and culprit.report.rank not in self._named:
                    self._name(culprit, ranks)
        self._suspects = {(culprit.report.rank, culprit.report.step) for culprit in culprits}
        for rank in [rank for rank in self._named if rank not in names and rank != STORE]:
            since = self._named.pop(rank)
            if rank in ranks and not ranks[rank].is_over:
                log.warning("rank %d is moving again after %.0f s", rank, time.monotonic() - since)
        silent = self.store_is_silent()
        if silent < self._seconds:
            self._named.pop(STORE, None)
        elif STORE not in self._named:  # said once, until it answers again
            self._named[STORE] = time.monotonic() - silent
            log.warning("%s", _no_store(silent, self._heard.get(0)))

    def _name(self, culprit: Culprit, ranks: dict[int, Seen]) -> None:
        self._named[culprit.report.rank] = time.monotonic() - culprit.seconds
        waiting = [r for r in sorted(ranks) if r != culprit.report.rank and not ranks[r].is_over]
        who = f"; waiting for it: {', '.join(map(str, waiting[:8]))}{' …' if waiting[8:] else ''}" if waiting else ""
        stack = culprit.report.stack or (ranks[self._rank].report.stack if culprit.report.rank == self._rank else ())
        lines = [f"{culprit.line()}{who}", *(("its stack, innermost last:", *stack) if stack else ())]
        log.warning("%s", "\n    ".join(lines))


def _is_own(report: Report) -> bool:
    """Whether it failed of something else than a broken exchange."""
    return bool(report.failed) and "an exchange with the other ranks" not in report.failed


def _no_store(seconds: float, first: tuple[Report, float] | None) -> str:
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return f"torchrun's own process, through which ranks meet, has not answered for {seconds:.0f} s"
    who = first[0].name if first else "rank 0"
    at = f", last seen at step {first[0].step} ({first[0].phase})," if first else ""
    return f"{who}{at} has not answered for {seconds:.0f} s: ranks meet through it"


def _stack(frame: FrameType | None) -> tuple[str, ...]:
    """`file:line function: its text`, innermost last."""
    found = traceback.extract_stack(frame) if frame is not None else []
    return tuple(f"{each.filename}:{each.lineno} {each.name}: {_text(each)}" for each in found)


def _text(frame: traceback.FrameSummary) -> str:
    """The line; "" where the frame stands between two lines."""
    return frame.line or "" if frame.lineno else ""


def _is_in_exchange(frame: FrameType | None) -> bool:
    """Whether its innermost Python code waits for other ranks."""
    if frame is None:
        return False
    file = frame.f_code.co_filename.replace(os.sep, "/")
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno or 0)  # None: it stands between two lines
    return "torch/distributed/" in file or "torchrec/distributed/" in file or ".wait(" in line


def is_broken_exchange(error: BaseException | None) -> bool:
    """Whether an error is what the loss of a peer looks like; None is none."""
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and _BROKEN_EXCHANGE.search(str(error)) is not None


def _short(text: str) -> str:
    """gloo's and torch's words without the place in their source and their advice."""
    first = text.splitlines()[0] if text else "no reason given"
    return re.sub(r"^\[\S+:\d+\] ", "", first).split(". This is typically")[0].rstrip(". ")


def current_report() -> Report | None:
    """Of this process, while it is watched."""
    return _current.report() if _current is not None else None


@contextlib.contextmanager
def watching(runtime: Runtime, seconds: float) -> Iterator[None]:
    """The run inside is watched; an exchange that fails because a rank is gone is raised as LostRankError, which names
    it. seconds: see Watchdog; 0 = no watch, and nobody is named."""
    global _current  # noqa: PLW0603 - there is one training thread a process
    watchdog = _make(runtime, seconds) if seconds else None
    _current = watchdog
    if watchdog is not None:
        watchdog.start()
    try:
        yield
    except BaseException as error:
        raised = _explained(error, runtime, watchdog) if is_broken_exchange(error) else None
        if watchdog is not None:
            watchdog.close(raised or error)
        if raised is not None:
            raise raised from error
        raise
    else:
        if watchdog is not None:
            watchdog.close()
    finally:
        _current = None


def _make(runtime: Runtime, seconds: float) -> Watchdog:
    store = None
    if runtime.world_size > 1:
        # A connection of its own: what the groups ask the store for must not wait behind this, nor this behind them.
        met_by: Any = dist.distributed_c10d._get_default_store()
        prefixed: Any = dist.PrefixStore  # type: ignore[attr-defined]
        store = prefixed("tokenformer-watchdog", met_by.clone())
    return Watchdog(runtime.beats, runtime.rank, runtime.world_size, seconds, store)


def _explained(error: BaseException, runtime: Runtime, watchdog: Watchdog | None) -> LostRankError:
    """In one line: who is gone, what became of this rank's exchange, what to do."""
    culprits, told = watchdog.lost_ranks() if watchdog is not None else ([], "")
    step, phase, _ = runtime.beats.at
    how = _short(str(error))
    if culprits:
        who = "; ".join(culprit.line() for culprit in culprits)
    elif told:
        who = told
    elif watchdog is not None and (silent := watchdog.store_is_silent()):
        who = _no_store(silent, watchdog._heard.get(0))
    else:
        who = "another rank is lost, which one is not known"
        log.error("nobody is known to be lost: the error as it was raised", exc_info=error)
    return LostRankError(who, f"rank {runtime.rank}'s exchange at step {step} ({phase}) failed: {how}")
