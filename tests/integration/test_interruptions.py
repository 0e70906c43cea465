"""A run that is interrupted, however it is started and stopped, ends as one that never was: to the bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.integration.command import TORCHRUN, Command, Ended, latest_step, ran, started, write_run_file
from tests.trainer.runs import differing, newest_state, saved_tensors
from trainer.audit import audit_run

ENDLESS = {"epochs": 100}  # some 800 steps: a signal always comes before the end
TRAIN = ("train", "--config", "run.toml", "--run-dir")


def until_saved(command: Command, run_dir: Path, beyond: int = 0) -> None:
    command.until(lambda: latest_step(run_dir) > beyond, f"a checkpoint beyond step {beyond}")


def assert_left_in_order(ended: Ended, number: signal.Signals) -> None:
    assert ended.code == 0, ended.err
    assert f"{number.name}: saving a checkpoint and leaving" in ended.err
    assert "--resume auto" in ended.out
    for text in (ended.out, ended.err):
        assert "Traceback" not in text
    assert ended.errors == []


def assert_same_run(run: Path, reference: Path) -> None:
    """Tensors, position, counts and sums of metrics: to the bit."""
    assert differing(saved_tensors(reference), saved_tensors(run)) == []
    states = [newest_state(path).model_copy(update={"resumed_from": ()}) for path in (run, reference)]
    assert states[0] == states[1]


def assert_every_step_is_told_once(run_dir: Path) -> None:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == sorted(set(steps))


def assert_every_row_was_read_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run files name their rows from the folder where training was started."""
    monkeypatch.chdir(run.parent)
    found = audit_run(run)
    assert [finding.line for finding in found.all_findings] == []
    assert found.attempts >= 2


@pytest.mark.timeout(400)
def test_ctrl_c_sigterm_and_kill_leave_a_run_that_goes_on_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process: stopped by Ctrl-C, resumed; stopped by SIGTERM, resumed; killed, resumed to the end. With dropout,
    whose randomness has to be found again, and shuffled epochs."""
    write_run_file(tmp_path, data=ENDLESS | {"order": "shuffle"}, checkpoint={"every_steps": 3}, model={"dropout": 0.2})
    run = tmp_path / "run"
    inline = ("--launch.workers", "1")
    with started(tmp_path, *TRAIN, "run", *inline) as command:
        until_saved(command, run)
        assert_left_in_order(command.end(signal.SIGINT), signal.SIGINT)
    first = latest_step(run)

    with started(tmp_path, *TRAIN, "run", *inline, "--resume", "must") as command:
        until_saved(command, run, beyond=first)
        ended = command.end(signal.SIGTERM)
        assert_left_in_order(ended, signal.SIGTERM)
        assert f"resume: from run/checkpoints/step_{first:08d}" in ended.err
    second = latest_step(run)

    with started(tmp_path, *TRAIN, "run", *inline, "--resume", "auto") as command:
        until_saved(command, run, beyond=second)
        assert command.end(signal.SIGKILL).code == -signal.SIGKILL
    third = latest_step(run)
    (run / "checkpoints" / f"step_{third + 900:08d}").mkdir()  # as a kill in the middle of a save leaves one

    last = third + 5
    ended = ran(tmp_path, *TRAIN, "run", *inline, "--resume", "auto", "--max-steps", str(last))
    assert ended.code == 0, ended.err
    assert f"resume: from run/checkpoints/step_{third:08d}" in ended.err
    assert f"step_{third + 900:08d}" in ended.err.split("ignored: ")[1].splitlines()[0]

    reference = ran(tmp_path, *TRAIN, "reference", *inline, "--max-steps", str(last))
    assert reference.code == 0, reference.err
    assert newest_state(run).step == last
    assert [int(name.removeprefix("step_")) for name in newest_state(run).resumed_from] == [first, second, third]
    assert_same_run(run, tmp_path / "reference")
    assert_every_step_is_told_once(run)
    assert_every_row_was_read_once(run, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_two_ranks_under_ray_and_torchrun_are_one_run_that_either_may_go_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's workers are stopped by SIGTERM; torchrun's go on, are stopped by Ctrl-C, and go on to the end. Reference
    is torchrun alone; one process comes to the same within rounding."""
    write_run_file(tmp_path, data=ENDLESS, checkpoint={"every_steps": 3})
    run = tmp_path / "run"
    with started(tmp_path, *TRAIN, "run", "--launch.workers", "2") as command:
        until_saved(command, run)
        ended = command.end(signal.SIGTERM)
        assert_left_in_order(ended, signal.SIGTERM)
        assert "reading by ray" in ended.out + ended.err
    by_ray = latest_step(run)
    assert by_ray >= 3

    with started(tmp_path, *TRAIN, "run", "--resume", "must", launcher=TORCHRUN) as command:
        until_saved(command, run, beyond=by_ray)
        ended = command.end(signal.SIGINT, everyone=True)
        assert "SIGINT: saving a checkpoint and leaving" in ended.err
        assert "trainer/" not in ended.err  # torchrun itself ends with a trace of its own; none is of ours
        assert ended.errors == []
    assert latest_step(run) > by_ray

    last = str(latest_step(run) + 3)
    for name, arguments, launcher in [
        ("run", ("--resume", "auto"), TORCHRUN),
        ("reference", (), TORCHRUN),
        ("alone", ("--launch.workers", "1"), ()),
    ]:
        ended = ran(tmp_path, *TRAIN, name, *arguments, "--max-steps", last, launcher=launcher)
        assert ended.code == 0, ended.err
    assert_same_run(run, tmp_path / "reference")
    assert differing(saved_tensors(run), saved_tensors(tmp_path / "alone"), tolerance=1e-3) == []
    assert_every_row_was_read_once(run, monkeypatch)
