"""The `train` verb: config, data, run directory, then the launcher; and a clean leave at whatever moment."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines.footer_cache import FooterCache
from trainer import logs
from trainer.config import Config, load_config
from trainer.errors import ConfigError
from trainer.gating import gate_segments
from trainer.job import Job, Resume
from trainer.launch import Choice, announce, choose, run
from trainer.make_data import check_rows, ensure_rows
from trainer.rank_lines import Relay
from trainer.run_dir import RunDir
from trainer.stop import Interrupts, LocalStop
from trainer.telemetry.screen import Display, Plain, open_screen
from trainer.telemetry.updates import Phase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainOptions:
    """As typed. overrides: `--section.key value` in pieces. run_dir: None = runs/NAME of the run file."""

    config: str
    overrides: list[str]
    run_dir: str | None
    resume: Resume
    dry_run: bool
    profile: bool = False


def run_training(options: TrainOptions) -> None:
    """Run it to its end, or until Ctrl-C or SIGTERM, which leave with a checkpoint and without an error.

    Raises what its user can mend (ConfigError, DataError, PlanError, CheckpointError …) as it is.
    """
    if options.dry_run and options.profile:
        raise ConfigError(
            "--profile with --dry-run → a dry run keeps nothing → leave one of them out; --max-steps 15 profiles a "
            "short run"
        )
    began = time.time()
    config = load_config(options.config, options.overrides)
    choice = choose(config.launch)
    parent = str(Path(config.init.run).absolute()) if config.init.run else None
    speaks = _is_first(choice)
    stop = LocalStop()
    with _speaking(options, config, speaks) as screen, Interrupts(stop, screen.notice) as interrupts:
        try:
            with _run_directory(options, config.checkpoint.store, speaks) as run_dir:
                if parent is not None and (options.resume == "never" or run_dir.latest() is None):
                    RunDir(parent).require_latest()  # says so now, not after the data were read
                if speaks:  # under torchrun the other ranks meet the first one in the process group, after this
                    screen.show(Phase("looking for the data"))
                    ensure_rows(config)
                    interrupts.arm()  # Ray installs handlers of its own when rows are made
                    if not run_dir.consumed.is_dir():  # else it is one to go on with, and prepared already
                        run_dir.prepare(options.resume)
                    screen.show(Phase("checking the files of the rows against the schema"))
                    check_rows(config, FooterCache(run_dir.plan_cache))
                    config = gate_segments(config, run_dir, options.resume)
                    announce(choice)
                screen.show(Phase("starting: importing torch"))
                job = Job(
                    config,
                    str(run_dir.path.absolute()),
                    stop,
                    options.resume,
                    parent,
                    options.dry_run,
                    options.profile,
                    began=began,
                    screen=screen,
                    overrides=tuple(options.overrides),
                )
                with _reporting(run_dir, speaks and not options.dry_run) as places:
                    result = run(job, choice, stop, interrupts)
                screen.close()
                if speaks:
                    from trainer.closing_words import say_result  # noqa: PLC0415 - only when there is something to say

                    if result is not None and "places" in result:
                        result = result | {"places": result["places"] | places}
                    say_result(result, str(run_dir.path), stopped=stop.requested())
        except KeyboardInterrupt:
            log.info("stopped before training began: there is nothing to resume")


@contextmanager
def _speaking(options: TrainOptions, config: Config, first: bool) -> Iterator[Plain | Display | Relay]:
    """Where this process speaks; its log lines go there. Of other ranks than the first only warnings."""
    screen: Plain | Display | Relay
    if first:
        screen = open_screen(config.telemetry.live, str(_run_path(options)))
        logs.to_lines(screen.line)
    else:
        rank, host = int(os.environ["RANK"]), socket.gethostname()
        screen = Relay(rank, host)
        logs.to_lines(screen.line, logging.WARNING, rank, host)
    try:
        yield screen
    finally:
        screen.close()


def _run_path(options: TrainOptions) -> Path:
    return Path(options.run_dir or Path("runs") / Path(options.config).stem)


@contextmanager
def _reporting(run_dir: RunDir, wanted: bool) -> Iterator[dict[str, str]]:
    """Writes the run's page when it has ended, well or not; what is yielded then says where."""
    places: dict[str, str] = {}
    try:
        yield places
    finally:
        # Not where somebody wants to leave at once.
        if wanted and not isinstance(sys.exception(), KeyboardInterrupt | GeneratorExit):
            from trainer.report.verb import write_at_the_end  # noqa: PLC0415 - only when there is something to show

            if (path := write_at_the_end(run_dir)) is not None:
                places["report"] = str(path.absolute())


def _is_first(choice: Choice) -> bool:
    return choice.backend != "torchrun" or os.environ["RANK"] == "0"


@contextmanager
def _run_directory(options: TrainOptions, store: str, first: bool) -> Iterator[RunDir]:
    """The run's directory, not made yet. A run that ends before it has anything to show leaves none behind."""
    path = _run_path(options)
    if options.dry_run:
        path = path.with_name(f"{path.name}.dry-run")  # a name that every rank knows, and only dry runs use
    run_dir = RunDir(path, "" if options.dry_run else store)
    made = [parent for parent in path.parents if not parent.exists()]  # by this run, when it makes its directory
    if options.dry_run and first:
        shutil.rmtree(path, ignore_errors=True)
    held = path.exists() and any(path.iterdir()) if path.is_dir() else path.exists()
    if held and first:
        run_dir.prepare(options.resume)  # says what is wrong with it before data are made
    try:
        yield run_dir
    except BaseException:
        if first and not held and not _has_something(run_dir):
            _remove(path, made)
        raise
    finally:
        if options.dry_run and first:
            _remove(path, made)


def _remove(path: Path, parents: list[Path]) -> None:
    """With those of its parents that nobody else has put anything into meanwhile."""
    shutil.rmtree(path, ignore_errors=True)
    for parent in parents:
        with suppress(OSError):
            parent.rmdir()


def _has_something(run_dir: RunDir) -> bool:
    """Metrics or a checkpoint: worth keeping for whoever looks why it ended."""
    return bool(run_dir.step_dirs()) or (run_dir.metrics.exists() and run_dir.metrics.stat().st_size > 0)
