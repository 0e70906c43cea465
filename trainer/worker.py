"""The one function that every launcher calls in every training process, and what it joins."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from embeddings.plan import anywhere, report
from embeddings.plan_load import assumed_ids
from model.attention_choice import chosen_backend
from pipelines.footer_cache import FooterCache
from pipelines.segments import Segment
from pipelines.stream import Executor, ThreadExecutor, choose_executor
from pipelines.windows import Pass
from trainer import logs, machine
from trainer.assembly import Assembly, assemble
from trainer.checkpoint import manifest
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.folder import spoken
from trainer.checkpoint.state import read_state
from trainer.checkpoint_verbs.source import find_place
from trainer.compute_choice import settle_compute
from trainer.config import Config, dump_config
from trainer.config_sections import Launch
from trainer.consumed import open_recorder
from trainer.errors import ConfigError
from trainer.eval_detail import detailed
from trainer.evaluation import Evaluator, Predictions
from trainer.feed import open_feed
from trainer.guards import Guards
from trainer.guards.ending import how_it_ended
from trainer.job import Job
from trainer.loop import Trainer
from trainer.machine import environment
from trainer.map_lines import log_maps
from trainer.peak import with_peak
from trainer.prediction_files import Manifest
from trainer.rank_lines import joined
from trainer.reporter import Reporter
from trainer.row_cost import row_cost
from trainer.run_dir import RunDir
from trainer.runtime import Runtime, start
from trainer.service_discovery import publish, withdraw, within_timeout
from trainer.shared_segments import shared_segments
from trainer.step_profile import StepProfile
from trainer.step_work import StepWork
from trainer.table_health import TableHealth
from trainer.telemetry.telemetry import Telemetry
from trainer.telemetry.updates import Phase
from trainer.train_slices import SliceReport
from trainer.wanted import Wanted
from trainer.watchdog import watching

log = logging.getLogger(__name__)


def run_worker(job: Job) -> dict[str, Any] | None:
    """One training process from start to end. Returns on rank 0 what the closing table shows, None elsewhere.

    Raises what a user can cause as UserError, DataError, SchemaError or PlanError, on every rank.
    """
    with start(job.config.launch.timeout_seconds, job.threads, job.config.embeddings.replicas) as runtime:
        if runtime.is_first:
            for reason in runtime.reasons:
                log.info("%s", reason)
            if job.config.model.kind in ("tokenformer", "transformer"):
                log.info("attention by %s: %s", *chosen_backend(job.config.model.attention, runtime.device))
        screen = job.screen if job.backend == "torchrun" else None  # under Ray they have another way to it
        with (
            joined(screen, runtime),
            watching(runtime, job.config.launch.watchdog_seconds),
            _placed(job.config.launch, runtime),
        ):
            if job.screen is not None and runtime.is_first:
                job.screen.follow(runtime.beats.look)
            job = replace(job, config=_agreed(job.config, runtime))
            result = dry_run(job, runtime) if job.dry_run else train_run(job, runtime)
        return result if runtime.is_first else None


@contextmanager
def _placed(launch: Launch, runtime: Runtime) -> Iterator[None]:
    """On this worker's own cores, if that is wanted."""
    if not launch.pin_cores:
        yield
        return
    with machine.pinned(int(os.environ.get("LOCAL_RANK", "0")), runtime.local_world_size) as own:
        if own:
            log.info("rank %d trains on cores %s (launch.pin_cores)", runtime.rank, ", ".join(map(str, own)))
        else:
            log.warning(
                "launch.pin_cores: %d cores for %d workers → each needs one of its own → workers are not pinned",
                machine.cores(),
                runtime.local_world_size,
            )
        yield


def _agreed(config: Config, runtime: Runtime) -> Config:
    """Rank 0's list of excluded segments on every rank: under torchrun only its process has asked the gate."""
    exclude = [config.data.exclude]
    dist.broadcast_object_list(exclude, src=0, group=runtime.control)
    return replace(config, data=config.data.model_copy(update={"exclude": exclude[0]}))


