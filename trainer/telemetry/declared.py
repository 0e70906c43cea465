"""Every Prometheus metric there is, in one table: the endpoint, the dashboards, the alerts and docs/metrics.md are made
from it.

Base units (seconds, bytes, ratios); counters end in _total; labels stay few, never a user or an item.
"""

from __future__ import annotations

from trainer.telemetry.declared_system import CHECKPOINTS, FLEET, MACHINE, RUNNING
from trainer.telemetry.declared_training import DATA, LEARNING, SPEED
from trainer.telemetry.metric import DASHBOARDS, Metric

__all__ = ["DASHBOARDS", "METRICS", "SCORES", "TABLE_FIGURES", "Metric"]

SCORES = ("ne", "auc", "calibration")

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
_PANELS = {
    "unique_share": "Ids of a batch",
    "hottest_share": "Ids of a batch",
    "unknown_rate": "Unknown ids",
    "collision_rate": "Collisions",
    "admissions": "Admissions and evictions",
    "evictions": "Admissions and evictions",
    "fill": "Fill",
    "row_norm": "Row norms",
    "row_norm_max": "Row norms",
    "never_touched_share": "Rows never trained",
}

TABLES = tuple(
    Metric(
        f"table_{figure}",
        text,
        f"Tables / {_PANELS[figure]}",
        labels=("table",),
        alert="TokenformerTableNearlyFull" if figure == "fill" else "",
    )
    for figure, text in TABLE_FIGURES.items()
)

METRICS = (*RUNNING, *LEARNING, *SPEED, *DATA, *FLEET, *CHECKPOINTS, *MACHINE, *TABLES)
