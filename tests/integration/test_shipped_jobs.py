"""The smallest shipped job from nothing: log, rows, training, evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.command import ROOT, ran

QUICK = str(ROOT / "trainer" / "configs" / "quick.toml")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_quick_job_makes_its_data_and_learns_from_them(tmp_path: Path) -> None:
    ended = ran(tmp_path, "train", "--config", QUICK, "--launch.workers", "1", timeout=300)
    assert ended.code == 0, ended.err
    lines = [json.loads(line) for line in (tmp_path / "runs/quick/metrics.jsonl").read_text().splitlines()]
    click = next(line for line in lines if line["kind"] == "eval")["tasks"]["click"]
    assert click["ne"] < 1
    assert click["auc"] > 0.55
    again = ran(tmp_path, "train", "--config", QUICK, "--launch.workers", "1", "--run-dir", "runs/again", timeout=300)
    assert again.code == 0, again.err
    assert "writing the synthetic" not in again.err
