"""The System dashboard: ranks, memory, disk, checkpoints, and the machines as Ray sees them."""

from __future__ import annotations

from trainer.monitoring.panels import ONCE, RUN, Dashboard, Panel, Query, of_run, ray

RANKS = (
    Panel(
        "Ranks",
        "That there should be, and that answer.",
        (
            of_run("world_size", name="should be"),
            Query(f"count by (run) (tokenformer_info{{{RUN}}})", "{{run}} · answer"),
        ),
        low=0,
    ),
    Panel(
        "Own time of a step",
        "What a rank spends in a step without waiting for others. Every step lasts as long as the slowest rank's.",
        unit="s",
        low=0,
    ),
    Panel(
        "Slowest rank",
        "Its own time of a step, and the median rank's. The legend names rank and host.",
        (
            of_run("slowest_rank_step_seconds", "slowest", "host", name="slowest"),
            of_run("median_rank_step_seconds", name="median"),
        ),
        unit="s",
        low=0,
    ),
    Panel("Restarts and events", "Starts after the first, and events in 5 minutes.", low=0),
    Panel(
        "Build",
        "What runs: version, commit, and what it stands on.",
        (
            Query(
                f"max by (run, version, commit, torch, torchrec, ray, python) (tokenformer_build_info{{{RUN}}})",
                "{{run}} · {{version}} {{commit}} · torch {{torch}} · torchrec {{torchrec}} · ray {{ray}} · "
                "Python {{python}}",
            ),
        ),
        kind="name",
    ),
    Panel("Series left out", "Not exposed because an endpoint has at most 300.", low=0),
)
ROOM = (
    Panel("Memory", "Of a rank's process; of its host, all and what is left.", unit="bytes", low=0),
    Panel("Device memory", "Of a rank's GPU: what tensors hold, what torch holds, all.", unit="bytes", low=0),
    Panel(
        "Object store",
        "Of Ray, all nodes: in use, and its size. Full: blocks are spilled to disk.",
        unit="bytes",
        low=0,
    ),
    Panel("Disk", "Of the file system of the run directory.", unit="bytes", low=0),
)
CHECKPOINTS = (
    Panel(
        "Checkpoint age",
        "How much work would be lost now. Committed: since the newest commit of this start.",
        (
            of_run("checkpoint_age_seconds", name="begun or loaded"),
            Query(
                f"time() - max by (run) (tokenformer_checkpoint_timestamp_seconds{{{RUN}}} > 0)", "{{run}} · committed"
            ),
        ),
        unit="s",
        low=0,
    ),
    Panel("Checkpoint time", "From the step to the commit; of it, what training waited.", unit="s", low=0),
    Panel("Checkpoint size", "Of the newest.", unit="bytes", low=0),
    Panel("Checkpoints", "Committed by this start.", (of_run("checkpoints_total"),), low=0),
    Panel("Checkpoint step", "Of the newest; the difference to *Step* is what a crash would cost."),
)
NODES = (
    Panel(
        "CPU of Ray's nodes",
        "Busy share, as Ray's agent on the node sees it.",
        (ray("max by (instance) (ray_node_cpu_utilization{}) / 100", "{{instance}}"),),
        unit="percentunit",
        low=0,
        high=1,
    ),
    Panel(
        "Memory of Ray's nodes",
        "Used, and all.",
        (
            ray("max by (instance) (ray_node_mem_used{})", "{{instance}} · used"),
            ray("max by (instance) (ray_node_mem_total{})", "{{instance}} · all"),
        ),
        unit="bytes",
        low=0,
    ),
    Panel(
        "GPUs of Ray's nodes",
        "Busy share of each.",
        (ray("max by (instance, GpuIndex) (ray_node_gpus_utilization{}) / 100", "{{instance}} · GPU {{GpuIndex}}"),),
        unit="percentunit",
        low=0,
        high=1,
    ),
    Panel(
        "Object store of Ray's nodes",
        "By where the objects are.",
        (ray(f"sum by (instance, Location) ({ONCE} (ray_object_store_memory{{}}))", "{{instance}} · {{Location}}"),),
        unit="bytes",
        low=0,
    ),
    Panel(
        "Network of Ray's nodes",
        "Sent and received.",
        (
            ray("max by (instance) (ray_node_network_send_speed{})", "{{instance}} · sent"),
            ray("max by (instance) (ray_node_network_receive_speed{})", "{{instance}} · received"),
        ),
        unit="Bps",
        low=0,
    ),
    Panel(
        "Disk of Ray's nodes",
        "Free.",
        (ray("max by (instance) (ray_node_disk_free{})", "{{instance}}"),),
        unit="bytes",
        low=0,
    ),
)

SYSTEM = Dashboard(
    "System",
    "Are all ranks there, is there room, how much would a crash cost?",
    {"Ranks": RANKS, "Room": ROOM, "Checkpoints": CHECKPOINTS, "Nodes of Ray": NODES},
)
