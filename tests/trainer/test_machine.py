"""Workers of a host do not fight for cores."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from trainer import machine
from trainer.config_sections import Launch
from trainer.worker import _placed


def test_pinned_workers_have_cores_of_their_own_as_have_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[set[int]] = []
    monkeypatch.setattr(machine, "CGROUP_CPU", machine.CGROUP_CPU / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set_to[-1] if set_to else {2, 3, 5, 7, 11})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: set_to.append(set(cores)))
    shares = []
    for place in (0, 1):
        set_to.clear()
        with machine.pinned(place, 2) as own:
            assert set_to == [set(own)]
            assert machine.cores() == 5  # what the process may use: who asks for threads is told what he was before
            shares.append(own)
        assert set_to[-1] == {2, 3, 5, 7, 11}
    assert shares == [(2, 3), (5, 7)]


def test_threads_started_meanwhile_stay_on_them() -> None:
    allowed = os.sched_getaffinity(0)
    with machine.pinned(0, len(allowed)) as own, ThreadPoolExecutor(1) as pool:
        assert len(own) == 1
        assert pool.submit(os.sched_getaffinity, 0).result() == set(own)
    assert os.sched_getaffinity(0) == allowed


def test_fewer_cores_than_workers_pin_nobody() -> None:
    allowed = os.sched_getaffinity(0)
    with machine.pinned(0, len(allowed) + 1) as own:
        assert own == ()
        assert os.sched_getaffinity(0) == allowed


@pytest.mark.parametrize("wanted", [True, False])
def test_a_worker_is_placed_where_that_is_wanted(wanted: bool) -> None:
    allowed = os.sched_getaffinity(0)
    runtime: Any = SimpleNamespace(rank=0, local_world_size=len(allowed))
    with _placed(Launch(pin_cores=wanted), runtime):
        assert len(os.sched_getaffinity(0)) == (1 if wanted else len(allowed))
    assert os.sched_getaffinity(0) == allowed
