"""The Tables dashboard: the health of the tables. Of many tables, those where a figure is highest are shown."""

from __future__ import annotations

from trainer.monitoring.panels import Dashboard, Panel, of_run

ROOM = (
    Panel(
        "Fill",
        "Rows handed out over rows; tables with buckets. Full ones give new ids the unknown row, or evict.",
        unit="percentunit",
        low=0,
        high=1,
    ),
    Panel("Admissions and evictions", "Ids given a row, and ids that lost theirs, since the sample before."),
    Panel("Unknown ids", "Occurrences of ids that have the unknown row over all.", unit="percentunit", low=0),
    Panel(
        "Collisions",
        "Unique ids of a global batch that share their row with another; hash tables.",
        unit="percentunit",
        low=0,
    ),
)
USE = (
    Panel(
        "Ids of a batch",
        "Unique ids over occurrences, and the share of the most frequent one, in a global batch.",
        unit="percentunit",
        low=0,
    ),
    Panel(
        "Row norms",
        "Of the rows looked up: mean, and largest. One that keeps growing wants a lower learning rate.",
        (of_run("table_row_norm", "table", name="mean"), of_run("table_row_norm_max", "table", name="largest")),
        low=0,
    ),
    Panel(
        "Rows never trained",
        "Rows that no gradient has reached, on a sample: memory without use.",
        unit="percentunit",
        low=0,
        high=1,
    ),
)

TABLES = Dashboard(
    "Tables",
    "Are the embedding tables the right size, and are their rows learning?",
    {"Room": ROOM, "Use": USE},
)
