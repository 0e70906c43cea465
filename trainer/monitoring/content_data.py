"""The Data dashboard: do batches come in time, how old is what is trained on, and what is wrong with it."""

from __future__ import annotations

from trainer.monitoring.panels import ONCE, RUN, Dashboard, Panel, Query, growth, ray

FLOW = (
    Panel(
        "Data wait",
        "Share of the step that a rank waits for its batch. Above a few per cent, workers stand idle.",
        (
            Query(
                'tokenformer_data_wait_seconds{run=~"$run", rank=~"$rank"} '
                "/ on (run) group_left () max by (run) (tokenformer_step_seconds)",
                "{{run}} · rank {{rank}}",
            ),
        ),
        unit="percentunit",
        low=0,
    ),
    Panel("Queues", "Read, and waiting for their step. 0 all the time: reading is what limits."),
    Panel(
        "Rows",
        "Request rows trained in 5 minutes.",
        (growth("rows_total"),),
        low=0,
    ),
)
AGE = (
    Panel(
        "Trained through",
        "Newest event time trained on.",
        (Query(f"max by (run) (tokenformer_data_through_timestamp_seconds{{{RUN}}}) * 1000", "{{run}}"),),
        unit="dateTimeAsIso",
        kind="stat",
    ),
    Panel("Lag", "Now less the newest event time trained on. A saw-tooth where segments come once a day.", unit="s"),
    Panel("Bad rows and retries", "In 5 minutes: rows set aside, and reads of the store tried again.", low=0),
)
READERS = (
    Panel(
        "Rows out of Ray Data",
        "Of each operator, a second. The slowest one limits the others.",
        (
            ray(
                f"sum by (dataset, operator) ({ONCE} (rate(ray_data_output_rows{{}}[5m])))",
                "{{dataset}} · {{operator}}",
            ),
        ),
        low=0,
    ),
    Panel(
        "CPUs of Ray Data",
        "Logical CPUs that an operator's tasks hold.",
        (ray(f"sum by (dataset, operator) ({ONCE} (ray_data_cpu_usage_cores{{}}))", "{{dataset}} · {{operator}}"),),
        low=0,
    ),
    Panel(
        "Blocks of Ray Data",
        "In the object store, of each operator: grows where the next one is slower.",
        (ray(f"sum by (dataset, operator) ({ONCE} (ray_data_current_bytes{{}}))", "{{dataset}} · {{operator}}"),),
        unit="bytes",
        low=0,
    ),
)

DATA = Dashboard(
    "Data",
    "Do batches come in time, how old are they, what is wrong with them?",
    {"Batches": FLOW, "Age and quality": AGE, "Readers on Ray": READERS},
)
