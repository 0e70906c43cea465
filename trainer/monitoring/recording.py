"""Series that Prometheus records: one per run, without NaN, so that alerts can look at their past.

Several ranks may tell the same figure, and a figure that is not known yet is NaN or 0: `> 0` leaves those out.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.monitoring.promql import metrics_in


@dataclass(frozen=True)
class Recording:
    """name: level:metric:operation, as Prometheus' users write it. says: what it is."""

    name: str
    expr: str
    says: str

    @property
    def metrics(self) -> frozenset[str]:
        """What it reads."""
        return metrics_in(self.expr)


RECORDINGS = (
    Recording(
        "run:tokenformer_examples_per_second:max",
        "max by (run) (tokenformer_examples_per_second > 0)",
        "Speed of a run, from its first log on",
    ),
    Recording("run:tokenformer_loss:max", "max by (run) (tokenformer_loss > 0)", "Loss of a run, where it has one"),
    Recording(
        "run_task:tokenformer_train_auc:max",
        "max by (run, task) (tokenformer_train_auc > 0)",
        "AUC before each update, where both classes were seen",
    ),
    Recording(
        "run_task:tokenformer_train_calibration:max",
        "max by (run, task) (tokenformer_train_calibration > 0)",
        "Predicted over observed positives, where there were any",
    ),
    Recording(
        "run:tokenformer_data_wait:ratio",
        "max by (run) (tokenformer_data_wait_seconds) / (max by (run) (tokenformer_step_seconds) > 0)",
        "Share of the step that the rank that waits most for its batches waits",
    ),
    Recording(
        "run:tokenformer_bad_steps:ratio15m",
        "max by (run) (increase(tokenformer_bad_steps_total[15m])) / "
        "(max by (run) (increase(tokenformer_steps_total[15m])) > 0)",
        "Share of the steps of 15 minutes that were skipped for a NaN or infinity",
    ),
    Recording(
        "run:tokenformer_quarantined_rows:ratio1h",
        "max by (run) (increase(tokenformer_quarantined_rows_total[1h])) / "
        "(max by (run) (increase(tokenformer_rows_total[1h])) > 0)",
        "Share of the rows of an hour that were set aside",
    ),
    Recording(
        "run:tokenformer_slowest_rank:ratio",
        "max by (run) (tokenformer_slowest_rank_step_seconds) / "
        "(max by (run) (tokenformer_median_rank_step_seconds) > 0)",
        "What the slowest rank computes in a step, over the median rank's",
    ),
)
