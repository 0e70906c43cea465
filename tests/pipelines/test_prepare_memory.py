"""The budget holds, in real processes, for a user with most of the log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.config import Data, Prepare
from pipelines.prepare import prepare
from pipelines.prepare_ray import ray_session
from tests.benchmarks.memory import MemoryMeter
from tests.benchmarks.prepare import clicks_schema, write_clicks
from tests.pipelines.prepare_inline import contents

pytestmark = pytest.mark.timeout(240)

MEBI = 2**20
EVENTS = 1_200_000
ALLOWANCE = 50 * MEBI  # what allocators keep, and Ray's own objects


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with ray_session("", 2):
        yield


def test_a_giant_user_fits_into_the_budget_and_changes_no_byte(tmp_path: Path) -> None:
    log = write_clicks(tmp_path / "log", EVENTS, giant=0.8)
    small = write_clicks(tmp_path / "small", 4_000)
    schema, growth = clicks_schema(length=5), {}
    for name, source, budget in (("warm", small, 64), ("tight", log, 64), ("plain", log, 4096)):
        settings = Prepare(log=str(source), request="request", memory_mb=budget, partitions=2)
        with MemoryMeter() as memory:
            report = prepare(schema, Data(rows="", prepare=settings), tmp_path / name)
        growth[name] = memory.largest
    print({name: round(size / MEBI) for name, size in growth.items()})
    assert report.events == EVENTS
    assert contents(tmp_path / "tight") == contents(tmp_path / "plain")
    assert growth["tight"] < 64 * MEBI + ALLOWANCE
    assert growth["plain"] > 1.5 * growth["tight"]  # the log is larger than the budget
