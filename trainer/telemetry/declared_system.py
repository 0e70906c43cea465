"""Declared metrics of what runs, what it costs, its checkpoints and its machines."""

from __future__ import annotations

from trainer.telemetry.metric import Metric

RUNNING = (
    Metric("info", "1; the label says which process this is", "System / Ranks", labels=("rank",), scope="rank"),
    Metric(
        "build_info",
        "1; the labels say what runs. commit: of the source, where it is a git checkout",
        "System / Build",
        labels=("version", "commit", "torch", "torchrec", "ray", "python"),
    ),
    Metric("world_size", "Ranks of this start", "System / Ranks", alert="TokenformerRankMissing"),
    Metric(
        "restarts_total", "Starts of the run after its first", "System / Restarts and events", field="goodput.restarts"
    ),
    Metric("events_total", "Events written to metrics.jsonl", "System / Restarts and events", labels=("name",)),
)

FLEET = (
    Metric(
        "goodput",
        "Time in steps whose result survived over wall time since the run's first start",
        "Training / Goodput",
        field="goodput.share",
    ),
    Metric(
        "good_seconds",
        "Time in steps whose result survived, since the run's first start",
        "Training / Where the time went",
        field="goodput.good_seconds",
    ),
    Metric(
        "lost_seconds",
        "All other wall time since the run's first start, by cause",
        "Training / Where the time went",
        field="goodput.lost_seconds",
        labels=("cause",),
    ),
    Metric(
        "worker_seconds_total",
        "Time that workers were held, summed over workers and starts of the run; the label says what they are",
        "Training / Worker time",
        labels=("device",),
    ),
    Metric(
        "price_per_billion_examples",
        "Worker-hours of the run times telemetry.price_per_worker_hour, over the examples of the run",
        "Training / Price",
        field="price_per_billion_examples",
    ),
)

CHECKPOINTS = (
    Metric("checkpoints_total", "Checkpoints committed by this process", "System / Checkpoints"),
    Metric("checkpoint_timestamp_seconds", "When the newest was committed, since 1970", "System / Checkpoint age"),
    Metric(
        "checkpoint_age_seconds",
        "Since the newest was begun or loaded, at the time of the scrape",
        "System / Checkpoint age",
        alert="TokenformerCheckpointTooOld",
    ),
    Metric("checkpoint_step", "Step of the newest checkpoint", "System / Checkpoint step"),
    Metric("checkpoint_save_seconds", "Time the newest took, from its step to its commit", "System / Checkpoint time"),
    Metric("checkpoint_stall_seconds", "Of these, training waited for it", "System / Checkpoint time"),
    Metric("checkpoint_bytes", "Size of the newest", "System / Checkpoint size"),
)

# Asked at the time of the scrape.
MACHINE = (
    Metric("process_resident_bytes", "Memory of this process that is in RAM", "System / Memory", scope="rank"),
    Metric(
        "host_memory_available_bytes",
        "Memory that this host, or its container, can still give",
        "System / Memory",
        scope="rank",
    ),
    Metric("host_memory_bytes", "Memory of this host, or the limit of its container", "System / Memory", scope="rank"),
    Metric(
        "device_memory_allocated_bytes",
        "Memory of this rank's GPU that tensors hold",
        "System / Device memory",
        scope="rank",
    ),
    Metric(
        "device_memory_reserved_bytes",
        "Memory of this rank's GPU that torch holds",
        "System / Device memory",
        scope="rank",
    ),
    Metric("device_memory_bytes", "Memory of this rank's GPU", "System / Device memory", scope="rank"),
    Metric("object_store_used_bytes", "Of Ray's object store, all nodes; where a Ray runs", "System / Object store"),
    Metric("object_store_bytes", "Size of Ray's object store, all nodes", "System / Object store"),
    Metric(
        "disk_free_bytes",
        "Free on the file system of the run directory",
        "System / Disk",
        alert="TokenformerDiskNearlyFull",
    ),
    Metric("disk_bytes", "Size of the file system of the run directory", "System / Disk"),
    Metric(
        "series_left_out",
        "Series that are not exposed because an endpoint has at most 300",
        "System / Series left out",
        scope="rank",
    ),
)
