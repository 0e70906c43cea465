"""The Training dashboard: is it learning, how fast, and what did it cost. Queries that are not written here are made
from the declared metrics of a panel."""

from __future__ import annotations

from trainer.monitoring.panels import RUN, Dashboard, Panel, Query, of_run

NOW = (
    Panel("Step", "Optimizer steps since the model's birth.", (of_run("steps_total"),), kind="stat", width=4, height=4),
    Panel(
        "Examples",
        "Supervised positions with a label since the model's birth.",
        (of_run("examples_total"),),
        kind="stat",
        width=4,
        height=4,
    ),
    Panel("Epoch", "Of the data, from 0.", kind="stat", width=4, height=4),
    Panel(
        "Epoch progress",
        "Global batches of the epoch that are done. An estimate where not all footers are read.",
        unit="percentunit",
        kind="stat",
        width=4,
        height=4,
    ),
    Panel(
        "Time left",
        "To the end of the data or of `max_steps`, at the speed of now.",
        unit="s",
        kind="stat",
        width=4,
        height=4,
    ),
    Panel(
        "Alerts firing",
        "Of the chosen runs; which ones is told by Prometheus and Alertmanager, what to do by the runbook.",
        (Query(f'count by (run) (ALERTS{{alertname=~"Tokenformer.*", alertstate="firing", {RUN}}})', "{{run}}"),),
        kind="stat",
        width=4,
        height=4,
    ),
)
LEARNING = (
    Panel("Loss", "Mean of the good steps since the last log. A gap: every step was skipped."),
    Panel("Normalized entropy", "Before each update. Below 1 beats the base rate; lifetime: since the model's birth."),
    Panel("AUC", "Before each update: what users of the newest weights would have seen."),
    Panel("Calibration", "Predicted over observed positives before each update; 1 is right."),
    Panel("Loss by slice", "Log loss of each value of `telemetry.slice_by`, before each update."),
    Panel("Normalized entropy by slice", "One slice that rises while the others do not: look at its data."),
    Panel("AUC by slice", "Within each value of `telemetry.slice_by`."),
    Panel("Calibration by slice", "Right as a whole may be wrong for every part."),
    Panel("Gradient norm", "Of the dense gradient, before clipping."),
    Panel("Weight norm", "Of all dense parameters."),
    Panel("Learning rate", "Of the dense optimizer.", unit="sci"),
    Panel(
        "Steps without update",
        "How many were skipped in 5 minutes: for a NaN or infinity, or because nothing was labelled.",
    ),
    Panel("Loss spikes", "In 5 minutes; their batches are kept, see the run directory."),
    Panel("Staleness", "Steps between a dense gradient and its update."),
)
EVALUATION = (
    Panel("Evaluation NE", "Of the last evaluation of each split."),
    Panel("Evaluation AUC", "Of the last evaluation of each split: AUC, and GAUC where users are known."),
    Panel("Evaluation calibration", "Predicted over observed positives of the last evaluation; 1 is right."),
    Panel("Evaluation loss", "Log loss of the last evaluation."),
    Panel("Evaluations without improvement", "In a row: where early stopping is on, how near it is."),
    Panel("Effective rank", "Of a layer's tokens. It falls where tokens collapse into few directions."),
    Panel("Attention on fields", "Share of a layer's attention that goes to static fields.", unit="percentunit", low=0),
)
SPEED = (
    Panel("Throughput", "Of all ranks, evaluation and checkpoints left out."),
    Panel(
        "Step time",
        "What a step is made of, mean over the chosen ranks. `other` is what no part claims.",
        (
            Query(
                'avg by (run, part) (tokenformer_step_part_seconds{run=~"$run", rank=~"$rank"})', "{{run}} · {{part}}"
            ),
        ),
        unit="s",
        kind="stacked",
    ),
    Panel("Step seconds", "Wall time of a step.", unit="s", low=0),
    Panel(
        "MFU",
        "Model FLOPs utilisation: operations of the ranker over the peak of all workers.",
        unit="percentunit",
        low=0,
    ),
    Panel("FLOPs", "Floating-point operations of the ranker a second, all ranks.", unit="flops", low=0),
    Panel(
        "Goodput",
        "Time in steps whose result survived over wall time since the run's first start.",
        unit="percentunit",
        low=0,
        high=1,
    ),
    Panel("Where the time went", "Since the run's first start, adding up to wall time.", unit="s", kind="stacked"),
    Panel(
        "Worker time",
        "Time that workers were held, summed over workers and starts.",
        (of_run("worker_seconds_total", "device"),),
        unit="s",
    ),
    Panel("Price", "Of a billion examples, in the currency of `telemetry.price_per_worker_hour`."),
)

TRAINING = Dashboard(
    "Training",
    "Is it learning, how fast, and what does it cost?",
    {"Now": NOW, "Learning": LEARNING, "Evaluation": EVALUATION, "Speed and cost": SPEED},
)
