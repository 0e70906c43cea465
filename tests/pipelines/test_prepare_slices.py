"""However small the memory, the bytes are the same: slices, dealt cells, several passes and saved tails change nothing.

Tasks run in this process, one after the other, so that limits can be set that no real machine has.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from pipelines import prepare_borders, prepare_build, prepare_shuffle, prepare_slices
from pipelines.prepare_work import Work
from tests.pipelines.prepare_inline import contents, run_inline
from tests.pipelines.prepare_reference import Event, expected_rows, random_events, read_rows, write_events
from tests.pipelines.test_prepare import CASES, EVENTS, run

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    run_inline(monkeypatch.setattr)


def tight(monkeypatch: pytest.MonkeyPatch, events: int, *, run_bytes: int = 3000, reads: int = 10**9) -> None:
    """A slice has room for about so many events."""
    monkeypatch.setattr(Work, "limit", property(lambda work: events * 400))
    monkeypatch.setattr(prepare_shuffle, "MAX_READS", reads)
    for module in (prepare_shuffle, prepare_build, prepare_slices, prepare_borders):
        monkeypatch.setattr(module, "run_limit", lambda work: run_bytes)


def events_of_a_giant(seed: int) -> list[Event]:
    """As random_events, but one user has most of them, and requests that last."""
    rng = random.Random(seed)
    events = random_events(seed, requests=200)
    for event in events:
        if rng.random() < 0.7:
            event["user"] = "giant"
        event["time"] += rng.randrange(4) * (rng.random() < 0.3)
        event["time"] += 600 * (event["request"] % 37)
        event["known"] = event["time"] + rng.choice([0, 1, 4000, 90_000]) if rng.random() < 0.9 else None
    return events


@pytest.mark.parametrize("limit", [4, 20])
@pytest.mark.parametrize("case", CASES)
def test_slices_give_the_same_bytes(case: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema, settings = CASES[case]
    events = events_of_a_giant(limit)
    log = write_events(events, tmp_path / "log")
    settings = settings | {"partitions": 3, "row_group_rows": 7}
    run(schema, log, tmp_path / "plain", **settings)
    slices = 0
    plain = prepare_slices.Slice.__init__

    def counted(self: Any, *arguments: Any, **named: Any) -> None:
        nonlocal slices
        slices += 1
        plain(self, *arguments, **named)

    monkeypatch.setattr(prepare_slices.Slice, "__init__", counted)
    tight(monkeypatch, limit)
    run(schema, log, tmp_path / "tight", **settings)
    assert contents(tmp_path / "tight") == contents(tmp_path / "plain")
    assert slices > 250 / limit / 2


@pytest.mark.parametrize("case", CASES)
def test_a_second_pass_gives_the_same_bytes(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema, settings = CASES[case]
    log = write_events(EVENTS, tmp_path / "log")
    run(schema, log, tmp_path / "plain", **settings, partitions=5)
    tight(monkeypatch, 40, reads=1)
    run(schema, log, tmp_path / "passes", **settings, partitions=5)
    assert contents(tmp_path / "passes") == contents(tmp_path / "plain")


@pytest.mark.parametrize("case", CASES)
def test_rows_of_a_giant_are_those_of_the_reference(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema, settings = CASES[case]
    events = [event | {"known": event["known"] or 2**40} for event in events_of_a_giant(5)]
    tight(monkeypatch, 5)
    _, data = run(schema, write_events(events, tmp_path / "log"), tmp_path / "rows", **settings)
    assert read_rows(tmp_path / "rows") == expected_rows(schema, data, events)
