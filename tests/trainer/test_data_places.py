"""A run and where its data are: on a store, listed once for all ranks, its footers read once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.errors import DataError
from pipelines.footer_cache import FooterCache
from pipelines.segments import SegmentList, find_segments
from tests.distributed.ranks import run_ranks
from tests.pipelines.rows import make_data, write_segments
from tests.pipelines.s3_server import s3_server, upload
from tests.trainer.runs import Run, tiny_config, train_all
from trainer.make_data import check_rows
from trainer.run_dir import RunDir

pytestmark = pytest.mark.timeout(170)


def test_a_run_trains_from_s3_by_the_footers_that_the_check_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    folder = write_segments(tmp_path / "rows", {"1": [12], "2": [8]})
    with s3_server() as address:
        uri = upload(folder, "logs", address)
        config = tiny_config(uri, data={"executor": "threads"}, train={"log_every": 1})  # type: ignore[arg-type]
        run_dir = RunDir(tmp_path / "run")
        run_dir.prepare("never")
        check_rows(config, FooterCache(run_dir.plan_cache))
        segments = find_segments(config.data).train
        assert [FooterCache(run_dir.plan_cache).rows(segment) for segment in segments] == [12, 8]
        train_all([Run(config, run_dir.path, resume="auto")], 1)
    lines = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained] == [1, 2, 3, 4, 5]
    assert trained[-1]["rows"] == 20


def _list_segments(rank: int, world_size: int, good: str, bad: str) -> tuple[SegmentList, str]:
    from trainer import shared_segments
    from trainer.runtime import start

    if rank:

        def unasked(data: object) -> SegmentList:
            raise AssertionError("only rank 0 lists")

        shared_segments.find_segments = unasked  # type: ignore[assignment]
    with start(60, 1) as runtime:
        found = shared_segments.shared_segments(make_data(good), runtime)
        try:
            shared_segments.shared_segments(make_data(bad), runtime)
        except DataError as error:
            return found, error.problems[0]
    raise AssertionError


def test_ranks_train_what_the_first_one_listed(tmp_path: Path) -> None:
    folder = write_segments(tmp_path / "rows", {"1": [3], "2": [4]})
    answers = run_ranks(_list_segments, 2, str(folder), str(tmp_path / "none"), timeout=100)
    for found, problem in answers:
        assert found == find_segments(make_data(folder))
        assert "no Parquet file" in problem
