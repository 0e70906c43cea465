"""The sections of a run file that trainer/ itself reads: `[init] [optim] [train] [checkpoint] [telemetry] [launch]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipelines.schema import Frozen

PLAIN = r"^[A-Za-z0-9._/@:-]*$"  # names that go into a job's script
NAME = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"  # of an object of Kubernetes'
TAINT = r"^[A-Za-z0-9._/-]+(=[A-Za-z0-9._-]*)?:(NoSchedule|PreferNoSchedule|NoExecute)$"


class Init(Frozen):
    """`[init]`: what a run begins with, where it has no checkpoint of its own to go on from. What fits is carried, what
    is new is initialised, and both are listed.

    run: a run directory; its newest complete checkpoint is taken. "" = nothing; option `--init-from` of the command.
    tables: rows of the embedding tables. tables_optimizer: their optimizers' states.
    id_maps: which id has which row of vocabularies and managed tables, with counts, clocks and candidates.
    tower: weights of everything that is no table. tower_optimizer: their moments and step counts.
    examples: examples, rows and bad steps since the model's birth: where warm-up and decay stand.
    steps: the number of the last step: steps are counted on from it, and dropout is a function of (seed, rank, step).
    metrics: the sums of metrics since the model's birth.
    lineage: the checkpoints that the model went on from.
    """

    run: str = ""
    tables: bool = True
    tables_optimizer: bool = True
    id_maps: bool = True
    tower: bool = True
    tower_optimizer: bool = True
    examples: bool = True
    steps: bool = True
    metrics: bool = True
    lineage: bool = True


class Optim(Frozen):
    """`[optim]`: AdamW of the dense parameters. Warm-up and decay count examples since the model's birth, never a run's
    length.

    lr: peak. betas, eps, weight_decay: AdamW's own. warmup_examples: linear from 0.
    decay_examples: cosine from the end of warm-up to `final_lr_share · lr`, over so many examples; 0 = constant.
    final_lr_share: of lr, what is left after the decay. clip_norm: of the dense gradient; 0 = off.
    """

    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_examples: int = Field(default=20_000, ge=0)
    decay_examples: int = Field(default=0, ge=0)
    final_lr_share: float = Field(default=0.1, ge=0, le=1)
    clip_norm: float = Field(default=1.0, ge=0)


class Train(Frozen):
    """`[train]`.

    seed: of initial values, shuffling and dropout.
    max_steps: optimizer steps since the model's birth; 0 = to the end of the data.
    log_every: steps. eval_every: steps; 0 = at the end only. eval_rows: bound per evaluation under way, on a fixed
    sample of the held-out rows, the same ones each time; 0 = all.
    dense_sync: "sync": buckets of dense gradients are all-reduced from gradient hooks while backward still runs.
                "delayed": the exchange of a step goes on during the whole next one; dense parameters are one step
                behind, tables are not.
    delayed_after_steps: "delayed" begins after so many steps since the model's birth; until then "sync".
    dense_wire: number format that dense gradients travel in; everything else stays as it is.
    bucket_mb, first_bucket_mb: size of a bucket of gradients, and of the one that is ready first.
    accumulate: batches of `data.global_batch` rows to one dense step, taken on the mean of their gradients. The tables
                are updated at every one of them. Steps are counted in batches.
    collapse_rows: request rows of an evaluation, its first ones, whose tokens are looked at layer by layer: effective
                ranks, and attention on fields (docs/collapse.md); 0 = off.
    peak_flops: floating-point operations a second that one worker could do at best: what `mfu` is a share of. 0 = what
                products in `dtype` come to when a run first starts, all workers measuring at once; written to the run's
                config.toml, and taken from there when it goes on. With another number of workers on a machine another
                peak is true: give it then.
    dtype:      of the tower's matrix products and of what lies between them, in training and evaluation; parameters,
                norms and the residual stream stay float32. "auto": what a short trial finds faster at the start of a
                run, kept in its config.toml. Kinds other than tokenformer and transformer compute in float32.
    compile:    the tower's blocks through torch.compile, attention apart; needs a C++ compiler (a GPU: triton).
    checkpoint_activations: a block's inside is computed again in backward, not kept: the same bits, less memory, more
                time.
    eval_share: of the time, what evaluations under way may take at most; one that comes too soon is put off to a later
                multiple of eval_every. 0 = no bound. The clock then says when they are made; weights do not depend on
                it (docs/guards.md).
    stop_after: evaluations under way without an improvement of `checkpoint.best`, after which the run ends; 0 = off.
    stop_min_delta: a smaller improvement is none.
    on_nonfinite: "skip": a step with a NaN or infinite loss or gradient changes nothing, and training goes on. "stop":
                the run ends there, with a checkpoint of the model as it was before that step.
    max_bad_steps: so many skipped steps one after the other end the run as well; 0 = never.
    spike_sigmas: a step whose loss is so many standard deviations above the median of those before it is a spike, and
                is kept with its neighbours in spikes/ of the run directory; the deviation is estimated from the
                median of the distances to that median. 0 = off.
    spike_window: steps that the medians are of.
    spike_keep: spikes and bad steps that are kept, the first ones of a model's life; later ones are told only.
    """

    seed: int = 1
    max_steps: int = Field(default=0, ge=0)
    log_every: int = Field(default=20, gt=0)
    eval_every: int = Field(default=0, ge=0)
    eval_rows: int = Field(default=0, ge=0)
    dense_sync: Literal["sync", "delayed"] = "sync"
    delayed_after_steps: int = Field(default=100, ge=0)
    dense_wire: Literal["float32", "bfloat16", "float16"] = "float32"
    bucket_mb: float = Field(default=25.0, gt=0)
    first_bucket_mb: float = Field(default=1.0, gt=0)
    accumulate: int = Field(default=1, gt=0)
    collapse_rows: int = Field(default=0, ge=0)
    peak_flops: float = Field(default=0.0, ge=0)
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    compile: bool = False
    checkpoint_activations: bool = False
    eval_share: float = Field(default=0.0, ge=0, lt=1)
    stop_after: int = Field(default=0, ge=0)
    stop_min_delta: float = Field(default=0.0, ge=0)
    on_nonfinite: Literal["skip", "stop"] = "skip"
    max_bad_steps: int = Field(default=100, ge=0)
    spike_sigmas: float = Field(default=10.0, ge=0)
    spike_window: int = Field(default=128, ge=16)
    spike_keep: int = Field(default=20, ge=0)


class Checkpoint(Frozen):
    """`[checkpoint]`: when, whichever comes first; one is always written at the end.

    every_steps, every_minutes: 0 = off.
    mode:      "async": written while training goes on; "sync": training waits until it is committed.
    full_every: every so many checkpoints is a full one, those in between hold only the rows touched since the one
               before; 1 = all are full.
    aside_mb:  of rows that an update is about to change and that are still to be written, copied aside on each rank;
               beyond it training waits for the writer.
    store:     a folder that every rank sees, or a URI such as "s3://bucket/run": this run's alone. "" = checkpoints/
               of the run directory.
    keep:      so many, the newest ones.
    keep_best: besides, so many by `best`, of those that an evaluation at the same step has scored; a checkpoint is
               then written at every evaluation under way, and the one at the end of a run is scored too. 0 = none.
    best:      TASK.METRIC or METRIC (of the first task): "ne" and "loss", where less is better, "auc" and "gauc".
    keep_segments: besides, the last one of each of so many segments, the newest ones. 0 = none.

    What a kept difference is built on stays as well.
    """

    every_steps: int = Field(default=0, ge=0)
    every_minutes: float = Field(default=10.0, ge=0)
    mode: Literal["async", "sync"] = "async"
    full_every: int = Field(default=1, gt=0)
    aside_mb: int = Field(default=1024, gt=0)
    store: str = ""
    keep: int = Field(default=3, gt=0)
    keep_best: int = Field(default=0, ge=0)
    best: str = Field(default="ne", pattern=r"^(.+\.)?(ne|loss|auc|gauc)$")
    keep_segments: int = Field(default=0, ge=0)


class Telemetry(Frozen):
    """`[telemetry]`.

    prometheus: an endpoint per rank. port: of a host's first rank, its others listen on port + 1, 2, …;
    0 = any free port (printed).
    host: where it listens; loopback by default, anything else is announced.
    linger_seconds: at the end an endpoint that was ever scraped stays until its final values are scraped, at most so
               long, and at most half of launch.timeout_seconds. One that nothing scraped, or of a run that was stopped
               or failed, ends at once.
    price_per_worker_hour: of a GPU, or on CPU of a worker process, in any currency: what the price per billion
               examples is counted from; 0 = none.
    tensorboard: curves in the run directory.
    tables_every: steps between two looks at the health of the tables; 0 = off.
    slice_by: figures of training also per value of this field, an input column of kind id or bucket with one value a
               row or an example, but not the user; "" = off.
    slice_values: at most 19 of its values, all others being one slice more; absent = the most frequent ones of a sample
               of the rows, when the run begins.
    live: a display at the bottom of the terminal (docs/watch.md). "auto": on a terminal, unless CI is set or TERM is
          "dumb"; "on": there too where CI is set; "off": a line a log. NO_COLOR takes the colours away.
    """

    prometheus: bool = True
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    linger_seconds: float = Field(default=60.0, ge=0)
    tensorboard: bool = True
    tables_every: int = Field(default=100, ge=0)
    price_per_worker_hour: float = Field(default=0.0, ge=0)
    slice_by: str = ""
    slice_values: tuple[str | int, ...] = ()
    live: Literal["auto", "on", "off"] = "auto"


class Launch(Frozen):
    """`[launch]`.

    backend: "auto": torchrun's environment if there is one, else Ray when workers > 1, else this process.
    workers: 0 = one per GPU, or on CPU two where there are two cores.
    threads: of a worker; 0 = the cores shared out evenly.
    pin_cores: each worker trains on cores of its own, an equal share of those that its process may use. For hosts that
               the run has to itself: two runs would take the same ones.
    ray_address: "" = an embedded Ray.
    timeout_seconds: of every collective: a lost rank is an error after that long, never a hang.
    watchdog_seconds: a rank that has not moved for so long is named by the others, with what it was doing; 0 = off.

    What follows is for `tokenformer submit`; names are of the cluster's own things.

    nodes: hosts that the workers are spread over, equally many each.
    gpus: every worker has a GPU of its own. cpus: of a worker; 0 = launch.threads, or 1. memory_gb: of a node (Slurm;
               0 = the cluster's default), of a worker (Kubernetes).
    queue: partition (Slurm), Kueue's local queue (Kubernetes). priority: quality of service (Slurm), priority class
               (Kubernetes). account: who pays (Slurm). labels: shown with the job.
    time_limit_minutes: of one stretch; a run that is not done then saves and is queued again. 0 = the cluster's own.
    grace_seconds: before a time limit the run is told to save and leave.
    max_restarts: of a run whose process died, in a row without a new checkpoint; under Ray by `train` too. Preemption
               does not count. 0 = a death ends the run.
    wait_minutes: in the queue; after that the job is taken back. 0 = for ever.

    What follows is for Kubernetes alone.

    image: what the pods run. namespace: where. service_account: of the pods; "" = tokenformer.
    volume: the PersistentVolumeClaim that pods see at /runs, for run directories.
    secrets: names of Secrets; their entries are the pods' environment.
    node_selectors: labels that a worker's node must have. tolerations: of the workers, for taints, as KEY=VALUE:EFFECT
               or KEY:EFFECT.
    """

    backend: Literal["auto", "inline", "torchrun", "ray"] = "auto"
    workers: int = Field(default=0, ge=0)
    threads: int = Field(default=0, ge=0)
    pin_cores: bool = False
    ray_address: str = ""
    timeout_seconds: float = Field(default=300.0, gt=0)
    watchdog_seconds: float = Field(default=60.0, ge=0)
    nodes: int = Field(default=1, gt=0)
    gpus: bool = False
    cpus: int = Field(default=0, ge=0)
    memory_gb: float = Field(default=0.0, ge=0)
    queue: str = Field(default="", pattern=PLAIN)
    priority: str = Field(default="", pattern=PLAIN)
    account: str = Field(default="", pattern=PLAIN)
    labels: dict[str, str] = Field(default_factory=dict)
    time_limit_minutes: int = Field(default=0, ge=0)
    grace_seconds: int = Field(default=120, gt=0, le=65535)
    max_restarts: int = Field(default=3, ge=0)
    wait_minutes: float = Field(default=0.0, ge=0)
    image: str = Field(default="", pattern=PLAIN)
    namespace: str = Field(default="default", pattern=NAME)
    volume: str = Field(default="", pattern=rf"{NAME}|^$")
    service_account: str = Field(default="", pattern=rf"{NAME}|^$")
    secrets: tuple[Annotated[str, Field(pattern=NAME)], ...] = ()
    node_selectors: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Annotated[str, Field(pattern=TAINT)], ...] = ()