def train_run(job: Job, runtime: Runtime) -> dict[str, Any]:
    """Train to the end, evaluate, say what came of it. Collective."""
    run_dir = RunDir(job.run_dir, job.config.checkpoint.store)
    job = replace(job, config=settle_compute(job.config, runtime, run_dir if job.resume != "never" else None))
    config = job.config
    segments = shared_segments(config.data, runtime)
    if config.checkpoint.keep_best and not segments.eval:
        raise ConfigError(
            f"checkpoint.keep_best = {config.checkpoint.keep_best} but no segment is held out → the best is found by "
            "evaluations → name some in data.eval_segments, or keep_best = 0"
        )
    with _logging_to(run_dir, runtime, job.overrides):
        config = with_peak(config, run_dir, runtime)
        job = replace(job, config=config)
        executors = _executors(job, runtime)  # before the model: readers start and import while it is made
        _show(job, runtime, "planning tables and making the model")
        assembly = assemble(config, runtime)
        runtime.beats.part = assembly.clock.running
        if runtime.is_first:
            log.info("%s", assembly.optimizer.announcement())
        _write_plan(run_dir, config, assembly, runtime)
        tasks, screen = tuple(config.schema.tasks), job.screen if runtime.is_first else None
        telemetry = Telemetry(
            run_dir, within_timeout(config), runtime.rank, tasks, world_size=runtime.world_size, screen=screen
        )
        try:
            if runtime.is_first:
                telemetry.open_ledger(runtime.world_size, runtime.device.type, job.began or time.time())
            publish(run_dir, config, telemetry, runtime)
            trainer, evaluator = _join(job, runtime, assembly, executors, segments.train, segments.eval, telemetry)
            path = trainer.newest_good(run_dir) if job.resume != "never" else None
            if path is not None:
                _show(job, runtime, f"reading the checkpoint {spoken(path)}")
                trainer.resume(path)
                telemetry.resumed(trainer.state.step, trainer.state.examples, path)
            elif job.init_from is not None:
                _show(job, runtime, f"reading the model of {job.init_from}")
                _begin(job.init_from, trainer, telemetry, runtime)
            elif job.resume != "never":
                telemetry.begins_anew()
            with closing(open_recorder(run_dir, config, segments.train, trainer.state.step, runtime)) as recorder:
                state = trainer.train(recorder)
            runtime.beats.beat(state.step, "ending")
            log_maps(assembly.mapper, runtime)
            if segments.eval and not trainer.stopped_early and not trainer.has_just_evaluated_all:
                evaluator(assembly.model, state)
            runtime.beats.beat(state.step, "ending")
            telemetry.event("stopped" if trainer.stopped_early else "finished", state.step, state.examples)
            result = how_it_ended(telemetry.finish(), trainer.ending, run_dir, config)
            telemetry.ended = "stopped" if trainer.stopped_early else "reached"
            withdraw(run_dir, telemetry, runtime, job.stop)
            return result
        finally:
            telemetry.close()


def _show(job: Job, runtime: Runtime, phase: str) -> None:
    if job.screen is not None and runtime.is_first:
        job.screen.show(Phase(phase))


def _begin(run: str, trainer: Trainer, telemetry: Telemetry, runtime: Runtime) -> None:
    """With another run's model."""
    path = trainer.newest_good(RunDir(run)) or RunDir(run).require_latest()
    carried = trainer.begin_with(path)
    telemetry.resumed(trainer.state.step, trainer.state.examples, path, event="init_from")
    if runtime.is_first:
        for line in carried:
            log.info("%s", line)


