"""Declared metrics of what is learnt, how fast, and from which data."""

from __future__ import annotations

from trainer.telemetry.metric import Metric

LEARNING = (
    Metric(
        "loss", "Training loss, mean since the last log", "Training / Loss", field="loss", alert="TokenformerLossJumped"
    ),
    Metric(
        "train_ne",
        "Normalized entropy before each update, since the last log",
        "Training / Normalized entropy",
        labels=("task",),
    ),
    Metric(
        "lifetime_ne",
        "Normalized entropy before each update, since the model's birth",
        "Training / Normalized entropy",
        labels=("task",),
    ),
    Metric(
        "train_auc",
        "AUC before each update, since the last log",
        "Training / AUC",
        labels=("task",),
        alert="TokenformerAucFell",
    ),
    Metric("lifetime_auc", "AUC before each update, since the model's birth", "Training / AUC", labels=("task",)),
    Metric(
        "train_calibration",
        "Predicted over observed positives before each update, since the last log",
        "Training / Calibration",
        labels=("task",),
        alert="TokenformerCalibrationDrifted",
    ),
    Metric(
        "lifetime_calibration",
        "Predicted over observed positives before each update, since the model's birth",
        "Training / Calibration",
        labels=("task",),
    ),
    Metric(
        "train_slice_ne",
        "Normalized entropy before each update, since the last log, per value of telemetry.slice_by",
        "Training / Normalized entropy by slice",
        labels=("task", "slice"),
    ),
    Metric(
        "train_slice_auc",
        "AUC before each update, since the last log, per value of telemetry.slice_by",
        "Training / AUC by slice",
        labels=("task", "slice"),
    ),
    Metric(
        "train_slice_calibration",
        "Predicted over observed positives before each update, since the last log, per value of telemetry.slice_by",
        "Training / Calibration by slice",
        labels=("task", "slice"),
    ),
    Metric(
        "train_slice_loss",
        "Log loss before each update, since the last log, per value of telemetry.slice_by",
        "Training / Loss by slice",
        labels=("task", "slice"),
    ),
    Metric(
        "eval_ne", "Normalized entropy of the last evaluation", "Training / Evaluation NE", labels=("split", "task")
    ),
    Metric("eval_auc", "AUC of the last evaluation", "Training / Evaluation AUC", labels=("split", "task")),
    Metric(
        "eval_gauc", "AUC averaged over users, last evaluation", "Training / Evaluation AUC", labels=("split", "task")
    ),
    Metric(
        "eval_calibration",
        "Predicted over observed positives, last evaluation",
        "Training / Evaluation calibration",
        labels=("split", "task"),
    ),
    Metric("eval_loss", "Log loss of the last evaluation", "Training / Evaluation loss", labels=("split", "task")),
    Metric(
        "dense_grad_norm",
        "L2 norm of the dense gradient before clipping",
        "Training / Gradient norm",
        field="grad_norm",
    ),
    Metric("dense_weight_norm", "L2 norm of all dense parameters", "Training / Weight norm", field="weight_norm"),
    Metric("learning_rate", "Of the dense optimizer", "Training / Learning rate", field="learning_rate"),
    Metric(
        "dense_staleness_steps",
        "Steps between a dense gradient and its update: 1 where train.dense_sync is delayed",
        "Training / Staleness",
        field="dense_staleness",
    ),
    Metric(
        "bad_steps_total",
        "Steps skipped for a NaN or infinite loss or gradient",
        "Training / Steps without update",
        field="bad_steps",
        alert="TokenformerLossNotFinite",
    ),
    Metric(
        "unlabelled_steps_total",
        "Steps whose global batch had no label: nothing was updated; since this start",
        "Training / Steps without update",
        field="unlabelled_steps",
    ),
    Metric(
        "loss_spikes_total",
        "Steps whose loss jumped far above those before them, since the model's birth",
        "Training / Loss spikes",
        field="loss_spikes",
    ),
    Metric(
        "stale_evaluations",
        "Evaluations under way since the last improvement of checkpoint.best",
        "Training / Evaluations without improvement",
        field="stale_evaluations",
    ),
    Metric(
        "effective_rank",
        "Of a layer's tokens, last evaluation with collapse_rows",
        "Training / Effective rank",
        labels=("tokens", "layer"),
    ),
    Metric(
        "attention_on_fields",
        "Share of a layer's attention, last evaluation with collapse_rows",
        "Training / Attention on fields",
        labels=("queries", "layer"),
    ),
)

