"""What a fleet needs of a run on two ranks that is cut short and goes on: targets, goodput, slowest rank, progress."""

from __future__ import annotations

import json
import socket
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import run_ranks
from tests.pipelines.rows import write_segments
from tests.trainer.runs import tiny_config
from trainer.config import Config
from trainer.job import Job
from trainer.rank_sums import RankSums
from trainer.run_dir import RunDir
from trainer.runtime import start
from trainer.worker import run_worker

pytestmark = pytest.mark.timeout(150)  # all ranks start inside the first test
EVERY = 4  # steps to a log
SAVED, CUT = 8, 14  # the last checkpoint before the cut, which comes about there


class CutShortError(Exception):
    """As if the machine were gone."""


class Watcher:
    """In the place of a request to stop, which is asked for at every step: looks at the run from outside while it
    trains. cut: the call that ends it by an error; 0 = none does."""

    def __init__(self, run_dir: RunDir, cut: int) -> None:
        self._run_dir, self._cut, self._calls = run_dir, cut, 0
        self.targets: list[dict[str, Any]] = []
        self.scraped: list[str] = []

    def requested(self) -> bool:
        self._calls += 1
        if self._calls == CUT - 2:
            self.targets = json.loads(self._run_dir.prometheus_targets.read_text())
            self.scraped = [_scrape(entry["targets"][0]) for entry in self.targets]
        if self._calls == self._cut:
            raise CutShortError
        return False


def _scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
        text: str = answer.read().decode()
    return text


def _in_rank(rank: int, world_size: int, config: Config, path: Path) -> dict[str, Any]:
    run_dir = RunDir(path)
    with start(60, 1) as runtime:
        sums = RankSums(runtime)
        sums.meet()
        ranks = sums.exchange([1.5, rank], own_seconds=[0.2, 0.5][rank])
    first, second = Watcher(run_dir, CUT), Watcher(run_dir, 0)
    with pytest.raises(CutShortError):
        run_worker(Job(config, str(path), first, "auto", threads=1))
    left = run_dir.prometheus_targets.exists()
    run_worker(Job(config, str(path), second, "auto", threads=1))
    return {"ranks": ranks, "first": first.targets, "scraped": first.scraped, "second": second.targets, "left": left}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fleet")
    rows = write_segments(folder / "rows", {"2026-01-01": [65], "2026-01-02": [40], "2026-01-03": [6]})
    config = tiny_config(
        rows, train={"eval_every": 8}, data={"segments": "..2026-01-02", "eval_segments": "2026-01-03.."}
    )
    config = replace(
        config,
        checkpoint=config.checkpoint.model_copy(update={"every_steps": SAVED}),
        telemetry=config.telemetry.model_copy(
            update={"prometheus": True, "linger_seconds": 0.1, "price_per_worker_hour": 2.0}
        ),
    )
    RunDir(folder / "run").prepare("never")
    found = run_ranks(_in_rank, 2, config, folder / "run", timeout=140)
    return {"by_rank": found, "run": folder / "run"}


def test_sums_are_of_all_ranks_and_the_slowest_one_is_named(fleet: dict[str, Any]) -> None:
    for rank in fleet["by_rank"]:
        assert rank["ranks"].sums == (3.0, 1.0)
        assert (rank["ranks"].slowest.rank, rank["ranks"].slowest.seconds) == (1, 0.5)
        assert rank["ranks"].slowest.host == socket.gethostname()
        assert rank["ranks"].median_seconds == pytest.approx(0.35)


def test_prometheus_finds_every_rank_while_the_run_goes_on_and_after_it_was_lost(fleet: dict[str, Any]) -> None:
    first = fleet["by_rank"][0]
    assert [entry["labels"] for entry in first["first"]] == [
        {"job": "tokenformer", "run": "run", "rank": str(rank)} for rank in (0, 1)
    ]
    told = first["scraped"]
    assert all("tokenformer_steps_total" in text for text in told)
    assert ["tokenformer_loss" in text for text in told] == [True, False]
    assert 'tokenformer_info{rank="1"} 1.0' in told[1]
    assert "tokenformer_world_size 2.0" in told[0]
    assert first["left"], "its targets are down, and somebody is told"
    assert [entry["labels"]["rank"] for entry in first["second"]] == ["0", "1"]
    assert not RunDir(fleet["run"]).prometheus_targets.exists(), "it ended as it should"


def test_a_run_that_was_cut_short_knows_where_its_time_went(fleet: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in RunDir(fleet["run"]).metrics.read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train] == [4, 8, 12, 16, 20, 21]
    before, after = train[1]["goodput"], train[-1]["goodput"]
    assert (before["restarts"], after["restarts"]) == (0, 1)
    assert before["lost_seconds"]["lost_steps"] == 0
    for cause in ("start_up", "evaluation", "checkpoint", "lost_steps", "down"):
        assert after["lost_seconds"][cause] > 0, cause
    for line in train:
        found = line["goodput"]
        assert found["good_seconds"] + sum(found["lost_seconds"].values()) == pytest.approx(found["wall_seconds"])
        assert 0 < found["share"] < 1
    steps = [4 * line["step_seconds"] for line in train[:-1]] + [train[-1]["step_seconds"]]
    waited = [4 * line["data_wait_seconds"] for line in train[:-1]] + [train[-1]["data_wait_seconds"]]
    assert after["good_seconds"] == pytest.approx(sum(steps) - sum(waited), rel=0.05), "time of the steps that survived"
    assert after["worker_seconds"]["cpu"] == pytest.approx(2 * (after["wall_seconds"] - after["lost_seconds"]["down"]))
    hours = after["worker_seconds"]["cpu"] / 3600
    assert train[-1]["price_per_billion_examples"] == pytest.approx(1e9 * 2.0 * hours / train[-1]["examples"])
    kept = json.loads(RunDir(fleet["run"]).goodput.read_text())
    assert (kept["starts"], kept["ended"]) == (2, "reached")


def test_every_line_tells_progress_norms_memory_and_the_slowest_rank(fleet: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in RunDir(fleet["run"]).metrics.read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    for line in train:
        assert line["epoch_progress"] == pytest.approx(line["step"] / 21, abs=0.05)  # of the second day from its bytes
        assert line["weight_norm"] > 1
        assert line["tokens_per_second"] > line["rows_per_second"]
        assert line["slowest"]["rank"] in (0, 1)
        assert 0 < line["median_rank_seconds"] <= line["slowest"]["seconds"] < line["step_seconds"]
        assert line["own_seconds"] <= line["slowest"]["seconds"]
        assert line["system"]["process_resident_bytes"] > 50e6
        assert line["system"]["host_memory_available_bytes"] < line["system"]["host_memory_bytes"]
        assert 0 < line["system"]["disk_free_bytes"] < line["system"]["disk_bytes"]
        assert line["data_lag_seconds"] == pytest.approx(line["time"] - line["data_through"] / 1e6, abs=1)
        assert (line["dense_staleness"], line["unlabelled_steps"]) == (0, 0)
    assert (train[-1]["epoch_progress"], train[-1]["seconds_left"]) == (1, 0)
