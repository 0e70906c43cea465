"""A run given to a real Slurm: it ends as one started here, through deaths and preemption, and says where it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.command import Command, ran, started, write_run_file
from tests.integration.conftest import Call
from tests.integration.slurm import require_slurm, slurm
from tests.trainer.runs import differing, saved_tensors, tiny_config
from trainer.audit import audit_run
from trainer.config_sections import Launch
from trainer.errors import ConfigError
from trainer.submit.order import Order
from trainer.submit.slurm import script
from trainer.submit.slurm_batch import decide

pytestmark = pytest.mark.timeout(300)
SEGMENTS = {"2026-01-01": [14, 9], "2026-01-02": [16, 8], "2026-01-03": [17]}
SETTINGS: dict[str, Any] = {
    "data": {"segments": "..", "epochs": 3},
    "train": {"log_every": 1},
    "checkpoint": {"every_steps": 4, "every_minutes": 0.0},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    require_slurm()
    with slurm(tmp_path_factory.mktemp("slurm") / "one") as environment:
        yield environment


@pytest.fixture
def on_cluster(cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster[name])


def submit(*arguments: str) -> tuple[str, ...]:
    return ("submit", "--config", "run.toml", "--to", "slurm", "--launch.workers", "2", *arguments)


def lines(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def step(run_dir: Path) -> int:
    return max((line["step"] for line in lines(run_dir)), default=0)


def rank_of(run_dir: Path) -> psutil.Process:
    """A rank's own process, found by what it was started as."""
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [])[1:] == ["-m", "trainer.submit.slurm_rank", str(run_dir)]:
            return process
    raise AssertionError("no rank runs")


def kill_at(command: Command, run_dir: Path, at: int) -> None:
    command.until(lambda: step(run_dir) >= at, f"step {at}", timeout=200)
    rank_of(run_dir).kill()


@pytest.mark.usefixtures("on_cluster")
def test_a_run_whose_rank_is_killed_is_begun_again_at_once_and_ends_to_the_bit_as_if_never_killed(
    tmp_path: Path,
) -> None:
    write_run_file(tmp_path, SEGMENTS, **SETTINGS)
    hurt, whole = tmp_path / "runs" / "hurt", tmp_path / "runs" / "whole"
    with started(tmp_path, *submit("--run-dir", "runs/hurt")) as command:
        kill_at(command, hurt, 10)
        ended = command.end(timeout=200)
    assert ended.code == 0, ended.err
    assert "submitted " in ended.out
    assert "start 1 of 3 without a new checkpoint" in ended.out
    assert ended.out.splitlines()[-1].split(": ")[1].startswith("finished · step 42")
    assert [line["event"] for line in lines(hurt) if line["kind"] == "event" and line["event"] != "segment"] == [
        "resumed",
        "finished",
    ]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2")
    assert ran(tmp_path, "train", "--config", "run.toml", "--run-dir", "runs/whole", launcher=launcher).code == 0
    assert differing(saved_tensors(whole), saved_tensors(hurt)) == []
    assert audit_run(hurt).all_findings == []


@pytest.mark.usefixtures("on_cluster")
def test_a_run_that_is_asked_to_stop_saves_and_is_not_begun_again(tmp_path: Path, call: Call) -> None:
    write_run_file(tmp_path, SEGMENTS, **{**SETTINGS, "data": {"segments": "..", "epochs": 200}})
    run_dir = tmp_path / "runs" / "one"
    with started(tmp_path, *submit("--run-dir", "runs/one")) as command:
        command.until(lambda: step(run_dir) >= 3, "step 3", timeout=200)
        status = call(tmp_path, "submit", "--status", "runs/one")
        assert status.code == 0
        assert ": running · step " in status.out
        assert call(tmp_path, "submit", "--stop", "runs/one").code == 0
        ended = command.end()
    assert ended.code == 0, ended.err
    assert ": stopped · step " in ended.out.splitlines()[-1]
    assert (run_dir / "checkpoints" / f"step_{step(run_dir):08d}" / "COMMIT").exists()


