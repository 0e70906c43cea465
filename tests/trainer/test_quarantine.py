"""Bad rows in training: counted on all ranks, without weight even where a whole batch is bad, and too many of them end
the run on every rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from pipelines.errors import DataError
from tests.distributed.ranks import run_ranks
from tests.pipelines.rows import make_rows, write_rows
from tests.trainer.runs import Never, newest_state, saved_tensors, tiny_config
from trainer.bad_share import FIRST_LOOK, BadShare
from trainer.config import Config
from trainer.job import Job
from trainer.run_dir import RunDir


def _worker(rank: int, world_size: int, config: Config, run_dirs: list[tuple[Path, float]]) -> list[str]:
    from dataclasses import replace

    from trainer.worker import run_worker

    errors = []
    for run_dir, limit in run_dirs:
        if rank == 0:
            RunDir(run_dir).prepare("never")
        dist.barrier()
        limited = replace(config, data=config.data.model_copy(update={"max_bad_share": limit}))
        try:
            run_worker(Job(limited, str(run_dir), Never(), "never", None, threads=1))
            errors.append("")
        except DataError as error:
            errors.append(str(error))
    return errors


def test_bad_rows_are_set_aside_and_too_many_end_the_run(tmp_path: Path) -> None:
    """The second window is bad as a whole, the held-out segment has one bad row."""
    rows = make_rows(40, 0)
    spoilt = [2, *range(15, 30), 33]
    for index in spoilt:
        rows[index] |= {"time": None}
    write_rows(tmp_path / "rows" / "dt=1" / "a.parquet", rows, 40)
    held_out = make_rows(9, 1)
    held_out[4] |= {"score": float("inf")}
    write_rows(tmp_path / "rows" / "dt=2" / "a.parquet", held_out)
    config = tiny_config(
        tmp_path / "rows",
        data={"segments": "1", "eval_segments": "2", "on_bad_row": "quarantine"},
        train={"log_every": 1},
    )
    runs = [(tmp_path / "fine", 0.5), (tmp_path / "too many", 0.4)]
    first, second = run_ranks(_worker, 2, config, runs, timeout=120)
    assert first[0] == second[0] == ""
    assert first[1] == second[1], "every rank fails alike"
    assert "17 of 40 rows are bad" in first[1]
    assert "data.max_bad_share = 0.4" in first[1]
    assert str(tmp_path / "too many" / "quarantine") in first[1]

    lines = [json.loads(line) for line in (tmp_path / "fine" / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert train[-1]["quarantined_rows"] == 17
    assert [line["quarantined_rows"] for line in train] == sorted(line["quarantined_rows"] for line in train)
    assert train[-1]["rows"] == 40, "they keep their place"
    assert newest_state(tmp_path / "fine").extra["quarantined_rows"] == 17
    assert all(torch.isfinite(tensor.double()).all() for tensor in saved_tensors(tmp_path / "fine").values())
    files = sorted((tmp_path / "fine" / "quarantine").iterdir())
    assert [file.name.split("-epoch")[0] for file in files] == ["eval-2", "train-1", "train-1", "train-1"]
    found: list[dict[str, Any]] = [line for file in files for line in pq.read_table(file).to_pylist()]
    assert [line["row"] for line in found if line["segment"] == "1"] == spoilt


def test_the_share_is_looked_at_late_and_where_a_segment_ends() -> None:
    share = BadShare(0.01, "runs/x/quarantine")
    share.add(512, 100, "a")
    share.add(FIRST_LOOK - 600, 0, "a")  # 1 %, but 88 rows short of the first look
    with pytest.raises(DataError, match="100 of 9912 rows"):
        share.add(512, 0, "b")
    share = BadShare(0.01, "runs/x/quarantine")
    share.add(FIRST_LOOK, 100, "a")
    with pytest.raises(DataError, match="101 of 10001 rows"):
        share.add(1, 1, "a")
