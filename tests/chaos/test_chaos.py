"""The chaos runner itself: five sequences in CI, its seeds, its pieces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.play import KINDS, draw
from tests.chaos.results import Results, rows_of

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(400)
def test_five_sequences_of_faults_lose_nothing(tmp_path: Path) -> None:
    """The command as somebody starts it, with the faults that cost little time; what is done is not played again."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.chaos", "--sequences", "5", "--seed", "1", "--cheap", "--out", "chaos"]
    for played in (5, 0):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=380, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(done.stdout.splitlines()[-1])["chaos"]
        assert (found["sequences"], found["survived"]) == (5, 5)
        assert found["faults"] >= 5
        assert sum(line.startswith("seed ") for line in done.stdout.splitlines()) == played


def test_a_seed_is_always_the_same_sequence_and_all_faults_come() -> None:
    plans = [draw(seed) for seed in range(200)]
    described = [[f"{type(fault).name} {fault} {fault.workers}" for fault in plan.faults] for plan in plans]
    assert described == [
        [f"{type(fault).name} {fault} {fault.workers}" for fault in draw(seed).faults] for seed in range(200)
    ]
    assert {type(fault) for plan in plans for fault in plan.faults} == set(KINDS)
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert {plan.to_the_bit for plan in plans} == {True, False}
    assert all(fault.workers >= fault.least_workers for plan in plans for fault in plan.faults)


def test_what_failed_is_played_again_and_the_table_counts_it(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    met = {"name": "x", "came": True, "recover_seconds": 2.0}
    results.add({"seed": 1, "outcome": "failed", "met": [met]})
    results.add({"seed": 2, "outcome": "survived", "met": [met, met | {"came": False}, met | {"recover_seconds": 4.0}]})
    again = Results(tmp_path / "results.jsonl")
    assert (again.has(1), again.has(2), again.has(3)) == (False, True, False)
    assert rows_of(again.all) == [("x", "3", "2", "2.0", "4.0")]
