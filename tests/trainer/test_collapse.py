"""Collapse in a run: the same for any number of ranks, and nothing else of the evaluation changes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from model.collapse import moments
from pipelines.batch import QUARANTINED, TRAINED
from tests.distributed.ranks import run_ranks
from tests.pipelines.rows import write_segments
from tests.trainer.runs import Run, tiny_config, train_all
from trainer.collapse import CollapseSample
from trainer.config_sections import Train

ROWS_SEEN = 7  # of 5-row batches: the sample ends inside the second


def _evaluation(run_dir: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, Any] = next(line for line in lines if line["kind"] == "eval")
    return found


def _summed(rank: int, world_size: int) -> tuple[list[list[bool]], dict[str, Any]]:
    """Two global batches of 4 rows dealt to the ranks, a sample of 5; rank 1 has moments of a kind that rank 0 lacks.
    Returns which of the rank's rows are in the sample, and the figures."""
    runtime: Any = SimpleNamespace(rank=rank, world_size=world_size, control=None)
    sample = CollapseSample(5, runtime)
    kept = []
    for first in (0, 4):
        row = np.arange(first, first + 4)[::-1][rank::world_size]
        status = np.where(row == 2, QUARANTINED, TRAINED).astype(np.int8)
        host = SimpleNamespace(filler=False, status=status, file=np.zeros_like(row), row=row)
        batch: Any = SimpleNamespace(host=host, info=SimpleNamespace(rows=4))
        inside = sample._kept(batch)
        sample._left -= 4
        kept.append(row[inside].tolist())
        sample._add(("rows", "", "0"), torch.tensor([float(inside.sum())]))
        for x in row[inside].tolist():
            x_1D = torch.tensor([[1.0, x, x * x]])
            sample._add(("tokens", "sequence", "0"), moments(x_1D))
            if x == 1:  # a row of rank 0 where there are two
                sample._add(("tokens", "field", "0"), moments(x_1D))
    found = sample.figures()
    assert found is not None
    return kept, found.to_json()


@pytest.mark.timeout(60)
def test_the_sample_is_the_same_for_any_number_of_ranks() -> None:
    whole, one = _summed(0, 1)
    (first, two), (second, other) = run_ranks(_summed, 2, timeout=50)
    assert sorted(whole[0]) == sorted(first[0] + second[0]) == [0, 1, 3]  # 2 is quarantined
    assert whole[1] == first[1] + second[1] == [4]
    assert one == two == other
    assert one["rows"] == 4
    assert one["tokens"] == {"field": [1], "sequence": [4]}
    assert one["effective_rank"]["field"] == [None]
    assert 1 < one["effective_rank"]["sequence"][0] < 2


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_ranks_change_no_figure_and_the_look_changes_no_score(tmp_path: Path) -> None:
    rows = write_segments(tmp_path / "rows", {"2026-01-01": [14], "2026-01-02": [8, 9]})
    data = {"segments": "2026-01-01", "eval_segments": "2026-01-02"}
    looking = tiny_config(rows, train={"max_steps": 2, "collapse_rows": ROWS_SEEN}, data=data)
    off = tiny_config(rows, train={"max_steps": 2}, data=data)
    train_all([Run(looking, tmp_path / "one")], world_size=1)
    train_all([Run(looking, tmp_path / "two"), Run(off, tmp_path / "off")], world_size=2)
    one, two, without = (_evaluation(tmp_path / name) for name in ("one", "two", "off"))
    assert two["tasks"] == without["tasks"]
    assert "collapse" not in without
    assert one["collapse"]["rows"] == two["collapse"]["rows"] == ROWS_SEEN
    for name in ("tokens", "effective_rank", "participation"):
        assert one["collapse"][name].keys() == two["collapse"][name].keys() >= {"sequence", "field"}
        for kind, layers in one["collapse"][name].items():
            assert len(layers) == 3  # the embedding output and two layers
            assert two["collapse"][name][kind] == pytest.approx(layers, rel=2e-3)
    for query, keys in one["collapse"]["attention"].items():
        for key, layers in keys.items():
            assert two["collapse"]["attention"][query][key] == pytest.approx(layers, abs=2e-3)
    assert one["collapse"]["attention"]["sequence"]["field"][0] > 0
    assert one["collapse"]["attention"]["sequence"]["field"][1] == 0


@pytest.mark.parametrize("rows", [-1, 1.5, "all"])
def test_collapse_rows_is_a_number_of_rows(rows: Any) -> None:
    with pytest.raises(ValidationError, match="collapse_rows"):
        Train(collapse_rows=rows)
