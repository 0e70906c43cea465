"""TensorBoard curves over steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.metrics.values import TaskValues
from trainer.telemetry.records import EvalRecord, TrainRecord, finite
from trainer.telemetry.system import FIGURES
from trainer.telemetry.tables import highest

CURVES = (
    "loss",
    "examples_per_second",
    "rows_per_second",
    "flops_per_second",
    "mfu",
    "tokens_per_second",
    "step_seconds",
    "data_wait_seconds",
    "grad_norm",
    "weight_norm",
    "learning_rate",
    "bad_steps",
    "epoch_progress",
    "ready_windows",
    "data_lag_seconds",
    "price_per_billion_examples",
    "loss_spikes",
)
FLUSH_SECONDS = 10  # whoever looks while a run trains sees what the terminal shows
TABLE_CURVES = ("hottest_share", "unknown_rate", "collision_rate", "fill", "row_norm_max")


class TensorBoard:
    """Event files under `path`, made at the first point. Tags: train/loss, train/TASK/ne, eval/SPLIT/TASK/gauc …,
    step/PART: its seconds, tables/highest_FIGURE: over all tables, fleet/…: goodput, lost seconds by cause, the slowest
    rank's and the median rank's own seconds of a step, and system/…: bytes.

    Points that an earlier process wrote for steps that are trained again are hidden (TensorBoard's purge_step).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None

    def train(self, record: TrainRecord) -> None:
        """One point per curve."""
        for name in CURVES:
            self._add(f"train/{name}", getattr(record, name), record.step)
        for part, seconds in record.step_split.items():
            self._add(f"step/{part}", seconds, record.step)
        for task, values in record.tasks.items():
            self._task(f"train/{task}", values, record.step)
        self._fleet(record)
        for figure in TABLE_CURVES:
            for value in highest(record.tables, figure, 1).values():
                self._add(f"tables/highest_{figure}", value, record.step)

    def eval(self, record: EvalRecord) -> None:
        """One point per curve of that split."""
        for task, values in record.tasks.items():
            self._task(f"eval/{record.split}/{task}", values, record.step)
            if task in record.gauc:
                self._add(f"eval/{record.split}/{task}/gauc", record.gauc[task].value, record.step)
        for kind, spectra in record.collapse.spectra.items() if record.collapse is not None else ():
            for layer, spectrum in enumerate(spectra):
                self._add(f"collapse/effective_rank/{kind}/{layer}", spectrum.effective_rank, record.step)

    def rewind(self, step: int) -> None:
        """After a resume at `step`: what came later is hidden."""
        self._writer = _writer(self._path, step + 1)

    def close(self) -> None:
        """Everything is on disk."""
        if self._writer is not None:
            self._writer.close()

    def _fleet(self, record: TrainRecord) -> None:
        if record.goodput is not None:
            self._add("fleet/goodput", record.goodput.share, record.step)
            for cause, seconds in record.goodput.lost_seconds.items():
                self._add(f"fleet/lost_seconds/{cause}", seconds, record.step)
        if record.slowest is not None:
            self._add("fleet/slowest_rank_step_seconds", record.slowest.seconds, record.step)
            self._add("fleet/median_rank_step_seconds", record.median_rank_seconds, record.step)
        if record.system is not None:
            for name in FIGURES:
                self._add(f"system/{name}", getattr(record.system, name), record.step)

    def _task(self, prefix: str, values: TaskValues, step: int) -> None:
        for name in ("ne", "auc", "calibration", "loss"):
            self._add(f"{prefix}/{name}", getattr(values, name), step)

    def _add(self, tag: str, value: float | None, step: int) -> None:
        known = finite(value)
        if known is None:
            return
        if self._writer is None:
            self._writer = _writer(self._path, step)
        self._writer.add_scalar(tag, known, step)


def _writer(path: Path, purge_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - a second of imports, for rank 0 alone

    return SummaryWriter(log_dir=str(path), purge_step=purge_step, flush_secs=FLUSH_SECONDS)
