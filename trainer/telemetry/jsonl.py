"""metrics.jsonl: one JSON object a line, for DuckDB, pandas, jq and our own verbs.

Always `time` (seconds since 1970), `kind` ("train", "eval", "checkpoint", "event"), `step`, `examples`. What is not
known or not defined is null; NaN and infinity never get in. On resume the lines of later steps are dropped, because
those steps are going to be trained again: every step is in the file once, and an event line says how many went.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from trainer.metrics.exact import Gauc
from trainer.metrics.values import TaskValues
from trainer.run_dir import naming, write_atomic
from trainer.telemetry.records import EvalRecord, TrainRecord, finite
from trainer.telemetry.tables import table_lines


def train_line(record: TrainRecord) -> dict[str, Any]:
    """Keys of kind train; `tables` only where steps were sampled. `step_split`, `ready_batches`, `own_seconds` and
    `system`: of rank 0."""
    keys = ("loss", "examples_per_second", "rows_per_second", "step_seconds", "data_wait_seconds", "grad_norm")
    more = (
        "learning_rate",
        "rows",
        "epoch",
        "segment",
        "data_through",
        "bad_steps",
        "quarantined_rows",
        "flops_per_second",
        "mfu",
        "tokens_per_second",
        "weight_norm",
        "dense_staleness",
        "unlabelled_steps",
        "read_retries",
        "epoch_progress",
        "seconds_left",
        "ready_batches",
        "ready_windows",
        "own_seconds",
        "median_rank_seconds",
        "data_lag_seconds",
        "price_per_billion_examples",
    )
    line = {key: getattr(record, key) for key in (*keys, *more)} | {
        "step_split": dict(record.step_split),
        "tasks": {task: _train_values(values) for task, values in record.tasks.items()},
        "lifetime": {task: _train_values(values) for task, values in record.lifetime.items()},
    }
    line |= {
        "slowest": asdict(record.slowest) if record.slowest else None,
        "goodput": asdict(record.goodput) | {"share": record.goodput.share} if record.goodput else None,
        "system": asdict(record.system) if record.system else None,
    }
    line |= {"tables": table_lines(record.tables)} if record.tables else {}
    sliced = {"by": record.slice_by, "values": slice_values(record.slices)}
    return line | ({"slices": sliced} if record.slices else {})


def eval_line(record: EvalRecord) -> dict[str, Any]:
    """Keys of kind eval. gauc_left_out_share: of the examples, of users with one class only; gauc_one_class_share: of
    the users. collapse, slices: only where that was looked at."""
    line = {"split": record.split, "rows": record.rows, "seconds": record.seconds}
    line["tasks"] = _eval_tasks(record.tasks, record.gauc)
    if record.collapse:
        line["collapse"] = record.collapse.to_json()
    if record.slices:
        of_values = {value: _eval_tasks(*scores) for value, scores in record.slices.scores.items()}
        line["slices"] = {"by": record.slices.by, "values": of_values, "others": record.slices.others}
    return line


def _eval_tasks(tasks: Mapping[str, TaskValues], by_user: Mapping[str, Gauc]) -> dict[str, Any]:
    found = {}
    for task, values in tasks.items():
        gauc = by_user.get(task)
        found[task] = task_values(values) | {
            "gauc": gauc.value if gauc else None,
            "gauc_users": gauc.users if gauc else None,
            "gauc_left_out_share": gauc.left_out_share if gauc else None,
            "gauc_one_class_users": gauc.one_class_users if gauc else None,
            "gauc_one_class_share": gauc.one_class_share if gauc else None,
        }
    return found


def _train_values(values: TaskValues) -> dict[str, float | None]:
    """auc_error: the exact AUC is within this of `auc`, which comes from a histogram."""
    return task_values(values) | {"auc_error": values.auc_error if values.auc is not None else None}


def task_values(values: TaskValues) -> dict[str, float | None]:
    """One task's metrics, by their names in the file."""
    return {key: getattr(values, key) for key in ("ne", "auc", "calibration", "loss", "examples")}


def slice_values(slices: Mapping[str, Mapping[str, TaskValues]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """The same per slice, of those that had any example."""
    return {
        name: {task: task_values(values) for task, values in of.items()}
        for name, of in slices.items()
        if any(values.examples for values in of.values())
    }


class JsonLines:
    """Appends whole lines, each visible to readers when the call returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun = False
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, examples: int, values: Mapping[str, Any]) -> None:
        """One line. The first one of a run that was not rewound drops the lines that it is about to repeat."""
        if not self._begun:
            self.rewind(step - 1)
        line = {"time": time.time(), "kind": kind, "step": step, "examples": examples, **values}
        with naming(self._path):
            self._file.write(json.dumps(_clean(line), ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()

    def rewind(self, step: int) -> int:
        """Drops the lines of steps after `step`, and one that a crash cut short. Returns how many went."""
        self._begun = True
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()  # it may be cut inside a letter
        kept = [line for line in lines if _step_of(line) <= step]
        if len(kept) == len(lines):
            return 0
        self._file.close()
        write_atomic(self._path, "".join(f"{line}\n" for line in kept))
        self._file = self._path.open("a", encoding="utf-8")
        return len(lines) - len(kept)

    def close(self) -> None:
        """No more lines."""
        self._file.close()


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _clean(inner) for key, inner in value.items()}
    return finite(value) if isinstance(value, float) else value


def _step_of(line: str) -> float:
    """Infinity for a line that is not whole."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