def dry_run(job: Job, runtime: Runtime) -> dict[str, Any]:
    """Real batches through plan, step, checkpoint and resume, in a throw-away run directory. Collective."""
    job = replace(job, config=settle_compute(job.config, runtime))
    config = replace(
        job.config,
        telemetry=job.config.telemetry.model_copy(update={"prometheus": False}),
        checkpoint=job.config.checkpoint.model_copy(update={"store": ""}),
    )
    segments = shared_segments(config.data, runtime)
    run_dir = RunDir(job.run_dir, "")
    seconds = {}
    executors = _executors(job, runtime)
    before, rows_before = _steps_before(job), 0
    for step in (1, 2):
        began = time.perf_counter()
        limited = replace(config, train=config.train.model_copy(update={"max_steps": before + step, "eval_every": 0}))
        assembly = assemble(limited, runtime)
        telemetry = Telemetry(run_dir, limited.telemetry, runtime.rank, tuple(config.schema.tasks), quiet=True)
        try:
            limited_job = replace(job, config=limited)
            trainer, _ = _join(limited_job, runtime, assembly, executors, segments.train, (), telemetry)
            path = run_dir.latest()
            if path is not None:
                trainer.resume(path)
            elif job.init_from is not None:
                _begin(job.init_from, trainer, telemetry, runtime)
            rows_before = trainer.state.rows if step == 1 else rows_before
            trainer.train()
        finally:
            telemetry.close()
        seconds["step, checkpoint" if step == 1 else "resume, step, checkpoint"] = time.perf_counter() - began
    return {"dry_run": seconds, "steps": trainer.state.step - before, "rows": trainer.state.rows - rows_before}


def _steps_before(job: Job) -> int:
    """Of the model that the run begins with."""
    if job.init_from is None or not job.config.init.steps:
        return 0
    path = RunDir(job.init_from).require_latest()
    return read_state(path, manifest.read_commit(path)).step


def run_evaluation(
    job: Job, rows: str = "", keep: Callable[[Predictions], None] | None = None, wanted: Wanted | None = None
) -> dict[str, Any] | None:
    """The newest checkpoint of `job.run_dir` (or the one that is wanted) on its evaluation segments, or on all of
    `rows`. Returns metrics per task on rank 0. keep: is given each rank's own predictions."""
    wanted = wanted or Wanted()
    # It may run on other machines and fewer ranks than the model was trained on.
    job = replace(job, config=replace(job.config, embeddings=anywhere(job.config.embeddings)))
    launch = job.config.launch
    with start(launch.timeout_seconds, job.threads) as runtime, watching(runtime, launch.watchdog_seconds):
        run_dir = RunDir(job.run_dir)
        job = replace(job, config=settle_compute(job.config, runtime))
        config = job.config
        segments = shared_segments(config.data, runtime).eval
        if rows:
            config = replace(config, data=config.data.model_copy(update={"rows": rows, "exclude": ()}))
            everything = config.data.model_copy(update={"segments": "..", "eval_segments": ""})
            segments = shared_segments(everything, runtime).train
        executors = _executors(job, runtime)
        assembly = assemble(config, runtime)
        with tempfile.TemporaryDirectory() as scratch:
            telemetry = Telemetry(
                RunDir(scratch), config.telemetry, runtime.rank, tuple(config.schema.tasks), quiet=True
            )
            trainer, evaluator = _join(job, runtime, assembly, executors, segments, segments, telemetry)
            if wanted.checkpoint is not None:
                path = find_place(job.run_dir).of_step(wanted.checkpoint).location
            else:
                path = trainer.newest_good(run_dir) or run_dir.require_latest()
            trainer.resume(path)
            evaluator.keep = keep
            about = Manifest(
                job.run_dir, spoken(path), trainer.state.step, config.data.rows, tuple(config.schema.tasks)
            )
            with detailed(config.schema, segments, wanted, about, runtime) as evaluator.detail:
                evaluator(assembly.model, trainer.state)
            result = telemetry.finish() | {"places": {"run directory": job.run_dir, "checkpoint": spoken(path)}}
            telemetry.close()
        return result if runtime.is_first else None


