"""What a run tells the display of its command, which may be another process: plain values, picklable. Imports nothing
that is slow to import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from trainer.lines import Line

if TYPE_CHECKING:
    from trainer.telemetry.records import EvalRecord, TrainRecord


class At(NamedTuple):
    """Where the training thread is. seconds: since it came there. done, of: batches of an evaluation, about."""

    step: int
    phase: str
    seconds: float
    done: int = 0
    of: int = 0


@dataclass(frozen=True)
class Phase:
    """What goes on where no step is trained yet, or no more."""

    text: str


@dataclass(frozen=True)
class Begun:
    """Training begins after `step`. steps_left: to the end of the data or max_steps, as far as is known. rows_a_step:
    request rows of a global batch. segments, epochs: of the run."""

    step: int
    rows: int
    steps_left: int
    rows_a_step: int
    segments: tuple[str, ...] = ()
    epochs: int = 1


@dataclass(frozen=True)
class Scores:
    """Of one task. Values that are not defined are None."""

    ne: float | None
    auc: float | None
    calibration: float | None = None
    gauc: float | None = None


@dataclass(frozen=True)
class Trained:
    """A log. Shares are of a step. memory_bytes: of the process; device_bytes: of its GPU, held by torch."""

    step: int
    rows: int
    epoch: int
    segment: str
    loss: float | None
    examples_per_second: float
    rows_per_second: float
    step_seconds: float
    wait_share: float
    seconds_left: float | None
    checkpoint_age_seconds: float | None
    tasks: dict[str, Scores]
    bad_steps: int = 0
    quarantined_rows: int = 0
    memory_bytes: int | None = None
    device_bytes: int | None = None


@dataclass(frozen=True)
class Evaluated:
    """An evaluation is done."""

    step: int
    split: str
    tasks: dict[str, Scores]


@dataclass(frozen=True)
class Saved:
    """A checkpoint was committed."""

    step: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Happened:
    """Anything else worth seeing for a while."""

    text: str


Update = Phase | Begun | Trained | Evaluated | Saved | Happened
Look = Callable[[], "At | None"]


class Screen(Protocol):
    """Where a run speaks: the terminal of the command, or the way to it. Any thread may call it; no call waits."""

    def line(self, line: Line) -> None:
        """A line of the log."""
        ...

    def show(self, update: Update) -> None:
        """What a display shows besides."""
        ...

    def follow(self, look: Look) -> None:
        """A cheap question that may be asked a few times a second, from another thread."""
        ...


def trained(record: TrainRecord) -> Trained:
    """What is shown of a log."""
    system = record.system
    return Trained(
        step=record.step,
        rows=record.rows,
        epoch=record.epoch,
        segment=record.segment,
        loss=record.loss,
        examples_per_second=record.examples_per_second,
        rows_per_second=record.rows_per_second,
        step_seconds=record.step_seconds,
        wait_share=record.data_wait_seconds / record.step_seconds if record.step_seconds > 0 else 0.0,
        seconds_left=record.seconds_left,
        checkpoint_age_seconds=record.checkpoint_age_seconds,
        tasks={task: Scores(v.ne, v.auc, v.calibration) for task, v in record.tasks.items()},
        bad_steps=record.bad_steps,
        quarantined_rows=record.quarantined_rows,
        memory_bytes=system.process_resident_bytes if system else None,
        device_bytes=system.device_memory_reserved_bytes if system else None,
    )


def evaluated(record: EvalRecord) -> Evaluated:
    """What is shown of an evaluation."""
    gauc = {task: found.value for task, found in record.gauc.items()}
    tasks = {task: Scores(v.ne, v.auc, v.calibration, gauc.get(task)) for task, v in record.tasks.items()}
    return Evaluated(record.step, record.split, tasks)
