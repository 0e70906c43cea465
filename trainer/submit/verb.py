"""The `submit` verb: launch, then follow; or ask about, read and end what was launched."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType

import click

from trainer.errors import ConfigError, UserError
from trainer.run_dir import Resume
from trainer.submit import kuberay, record, slurm
from trainer.submit.order import make_order
from trainer.submit.record import OVER, Launched, Status

POLL_SECONDS = 2.0
CLUSTERS: dict[str, ModuleType] = {"slurm": slurm, "kuberay": kuberay}


class JobFailedError(UserError):
    """The job that was followed ended badly."""


def submit(
    config_path: str, overrides: list[str], to: str, run_dir: str | None, resume: Resume, detach: bool = False
) -> None:
    """Launch a run on the cluster and follow it to its end; Ctrl-C leaves the job running.

    Raises what `make_order` raises, and JobFailedError: the job failed, or waited longer than launch.wait_minutes.
    """
    cluster = _cluster(to)
    order = make_order(config_path, overrides, run_dir, resume, cluster.problems)
    launched = cluster.submit(order)
    record.write(launched)
    click.echo(f"submitted {launched.job} to {to}: {launched.workers} workers · run {launched.run_dir}")
    click.echo(f"  tokenformer submit --status {launched.run_dir}   (also --logs, --stop)")
    if detach:
        return
    try:
        _follow(launched, order.config.launch.wait_minutes)
    except KeyboardInterrupt:
        click.echo("\nthe job goes on; see the command above")


def show_script(config_path: str, overrides: list[str], to: str, run_dir: str | None) -> None:
    """What would be given to the cluster, which is not asked; nothing is made, and the rows are not looked at.

    Raises what `make_order` raises."""
    cluster = _cluster(to)
    click.echo(cluster.script(make_order(config_path, overrides, run_dir, "never", cluster.problems, write=False)))


def show_status(run_dir: str) -> None:
    """One line."""
    launched = record.read(run_dir)
    click.echo(f"{launched.job} on {launched.to}: {_cluster(launched.to).status(launched).line()}")


def show_logs(run_dir: str) -> None:
    """What the job said so far; follows it while it runs."""
    launched = record.read(run_dir)
    if not launched.output.exists() and _cluster(launched.to).status(launched).state == "waiting":
        click.echo("nothing yet: the job waits")
        return
    _follow(launched, 0.0, failing=False)


def stop(run_dir: str) -> None:
    """Ask the run to save and leave; it is not queued again."""
    launched = record.read(run_dir)
    _cluster(launched.to).stop(launched)
    click.echo(f"asked {launched.job} to save and leave; `submit --resume auto` goes on with it")


def _follow(launched: Launched, wait_minutes: float, failing: bool = True) -> None:
    """Print what the job says until it is over."""
    cluster = _cluster(launched.to)
    output = _Tail(launched, cluster.fetch_output)
    told, began = "", time.monotonic()
    while True:
        status: Status = cluster.status(launched)
        output.show()
        if status.state == "waiting" and status.reason != told:
            told = status.reason
            click.echo(f"waiting: {told or 'for a place'}")
        if status.state == "waiting" and wait_minutes and time.monotonic() - began > 60 * wait_minutes:
            cluster.take_back(launched)
            raise JobFailedError(
                f"{launched.job} waited longer than launch.wait_minutes = {wait_minutes:g} ({status.reason}) → it was "
                "taken back → ask for less, or wait longer"
            )
        if status.state in OVER:
            output.show()
            click.echo(f"{launched.job}: {status.line()}")
            if failing and status.state in ("failed", "unknown"):
                raise JobFailedError(
                    f"{launched.job} {status.state} ({status.reason}) → its last lines above say why → mend it, then "
                    f"submit --resume auto --run-dir {launched.run_dir}"
                )
            return
        time.sleep(POLL_SECONDS)


class _Tail:
    """What a growing file has gained since the last look."""

    def __init__(
        self, launched: Launched, fetch: Callable[[Launched], None], echo: Callable[[str], None] = click.echo
    ) -> None:
        self._launched, self._fetch, self._echo, self._read = launched, fetch, echo, 0

    def show(self) -> None:
        self._fetch(self._launched)
        try:
            with self._launched.output.open("rb") as file:
                file.seek(self._read)
                new = file.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        if whole:
            self._echo(whole.decode(errors="replace").rstrip("\n"))


def _cluster(to: str) -> ModuleType:
    try:
        return CLUSTERS[to]
    except KeyError:
        raise ConfigError(f"--to {to} → runs go to {', '.join(CLUSTERS)} → name one of them") from None