def _join(
    job: Job,
    runtime: Runtime,
    assembly: Assembly,
    executors: tuple[Executor, Executor],
    train: tuple[Segment, ...],
    held_out: tuple[Segment, ...],
    telemetry: Telemetry,
) -> tuple[Trainer, Evaluator]:
    config = job.config
    run_dir = RunDir(job.run_dir, config.checkpoint.store)
    cache = FooterCache(run_dir.plan_cache)
    quarantine = str(run_dir.quarantine) if config.data.on_bad_row == "quarantine" else ""
    cost = row_cost(assembly.layout.spec, config.model)
    pass_ = Pass(config.schema, config.data, train, config.train.seed, quarantine=quarantine, cost=cost, cache=cache)
    checkpointer = Checkpointer(
        run_dir, config.checkpoint, runtime.control, touched=assembly.touched, background=runtime.checkpoint
    )
    every = config.telemetry.tables_every
    health = TableHealth(every, assembly, runtime) if every else None
    slices = SliceReport(config.schema, config.telemetry, runtime) if config.telemetry.slice_by else None
    guards = Guards(config, runtime, assembly.gate, telemetry, run_dir, pass_)
    reporter = Reporter(
        config,
        runtime,
        telemetry,
        checkpointer,
        assembly.optimizer,
        assembly.gate,
        assembly.clock,
        health,
        StepWork(assembly.layout.spec, config.model),
        slices,
        guards,
    )

    def wants() -> tuple[bool, bool]:
        due = runtime.is_first and checkpointer.due_by_minutes()
        return job.stop.requested(), due or checkpointer.failed  # to save says on every rank what one rank knows

    executor, evaluation = executors
    evaluator = Evaluator(
        config, held_out, assembly.mapper, runtime, evaluation, telemetry, cache, quarantine, cost, assembly.blocks
    )
    trainer = Trainer(
        config,
        assembly,
        pass_,
        lambda state: open_feed(
            pass_,
            state.position,
            executor,
            assembly.mapper,
            runtime,
            state.step,
            wants=wants,
            health=health,
            clock=assembly.clock,
            blocks=assembly.blocks,
        ),
        reporter,
        checkpointer,
        lambda model, state, rows: evaluator(model, state, rows).scores,
        runtime,
        guards,
        StepProfile(run_dir.profile, runtime, assembly.clock) if job.profile else None,
        scores_at_end=bool(held_out),
    )
    return trainer, evaluator


def _executors(job: Job, runtime: Runtime) -> tuple[Executor, Executor]:
    """Of training and of evaluation: one feed, where a Ray carries the windows."""
    data = job.config.data
    name, reason = choose_executor(data)
    if runtime.is_first:
        log.info("reading by %s: %s", name, reason)
    if name == "threads":
        return ThreadExecutor(data.windows_ahead), ThreadExecutor(data.windows_ahead)
    from pipelines.stream_ray import READ_CPUS, RayExecutor  # noqa: PLC0415 - Ray is imported where it runs

    # Where trainers take every core, one more read task would only take them away again.
    share = READ_CPUS if runtime.local_world_size < machine.cores() else 1.0
    training, evaluation = (RayExecutor(job.feed_name, purpose, data.memory_mb, share) for purpose in ("train", "eval"))
    return training, evaluation


@contextmanager
def _logging_to(run_dir: RunDir, runtime: Runtime, overrides: tuple[str, ...]) -> Iterator[None]:
    """Rank 0's log lines also go to train.log; the resolved config and the environment are written beside it."""
    if not runtime.is_first:
        yield
        return
    handler = logs.to_file(Path(run_dir.train_log))
    try:
        run_dir.write_json(run_dir.env, environment() | {"overrides": list(overrides)})
        yield
    finally:
        logs.detach(handler)


def _write_plan(run_dir: RunDir, config: Config, assembly: Assembly, runtime: Runtime) -> None:
    if not runtime.is_first:
        return
    ids = assumed_ids(config.schema, assembly.specs, config.data.global_batch, runtime.world_size)
    found = report(assembly.plan, assembly.specs, config.embeddings, runtime.world_size, ids)
    run_dir.write_text(run_dir.config, dump_config(config))
    run_dir.write_text(run_dir.plan_text, "\n".join(found.lines()) + "\n")
    run_dir.write_json(run_dir.plan_json, found.to_json())
