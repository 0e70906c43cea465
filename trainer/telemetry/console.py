"""The line people watch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from trainer.telemetry.words import UNKNOWN, duration, number, rate

if TYPE_CHECKING:  # they import torch, and the command says its last words without
    from trainer.metrics.exact import Gauc
    from trainer.metrics.values import TaskValues
    from trainer.telemetry.records import EvalRecord, TrainRecord
    from trainer.telemetry.updates import Begun

__all__ = ["UNKNOWN", "begin_line", "collapse_line", "duration", "eval_line", "number", "rate", "train_line"]
WORTH_SAYING = 0.05  # of a step


def begin_line(begun: Begun) -> str:
    """`to train: steps 1–102, of 32 rows each · segments 2026-11-13 … 2026-11-14 (2), 3 epochs`"""
    if not begun.steps_left:
        return f"nothing is left to train after step {begun.step}"
    names = begun.segments
    span = f"{names[0]} … {names[-1]} ({len(names)})" if len(names) > 1 else "".join(names)
    epochs = f", {begun.epochs} epochs" if begun.epochs > 1 else ""
    steps = f"steps {begun.step + 1}–{begun.step + begun.steps_left}, of {begun.rows_a_step} rows each"
    return f"to train: {steps} · segment{'s' if len(names) > 1 else ''} {span}{epochs}"


def train_line(record: TrainRecord) -> str:
    """`step 400 · 1.9 k ex/s · loss .412 · click NE .873 AUC .742 cal 1.01 · data through … · wait 1 % · …`"""
    parts = [f"step {record.step}", f"{rate(record.examples_per_second)} ex/s", f"loss {number(record.loss)}"]
    parts += [f"{task} {_scores(values)}" for task, values in record.tasks.items()]
    if record.data_through:
        through = datetime.fromtimestamp(record.data_through / 1e6, UTC)
        parts.append(f"data through {through:%Y-%m-%d %H:%M}")
    if record.step_seconds > 0:
        parts.append(f"wait {100 * record.data_wait_seconds / record.step_seconds:.0f} %")
        exposed = record.step_split.get("exposed_communication", 0.0) / record.step_seconds
        if exposed > WORTH_SAYING:
            parts.append(f"exposed communication {100 * exposed:.0f} %")
    if record.bad_steps:
        parts.append(f"{record.bad_steps} bad {'step' if record.bad_steps == 1 else 'steps'}")
    if record.quarantined_rows:
        parts.append(f"{record.quarantined_rows} bad {'row' if record.quarantined_rows == 1 else 'rows'} set aside")
    if record.checkpoint_age_seconds is not None:
        parts.append(f"checkpoint {duration(record.checkpoint_age_seconds)} ago")
    if record.seconds_left is not None:
        parts.append(f"{duration(record.seconds_left)} left")
    return " · ".join(parts)


def eval_line(record: EvalRecord) -> str:
    """`evaluation of dt=2026-11-20 at step 400 · click NE .871 AUC .744 GAUC .702 cal 1.00`"""
    parts = [f"evaluation of {record.split} at step {record.step}"]
    return " · ".join(parts + [f"{task} {_scores(v, record.gauc.get(task))}" for task, v in record.tasks.items()])


def collapse_line(collapse: Mapping[str, Any]) -> str:
    """`effective rank by layer, of 64 (256 rows) · sequence 21.0 30.4 28.1 · field 3.2 9.1 9.9 · attention on fields,
    % · sequence 12.0 3.1`; of Collapse.to_json."""

    def layers(values: Sequence[float | None], times: float = 1.0) -> str:
        return " ".join(number(None if value is None else times * value, 1) for value in values)

    parts = [f"effective rank by layer, of {collapse['dim']} ({collapse['rows']} rows)"]
    parts += [f"{kind} {layers(values)}" for kind, values in collapse["effective_rank"].items()]
    looked = [f"{kind} {layers(keys['field'], 100.0)}" for kind, keys in collapse["attention"].items()]
    return " · ".join([*parts, *(["attention on fields, %", *looked] if looked else [])])


def _scores(values: TaskValues, gauc: Gauc | None = None) -> str:
    by_user = f" GAUC {number(gauc.value)}" if gauc else ""
    if gauc and gauc.one_class_users:
        by_user += f" ({100 * gauc.one_class_share:.0f} % one-class users)"
    return f"NE {number(values.ne)} AUC {number(values.auc)}{by_user} cal {number(values.calibration, 2)}"
