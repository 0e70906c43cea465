"""Kill −9, anywhere and again and again: the run ends as one that never was killed, and every row was read once.

With the same number of processes to the bit; with others the global batches are the same. `audit` is the judge.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import latest_step, ran, started, write_run_file
from tests.integration.killing import Kill, train_until
from tests.pipelines.rows import write_segments
from tests.trainer.runs import Run, differing, newest_state, saved_tensors, tiny_config
from trainer.audit import audit_run
from trainer.audit_lineage import account_of
from trainer.consumed_format import decode_rows

# 64 rows: 14 global batches of 5 an epoch, in windows of 3; the last batch of each segment is short.
SEGMENTS = {"2026-01-01": [14, 9], "2026-01-02": [16, 8], "2026-01-03": [17]}
STEPS = 28
SETTINGS: dict[str, Any] = {"checkpoint": {"every_steps": 4, "every_minutes": 0.0}, "train": {"log_every": 1}}
Batches = dict[tuple[Any, ...], frozenset[tuple[str, int]]]


def make_run(folder: Path, name: str, order: str) -> Run:
    """Dropout, whose randomness has to be found again; two epochs."""
    config = tiny_config(folder / "rows", data={"order": order, "epochs": 2}, model={"dropout": 0.2}, **SETTINGS)
    return Run(config, folder / name, "auto")


def global_batches(run: Run) -> Batches:
    """{(epoch, segment, batches, steps): the rows of all ranks}, of the lineage."""
    found: dict[tuple[Any, ...], set[tuple[str, int]]] = {}
    account = account_of(run.run_dir / "consumed", newest_state(run.run_dir).step)
    for segment in account.lines:
        for _, _, record in account.records(segment):
            rows = found.setdefault((record.epoch, record.segment, record.batches, record.steps), set())
            rows.update((part.file, int(row)) for part in record.parts for row in decode_rows(part.rows))
    return {key: frozenset(rows) for key, rows in found.items()}


def killed_again_and_again(run: Run, kills: Iterator[tuple[int, Kill]], last_world_size: int) -> list[str]:
    """Trains on after every kill, at last to the end. Returns the half-written checkpoints that were left behind."""
    torn: list[str] = []
    for world_size, kill in kills:
        ending = train_until(kill, run, world_size)
        torn += ending.torn
        if not ending.killed:
            return torn
    assert not train_until(None, run, last_world_size).killed
    return torn


def assert_as_if_never_killed(run: Run, reference: Run, to_the_bit: bool) -> None:
    found = audit_run(run.run_dir)
    assert [finding.line for finding in found.all_findings] == []
    assert (found.steps, sum(s.read for s in found.segments), sum(s.not_yet for s in found.segments)) == (STEPS, 128, 0)
    assert global_batches(run) == global_batches(reference)
    left_out = {"resumed_from", "extra", "world_size"}
    states = [newest_state(each.run_dir).model_dump(exclude=left_out) for each in (run, reference)]
    assert states[0] == states[1]
    if to_the_bit:
        assert differing(saved_tensors(reference.run_dir), saved_tensors(run.run_dir)) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kills")
    write_segments(path / "rows", SEGMENTS)
    return path


@pytest.fixture(scope="module")
def references(folder: Path) -> dict[str, Run]:
    """{order: a run of one process that was never killed}, made when asked for."""

    class Made(dict[str, Run]):
        def __missing__(self, order: str) -> Run:
            self[order] = make_run(folder, f"reference-{order}", order)
            train_until(None, self[order], 1)
            return self[order]

    return Made()


@pytest.mark.timeout(200)
def test_killed_in_a_save_and_in_mid_window_it_is_to_the_bit_the_same(folder: Path, references: dict[str, Run]) -> None:
    """Shuffled. While a checkpoint is written, and at a step between two."""
    run = make_run(folder, "run", "shuffle")
    kills = [Kill(4, "saving"), Kill(18, "step")]
    torn = killed_again_and_again(run, ((1, kill) for kill in kills), 1)
    assert torn, "a save was cut short"
    assert_as_if_never_killed(run, references["shuffle"], to_the_bit=True)


@pytest.mark.timeout(200)
def test_killed_and_gone_on_with_on_other_numbers_of_processes(folder: Path, references: dict[str, Run]) -> None:
    """Two, of which one dies before the other; three go on."""
    run = make_run(folder, "resized", "shuffle")
    killed_again_and_again(run, iter([(2, Kill(13, "step", 0.03, first=1))]), 3)
    assert newest_state(run.run_dir).resumed_from
    assert_as_if_never_killed(run, references["shuffle"], to_the_bit=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("order", ["shuffle", "time"])
@pytest.mark.parametrize("resized", [False, True], ids=["one process", "one, two or three"])
def test_twenty_random_kills(folder: Path, references: dict[str, Run], order: str, resized: bool) -> None:
    """Several runs, each killed at random moments until it comes to its end."""
    random_ = random.Random(f"{order} {resized}")
    kills, torn = 0, 0
    for number in range(100):
        run = make_run(folder, f"{order}-{resized}-{number}", order)
        before = kills

        def moments(run: Run = run) -> Iterator[tuple[int, Kill]]:
            nonlocal kills
            for _ in range(12):
                world_size = random_.randint(1, 3) if resized else 1
                step = (
                    newest_state(run.run_dir).step
                    if (run.run_dir / "checkpoints").exists() and any((run.run_dir / "checkpoints").glob("*/COMMIT"))
                    else 0
                )
                if step >= STEPS - 1:
                    return
                kills += 1
                yield world_size, Kill.draw(random_, step, world_size)

        torn += len(killed_again_and_again(run, moments(), random_.randint(1, 3) if resized else 1))
        assert kills > before
        assert_as_if_never_killed(run, references[order], to_the_bit=not resized)
        if kills >= 20:
            break
    print(f"{order}, resized {resized}: {kills} kills in {number + 1} runs, {torn} checkpoints cut short")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_under_ray_is_killed_with_all_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with two workers, its windows carried by Ray Data; at last one process alone."""
    write_run_file(tmp_path, SEGMENTS, data={"order": "shuffle", "epochs": 2}, **SETTINGS)
    arguments = ("train", "--config", "run.toml", "--run-dir", "run", "--resume", "auto")
    for beyond in (0, 8):
        with started(tmp_path, *arguments, "--launch.workers", "2") as command:
            command.until(lambda beyond=beyond: latest_step(tmp_path / "run") > beyond, f"a step beyond {beyond}")
            command.end(signal.SIGKILL, everyone=True)
    ended = ran(tmp_path, *arguments, "--launch.workers", "1")
    assert ended.code == 0, ended.err
    monkeypatch.chdir(tmp_path)
    found = audit_run(tmp_path / "run")
    assert [finding.line for finding in found.all_findings] == []
    assert (found.steps, sum(s.read for s in found.segments)) == (STEPS, 128)