SPEED = (
    Metric(
        "steps_total",
        "Optimizer steps since the model's birth",
        "Training / Step",
        scope="rank",
        alert="TokenformerNoProgress",
    ),
    Metric(
        "examples_total",
        "Supervised positions with a label since the model's birth, all ranks",
        "Training / Examples",
        field="examples",
    ),
    Metric("rows_total", "Request rows since the model's birth, all ranks", "Data / Rows", field="rows"),
    Metric(
        "examples_per_second",
        "Supervised positions a second, all ranks",
        "Training / Throughput",
        field="examples_per_second",
        alert="TokenformerThroughputFell",
    ),
    Metric("rows_per_second", "Request rows a second, all ranks", "Training / Throughput", field="rows_per_second"),
    Metric(
        "tokens_per_second",
        "Fields, events and candidates of rows a second, all ranks",
        "Training / Throughput",
        field="tokens_per_second",
    ),
    Metric(
        "flops_per_second",
        "Floating-point operations of the ranker a second, all ranks",
        "Training / FLOPs",
        field="flops_per_second",
    ),
    Metric("mfu", "Model FLOPs utilisation: these over the peak of all workers", "Training / MFU", field="mfu"),
    Metric(
        "step_seconds", "Wall time of a step, mean since the last log", "Training / Step seconds", field="step_seconds"
    ),
    Metric(
        "data_wait_seconds",
        "Part of a step that waited for its batch, mean since the last log",
        "Data / Data wait",
        field="data_wait_seconds",
        scope="rank",
        alert="TokenformerDataWaitHigh",
    ),
    Metric(
        "step_part_seconds",
        "Part of a step of this rank, mean since the last log",
        "Training / Step time",
        field="step_split",
        labels=("part",),
        scope="rank",
    ),
    Metric(
        "own_step_seconds",
        "Of a step, what this rank spends without waiting for others: reading, copying, forward, optimizer",
        "System / Own time of a step",
        field="own_seconds",
        scope="rank",
    ),
    Metric(
        "slowest_rank_step_seconds",
        "The largest own_step_seconds of all ranks; the labels say whose",
        "System / Slowest rank",
        labels=("slowest", "host"),
        alert="TokenformerRankSlow",
    ),
    Metric(
        "median_rank_step_seconds",
        "The median own_step_seconds of all ranks",
        "System / Slowest rank",
        field="median_rank_seconds",
    ),
    Metric("epoch", "Of the data, from 0", "Training / Epoch", field="epoch"),
    Metric(
        "epoch_progress",
        "Global batches of the epoch that are done over all; an estimate where not all footers are read",
        "Training / Epoch progress",
        field="epoch_progress",
    ),
    Metric("left_seconds", "Estimated time to the end of the run", "Training / Time left", field="seconds_left"),
)

DATA = (
    Metric(
        "ready_batches",
        "Batches that are read and wait for their step",
        "Data / Queues",
        field="ready_batches",
        scope="rank",
    ),
    Metric(
        "ready_windows",
        "Windows that are read and wait for their first step",
        "Data / Queues",
        field="ready_windows",
        scope="rank",
    ),
    Metric(
        "data_through_timestamp_seconds",
        "Newest event time trained on, since 1970",
        "Data / Trained through",
        field="data_through_seconds",
    ),
    Metric(
        "data_lag_seconds",
        "Now less the newest event time trained on; at the time of the scrape",
        "Data / Lag",
        alert="TokenformerTrainedThroughLagging",
    ),
    Metric(
        "quarantined_rows_total",
        "Request rows since the model's birth that were bad and set aside",
        "Data / Bad rows and retries",
        field="quarantined_rows",
        alert="TokenformerQuarantineGrowing",
    ),
    Metric(
        "read_retries_total",
        "Reads tried again after a transient error of the store, since this start, all ranks",
        "Data / Bad rows and retries",
        field="read_retries",
    ),
)
