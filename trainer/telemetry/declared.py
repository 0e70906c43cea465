"""Every Prometheus metric there is, in one table: the endpoint, the dashboards and the docs are made from it.

Base units (seconds, bytes, ratios); counters end in _total; labels stay few, never a user or an item.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge"]
SCORES = ("ne", "auc", "calibration")


@dataclass(frozen=True)
class Metric:
    """name: without the prefix; a counter's ends in _total. unit: "" for a plain number."""

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """As exposed."""
        return f"tokenformer_{self.name}"


# Health of a table: figure and what it says. Of every one the higher is the more worth looking at.
TABLE_FIGURES = {
    "unique_share": "Unique ids over occurrences of ids, in a global batch",
    "hottest_share": "Occurrences of the most frequent id over all, in a global batch",
    "unknown_rate": "Occurrences of ids that have the unknown row over all",
    "collision_rate": "Unique ids of a global batch that share their row with another over all; hash tables",
    "admissions": "Ids given a row since the sample before; tables with buckets",
    "evictions": "Ids that lost their row since the sample before; tables with buckets",
    "fill": "Rows handed out over rows; tables with buckets",
    "row_norm": "Mean L2 norm of the rows looked up, each occurrence counted",
    "row_norm_max": "Largest L2 norm of a row looked up",
    "never_touched_share": "Rows that no gradient has reached over rows, on a sample",
}

METRICS = (
    Metric("info", "gauge", "", "1; the label says which process this is", ("rank",)),
    Metric("steps_total", "counter", "", "Optimizer steps since the model's birth"),
    Metric("examples_total", "counter", "", "Supervised positions with a label since the model's birth, all ranks"),
    Metric("rows_total", "counter", "", "Request rows since the model's birth, all ranks"),
    Metric("quarantined_rows_total", "counter", "", "Of these, bad rows that were set aside"),
    Metric("bad_steps_total", "counter", "", "Steps skipped for a NaN or infinite loss or gradient"),
    Metric(
        "read_retries_total", "counter", "", "Reads tried again after a transient error of the store, since this start"
    ),
    Metric("loss", "gauge", "", "Training loss, mean since the last log"),
    Metric("examples_per_second", "gauge", "", "Supervised positions a second, all ranks"),
    Metric("rows_per_second", "gauge", "", "Request rows a second, all ranks"),
    Metric("flops_per_second", "gauge", "", "Floating-point operations of the ranker a second, all ranks"),
    Metric("mfu", "gauge", "", "Model FLOPs utilisation: these over the peak of all workers"),
    Metric("step_seconds", "gauge", "seconds", "Wall time of a step, mean since the last log"),
    Metric(
        "data_wait_seconds", "gauge", "seconds", "Part of a step that waited for its batch, mean since the last log"
    ),
    Metric("step_part_seconds", "gauge", "seconds", "Part of a step of this rank, mean since the last log", ("part",)),
    Metric("dense_grad_norm", "gauge", "", "L2 norm of the dense gradient before clipping"),
    Metric("learning_rate", "gauge", "", "Of the dense optimizer"),
    Metric("data_through_timestamp_seconds", "gauge", "seconds", "Newest event time trained on, since 1970"),
    Metric("left_seconds", "gauge", "seconds", "Estimated time to the end of the run"),
    Metric("train_ne", "gauge", "", "Normalized entropy before each update, since the last log", ("task",)),
    Metric("train_auc", "gauge", "", "AUC before each update, since the last log", ("task",)),
    Metric("train_calibration", "gauge", "", "Predicted over observed positives, since the last log", ("task",)),
    Metric("eval_ne", "gauge", "", "Normalized entropy of the last evaluation", ("split", "task")),
    Metric("eval_auc", "gauge", "", "AUC of the last evaluation", ("split", "task")),
    Metric("eval_gauc", "gauge", "", "AUC averaged over users, last evaluation", ("split", "task")),
    Metric("eval_calibration", "gauge", "", "Predicted over observed positives, last evaluation", ("split", "task")),
    Metric("eval_loss", "gauge", "", "Log loss of the last evaluation", ("split", "task")),
    Metric(
        "effective_rank", "gauge", "", "Of a layer's tokens, last evaluation with collapse_rows", ("tokens", "layer")
    ),
    Metric(
        "attention_on_fields",
        "gauge",
        "",
        "Share of a layer's attention, last evaluation with collapse_rows",
        ("queries", "layer"),
    ),
    Metric("checkpoints_total", "counter", "", "Checkpoints committed by this process"),
    Metric("checkpoint_timestamp_seconds", "gauge", "seconds", "When the newest was committed, since 1970"),
    Metric("checkpoint_step", "gauge", "", "Step of the newest checkpoint"),
    Metric("checkpoint_save_seconds", "gauge", "seconds", "Time the newest took, from its step to its commit"),
    Metric("checkpoint_stall_seconds", "gauge", "seconds", "Of these, training waited for it"),
    Metric("checkpoint_bytes", "gauge", "bytes", "Size of the newest"),
    Metric("events_total", "counter", "", "Events written to metrics.jsonl", ("name",)),
    *(Metric(f"table_{figure}", "gauge", "", text, ("table",)) for figure, text in TABLE_FIGURES.items()),
)
