"""What is to be launched, held against everything that can be known before a night's queue is waited for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.footer_cache import FooterCache
from trainer.config import Config, dump_config, load_config
from trainer.errors import ConfigError
from trainer.launch_ray import ROOT
from trainer.make_data import check_rows, rows_are_made
from trainer.run_dir import Resume, RunDir, write_atomic


@dataclass(frozen=True)
class Order:
    """config: of the run. run_dir: absolute. name: of the job. python, code: what runs there; cwd: where relative paths
    of the run file begin. All of these are places that every node sees."""

    config: Config
    run_dir: Path
    name: str
    python: str
    code: str
    cwd: Path

    @property
    def folder(self) -> Path:
        """Of the run directory: what the launcher needs and leaves."""
        return launch_folder(self.run_dir)

    @property
    def run_file(self) -> Path:
        """The resolved run file of the job."""
        return self.folder / "run.toml"


def launch_folder(run_dir: Path) -> Path:
    """Where a cluster job's script, output and record are."""
    return run_dir / "launch"


def output_file(run_dir: Path) -> Path:
    """What the job's processes said."""
    return launch_folder(run_dir) / "output.log"


def stop_file(run_dir: Path) -> Path:
    """There when a person asked the run to end: it is not begun again."""
    return launch_folder(run_dir) / "stop"


def make_order(
    config_path: str,
    overrides: list[str],
    run_dir: str | None,
    resume: Resume,
    problems_there: Callable[[Config], list[str]],
    write: bool = True,
) -> Order:
    """Load, check and write down a run for a cluster; the run directory is made. Without `write` it is not, and the
    rows are not looked at.

    problems_there: what of the run file that cluster cannot do, a line each.
    Raises ConfigError, DataError or RunDataError, PlanError, PlanDoesNotFitError, CheckpointError: what the job would
    end with, without waiting for it.
    """
    from trainer.plan_verb import plan_lines  # noqa: PLC0415 - imports torch

    config = load_config(config_path, overrides)
    launch = config.launch
    problems = []
    if not launch.workers:
        problems.append("launch.workers = 0 → a cluster job says how many it needs → --launch.workers N")
    problems += problems_there(config)
    if problems:
        raise ConfigError(problems)
    path = Path(run_dir or Path("runs") / Path(config_path).stem).absolute()
    run = RunDir(path, config.checkpoint.store)
    plan_lines(config, launch.workers, "cuda" if launch.gpus else "cpu")
    order = Order(on_cluster(config), path, f"tokenformer-{path.name}", sys.executable, ROOT, Path.cwd())
    if not write:
        return order
    run.prepare(resume)
    if not rows_are_made(config):
        check_rows(config, FooterCache(run.plan_cache))
    order.folder.mkdir(exist_ok=True)
    write_atomic(order.run_file, dump_config(order.config))
    return order


def on_cluster(config: Config) -> Config:
    """The launcher there starts the ranks: the run file must not choose another."""
    return replace(config, launch=config.launch.model_copy(update={"backend": "auto", "ray_address": ""}))