@pytest.mark.usefixtures("on_cluster")
def test_what_no_restart_can_mend_ends_the_job_with_its_exit_code(tmp_path: Path) -> None:
    write_run_file(tmp_path, SEGMENTS, **SETTINGS)
    with started(tmp_path, *submit("--run-dir", "runs/bad", "--launch.labels.a", "b c")) as command:
        command.until((tmp_path / "runs/bad/launch/run.toml").exists, "the order")
        next((tmp_path / "rows").rglob("*.parquet")).write_bytes(b"no longer")
        ended = command.end()
    assert ended.code == 1
    assert "start 1 of" not in ended.out
    assert "failed (exit code 3:0)" in ended.errors[-1]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("on_cluster")
def test_a_preempted_run_saves_and_is_queued_again(tmp_path: Path, cluster: dict[str, str]) -> None:
    """Slurm holds a job that it queued again back for two minutes."""
    import subprocess

    write_run_file(tmp_path, SEGMENTS, **{**SETTINGS, "data": {"segments": "..", "epochs": 60}})
    run_dir = tmp_path / "runs" / "one"
    with started(tmp_path, *submit("--run-dir", "runs/one")) as command:
        command.until(lambda: step(run_dir) >= 20, "step 20")
        job = json.loads((run_dir / "launch" / "launch.json").read_text())["job"]
        subprocess.run(["scancel", "--signal=TERM", job], env=cluster, check=True)
        ended = command.end(timeout=500)
    assert ended.code == 0, ended.err
    assert "left before the end of the run: queued again" in ended.out
    assert "waiting: " in ended.out
    assert audit_run(run_dir).all_findings == []


@pytest.mark.parametrize(
    ("code", "end", "refused", "stop_wanted", "left", "following"),
    [
        (0, "finished", False, False, 3, "end"),
        (0, "stopped", False, False, 3, "requeue"),
        (0, "stopped", False, True, 3, "end"),
        (137, "", False, False, 3, "again"),
        (137, "", False, False, 0, "end"),
        (143, "", True, False, 3, "end"),
        (1, "finished", False, False, 3, "end"),
        (0, "", False, False, 3, "end"),
    ],
)
def test_what_follows_the_end_of_the_ranks(
    code: int, end: str, refused: bool, stop_wanted: bool, left: int, following: str
) -> None:
    assert decide(code, end, refused, stop_wanted, left) == following


def order(tmp_path: Path, **launch: Any) -> Order:
    config = tiny_config(tmp_path / "rows")
    config = replace(config, launch=Launch(workers=4, nodes=2, **launch))
    return Order(config, tmp_path / "a run", "tokenformer-a run", "/env/bin/python", "/code", Path("/home of/me"))


def test_the_script_says_what_the_run_file_says(tmp_path: Path) -> None:
    found = script(
        order(
            tmp_path,
            gpus=True,
            memory_gb=1.5,
            queue="gpu",
            priority="high",
            account="ads",
            time_limit_minutes=90,
            labels={"team": "ads; rm -rf $HOME"},
        )
    ).splitlines()
    for line in (
        "--nodes=2",
        "--ntasks=4",
        "--ntasks-per-node=2",
        "--gpus-per-task=1",
        "--mem=1536M",
        "--partition=gpu",
        "--qos=high",
        "--account=ads",
        "--time=90",
        "--comment='team=ads; rm -rf $HOME'",
        "--chdir='/home of/me'",
        "--requeue",
    ):
        assert f"#SBATCH {line}" in found
    assert os.path.basename(found[-1]) == "a run'"
    assert not any("rm -rf" in line for line in found if not line.startswith("#"))


def test_a_line_break_gets_into_no_script(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="printable"):
        script(order(tmp_path, labels={"team": "ads\n#SBATCH --uid=0"}))


def test_bad_orders_are_refused_before_anything_is_made(tmp_path: Path, call: Call) -> None:
    write_run_file(tmp_path)
    common = ("submit", "--config", "run.toml", "--run-dir", "runs/x")
    for arguments, words in (
        ((*common, "--to", "slurm"), "launch.workers = 0 → a cluster job says how many it needs"),
        ((*common, "--to", "slurm", "--launch.workers", "3", "--launch.nodes", "2"), "equally many"),
        ((*common, "--to", "pbs", "--launch.workers", "2"), "--to pbs → runs go to slurm"),
        ((*common,), "--to says where the run goes"),
        (("submit", "--status", "runs/x"), "no record of a submitted job"),
        (("submit",), "one of --config F, --status D, --logs D and --stop D is needed"),
    ):
        ended = call(tmp_path, *arguments)
        assert ended.code == 2
        assert words in ended.err
    assert not (tmp_path / "runs").exists()
