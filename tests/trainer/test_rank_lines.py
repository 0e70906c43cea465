"""What other ranks say under torchrun reaches the first one's terminal, and is lost by nobody."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch.distributed as dist

from trainer import rank_lines
from trainer.lines import Line
from trainer.rank_lines import MOST_LINES, Relay, _Receiver


class Heard:
    """A screen that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def line(self, line: Line) -> None:
        self.lines.append(line)

    def show(self, update: object) -> None: ...

    def follow(self, look: object) -> None: ...


class GoneStore:
    """Its host has left."""

    def __getattr__(self, name: str) -> Any:
        def fail(*_: object) -> None:
            raise RuntimeError("Connection reset by peer")

        return fail


def warning(text: str, rank: int) -> Line:
    return Line(text, logging.WARNING, (rank,), f"host{rank}")


@pytest.mark.timeout(30)
def test_lines_of_other_ranks_reach_the_first_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_lines, "TURN_SECONDS", 0.01)
    store = dist.HashStore()  # type: ignore[attr-defined]
    heard = Heard()
    receiver = _Receiver(heard, store, others=2)
    relays = [Relay(rank, f"host{rank}") for rank in (1, 2)]
    for relay in relays:
        relay.join(store)
    for number in range(20):
        for rank, relay in enumerate(relays, 1):
            relay.line(warning(f"line {number}", rank))
    for relay in relays:
        relay.leave()
    receiver.close()
    for rank in (1, 2):
        assert [line for line in heard.lines if line.ranks == (rank,)] == [
            warning(f"line {number}", rank) for number in range(20)
        ]
    assert store.num_keys() <= 2  # two counters: what was said is not kept


@pytest.mark.timeout(30)
def test_a_rank_that_says_too_much_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    store, heard = dist.HashStore(), Heard()  # type: ignore[attr-defined]
    relay = Relay(1, "far")
    relay.join(store)
    for number in range(MOST_LINES + 7):
        relay.line(warning(f"line {number}", 1))
    relay.leave()
    _Receiver(heard, store, others=1).close()
    assert len(heard.lines) == MOST_LINES + 1
    assert heard.lines[-1].plain() == "rank 1 (far): warning: 7 more lines within 0.5 s were left out"


@pytest.mark.timeout(30)
def test_without_a_store_a_rank_says_it_itself(capsys: pytest.CaptureFixture[str]) -> None:
    relay = Relay(3, "")
    relay.line(Line("before", logging.WARNING, (3,)))
    relay.join(GoneStore())
    relay.line(Line("during", logging.WARNING, (3,)))
    relay.leave()
    relay.line(Line("after", logging.WARNING, (3,)))
    said = capsys.readouterr().err.splitlines()
    assert said == [f"rank 3: warning: {when}" for when in ("before", "during", "after")]


@pytest.mark.timeout(30)
def test_a_store_that_does_not_answer_keeps_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rank_lines, "LEAVING_SECONDS", 0.1)
    answers = threading.Event()

    class Silent(GoneStore):
        def add(self, *_: object) -> int:
            answers.wait(20)
            return 1

        def set(self, *_: object) -> None: ...

    relay = Relay(3, "")
    relay.join(Silent())
    relay.line(Line("first", logging.WARNING, (3,)))
    relay.leave()
    assert "rank 3: warning: first" in capsys.readouterr().err
    answers.set()
    relay._thread.join()
