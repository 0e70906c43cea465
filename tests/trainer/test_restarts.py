"""Which ends of a training are followed by another start, how often, and with what order."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from embeddings.errors import IdMapError, PlanDoesNotFitError
from pipelines.errors import DataError, SchemaError
from tests.trainer.runs import Never, tiny_config
from trainer.errors import CheckpointError, ConfigError, LostRankError, NonFiniteError, RunDataError
from trainer.job import Job
from trainer.restarts import Restarts, may_end_better
from trainer.run_dir import RunDir

LOST = LostRankError("rank 1 (host h, pid 4711), last seen at step 9 (step), is gone")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tiny_config(tmp_path / "rows"), str(tmp_path / "run"), Never(), "never", began=1.0)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    return lambda: [record.getMessage() for record in caplog.records]


def commit(job: Job, step: int) -> None:
    path = RunDir(job.run_dir, "").step_dir(step)
    assert isinstance(path, Path)
    path.mkdir(parents=True)
    (path / "COMMIT").write_text("{}")


def dead(rank: int, preempted: bool = False) -> WorkerGroupError:
    """What Ray raises for a rank whose process is gone."""
    gone = ActorDiedError()
    gone._preempted = preempted
    return WorkerGroupError("gone", {rank: WorkerHealthCheckFailedError("no answer", gone)})


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (LOST, True),
        (RuntimeError("CUDA error: unspecified launch failure"), True),
        (MemoryError(), True),
        (OSError(errno.ECONNRESET, "connection reset"), True),
        (OSError(errno.ENOSPC, "no space left"), False),
        (NonFiniteError("loss"), False),
        (ConfigError("a"), False),
        (SchemaError(["a"]), False),
        (DataError(["a"]), False),
        (RunDataError("a"), False),
        (PlanDoesNotFitError(["a"]), False),
        (CheckpointError("a"), False),
        (IdMapError("a"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_its_user_has_to_mend_is_not_begun_again(error: BaseException, again: bool) -> None:
    assert may_end_better(error) == again


def test_a_start_that_follows_resumes_whatever_was_asked_for(job: Job, said: Callable[[], list[str]]) -> None:
    restarts = Restarts(job, 3)
    following = restarts.next_job(replace(job, resume="never"), LOST)
    assert following is not None
    assert (following.resume, following.run_dir) == ("auto", job.run_dir)
    assert following.began > job.began, "the time until then is time down, and not part of the new start"
    (line,) = said()
    assert line.startswith("rank 1 (host h, pid 4711), last seen at step 9 (step), is gone; begun again from the begin")
    assert line.endswith("start 2, restart 1 of 3 without a new checkpoint")


def test_restarts_are_counted_from_the_newest_checkpoint_on(job: Job, said: Callable[[], list[str]]) -> None:
    commit(job, 4)
    restarts = Restarts(job, 2)
    assert restarts.next_job(job, LOST)
    commit(job, 8)
    assert restarts.next_job(job, LOST), "it got on: this one is the first again"
    assert restarts.next_job(job, LOST)
    assert restarts.next_job(job, LOST) is None
    assert [line.partition("; ")[2] for line in said()[:3]] == [
        "begun again from step_00000004: start 2, restart 1 of 2 without a new checkpoint",
        "begun again from step_00000008: start 3, restart 1 of 2 without a new checkpoint",
        "begun again from step_00000008: start 4, restart 2 of 2 without a new checkpoint",
    ]
    assert said()[3] == "2 restarts in a row without a new checkpoint (launch.max_restarts)"


def test_without_restarts_nothing_is_said(job: Job, said: Callable[[], list[str]]) -> None:
    assert Restarts(job, 0).next_job(job, LOST) is None
    assert said() == []


def test_hosts_that_are_taken_back_do_not_count(job: Job) -> None:
    restarts = Restarts(job, 1)
    for error in [dead(1, preempted=True)] * 3 + [PreemptedLikeError()]:
        assert restarts.next_job(job, error)
    assert restarts.next_job(job, dead(1))
    assert restarts.next_job(job, dead(1)) is None


class PreemptedLikeError(Exception):
    """Ray's PreemptionError, as far as we look at it."""

    preemption_info: Any = SimpleNamespace(preempted_ranks=[1])


def test_one_ranks_own_error_wins_over_what_others_saw_of_it(job: Job) -> None:
    """Where both reach the command at once."""
    both = WorkerGroupError("two", {0: LOST, 1: RunDataError("column 'click' holds 3")})
    assert Restarts(job, 3).next_job(job, both) is None
    assert Restarts(job, 3).next_job(job, WorkerGroupError("full", {1: OSError(errno.ENOSPC, "full")})) is None
    assert Restarts(job, 3).next_job(job, WorkerGroupError("lost", {0: LOST}))


def test_it_is_in_the_log_of_the_run_too(job: Job) -> None:
    Path(job.run_dir).mkdir()
    log = RunDir(job.run_dir, "").train_log
    restarts = Restarts(job, 3)
    restarts.next_job(job, LOST)
    restarts.next_job(job, WorkerGroupError("Traceback of rank 0\nCUDA error: lost", {0: RuntimeError("CUDA error")}))
    text = log.read_text()
    assert "WARNING trainer.restarts: rank 1 (host h, pid 4711)" in text
    assert "RuntimeError: CUDA error; begun again" in text
    assert text.count("Traceback of rank 0") == 1
