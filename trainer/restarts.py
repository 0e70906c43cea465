"""Whether a run whose training ended badly is begun again, and from where.

Kept by the launcher, which outlives the ranks. What its user has to mend is not tried again: the next start would end
the same way.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import replace
from pathlib import Path

from trainer import logs
from trainer.checkpoint.folder import Location, name_of
from trainer.cli_boundary import DISK_ERRORS, exit_code
from trainer.errors import CheckpointError, LostRankError
from trainer.job import Job
from trainer.ray_errors import is_preemption, original_error, raised_by_a_rank
from trainer.run_dir import RunDir

log = logging.getLogger(__name__)


class Restarts:
    """limit: starts in a row that may follow a bad end without a checkpoint newer than the one before it."""

    def __init__(self, job: Job, limit: int) -> None:
        self._run_dir = RunDir(job.run_dir, job.config.checkpoint.store)
        self._limit, self._in_a_row, self._starts = limit, 0, 1
        self._newest: Location | None = None
        self._newest = self._latest()

    def next_job(self, job: Job, error: BaseException) -> Job | None:
        """The order for the next start, which always resumes; None where the error is the run's end. Says so in the
        log, and in train.log.

        error: of ours, or as Ray raised it.
        """
        cause = original_error(error)
        cause = raised_by_a_rank(cause) or cause
        if not self._limit or not may_end_better(cause):
            return None
        newest = self._latest()
        self._in_a_row = 0 if newest != self._newest else self._in_a_row
        self._newest = newest
        if is_preemption(error):
            count = "a host was taken back, which does not count"
        elif self._in_a_row == self._limit:
            self._say(logging.ERROR, f"{self._limit} restarts in a row without a new checkpoint (launch.max_restarts)")
            return None
        else:
            self._in_a_row += 1
            count = f"restart {self._in_a_row} of {self._limit} without a new checkpoint"
        self._starts += 1
        place = f"from {name_of(newest)}" if newest is not None else "from the beginning, as there is no checkpoint yet"
        self._say(logging.WARNING, f"{spoken(cause)}; begun again {place}: start {self._starts}, {count}", error)
        return replace(job, resume="auto", began=time.time())

    def _latest(self) -> Location | None:
        """A store that does not answer has no news."""
        try:
            return self._run_dir.latest()
        except (OSError, CheckpointError) as error:
            log.warning("the checkpoints cannot be listed: %s", error)
            return self._newest

    def _say(self, level: int, line: str, error: BaseException | None = None) -> None:
        """The ranks, who write train.log, are gone."""
        is_foreseen = error is None or isinstance(original_error(error), LostRankError)
        handler = None
        with contextlib.suppress(OSError):
            handler = logs.to_file(Path(self._run_dir.train_log))
        log.log(level, "%s", line, exc_info=None if is_foreseen else error)
        if handler is not None:
            logs.detach(handler)


def may_end_better(error: BaseException) -> bool:
    """Whether another start may: of a lost rank or an unforeseen error, and of nothing that its user has to mend or has
    decided."""
    if isinstance(error, LostRankError):
        return True
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return False
    return isinstance(error, Exception) and exit_code(error) is None


def spoken(error: BaseException) -> str:
    """In one line, without advice."""
    if isinstance(error, LostRankError):
        return f"{error.who}{f' ({error.how})' if error.how else ''}"
    first = str(error).split("\n", 1)[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
