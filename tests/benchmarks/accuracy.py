"""Every accuracy figure of docs/accuracy.md, by one command that can be stopped and started at any time.

    python -m tests.benchmarks.accuracy --zip ml-1m.zip --out DIR [--only PART] [--jobs 1|2] [--minutes N]
    python -m tests.benchmarks.accuracy --render        the page from the results so far
    python -m tests.benchmarks.accuracy --list          what is still to be done and known by now

A run that is in the results file is not done again; one that was cut off goes on from its checkpoint in DIR. The
results file is part of the repository, so that another session goes on where this one stopped. A setting that was
changed makes another run. DIR lies outside the repository.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import click

from tests.benchmarks import accuracy_page
from tests.benchmarks.accuracy_matrix import PARTS, Run, done, next_runs
from tests.benchmarks.accuracy_results import Figures, GivenUpError, Results, add, load
from tests.benchmarks.accuracy_runs import FailedError, Runner

DOCS = Path(__file__).resolve().parents[2] / "docs"
POLL_SECONDS = 0.5
Carry = Callable[[Run], Figures | None]


class Queue:
    """Deals runs to workers, each once; what is next depends on the results so far."""

    def __init__(self, path: Path, only: str) -> None:
        self._path, self._only = path, only
        self._lock = threading.Lock()
        self._under_way: set[tuple[str, int]] = set()
        self.failed: dict[tuple[str, int], str] = {}

    def take(self) -> Run | None:
        """The most important run that nobody is at; None: there is none now."""
        with self._lock:
            for run in next_runs(load(self._path), self._only):
                if run.key not in self._under_way and run.key not in self.failed:
                    self._under_way.add(run.key)
                    return run
            return None

    def give_back(self, run: Run, failed: bool = False) -> None:
        """It is in the results, or was stopped; or it failed, and is not taken again."""
        with self._lock:
            self._under_way.discard(run.key)
            if failed:
                self.failed[run.key] = f"{run.name}, seed {run.seed}"

    @property
    def busy(self) -> bool:
        return bool(self._under_way)


def work(queue: Queue, carry: Carry, results: Path, lock: Path, stopping: Callable[[], bool]) -> None:
    """One worker, until nothing is left or it is told to stop. A run that fails is named and left out."""
    while not stopping():
        run = queue.take()
        if run is None:
            if not queue.busy:
                return
            time.sleep(POLL_SECONDS)  # what others are at may be followed by more
            continue
        click.echo(f"{time.strftime('%H:%M')} {run.part}: {run.name}, seed {run.seed} ({run.hash})")
        try:
            figures = carry(run)
        except FailedError as error:
            click.echo(f"failed: {run.name}, seed {run.seed}: {error}", err=True)
            queue.give_back(run, failed=True)
            continue
        except GivenUpError:
            figures = None
        if figures is not None and not done(run, load(results)):
            add(results, figures, lock)
            click.echo(f"{time.strftime('%H:%M')} done: {run.name}, seed {run.seed}: {summary(figures)}")
        queue.give_back(run)


def summary(figures: Figures) -> str:
    parts = [f"{split} AUC {figures[split]['auc']:.5f}" for split in ("held_out", "test") if figures.get(split)]
    return " · ".join([*parts, f"{figures['seconds'] / 60:.1f} min of training"])


def carry_out(
    results: Path, runner: Runner, *, only: str = "", jobs: int = 1, minutes: float = 0, carry: Carry | None = None
) -> list[str]:
    """Runs what is not done until it is, until the minutes are used up (0 = no bound), or until SIGTERM or SIGINT.
    Returns the names of the runs that failed. carry: does a run, else the runner."""
    queue = Queue(results, only)
    lock = runner.out / "results.lock"

    def leave(number: int, frame: FrameType | None) -> None:
        runner.stop()

    previous = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    arguments = (queue, carry or runner, results, lock, lambda: runner.stopping)
    workers = [threading.Thread(target=work, args=arguments) for _ in range(jobs)]
    deadline = time.monotonic() + minutes * 60 if minutes else float("inf")
    try:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            time.sleep(POLL_SECONDS / 5)
            if time.monotonic() > deadline and not runner.stopping:
                click.echo("the minutes are used up: runs under way leave a checkpoint")
                runner.stop()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return list(queue.failed.values())


def show(results: Results, only: str) -> None:
    """What can be begun by now."""
    runs = next_runs(results, only)
    for run in runs:
        click.echo(f"{run.part:<10} {run.name}, seed {run.seed} ({run.hash})")
    click.echo(f"{len(runs)} runs, and more when trials are done; {len(results.lines)} are in the results")


@click.command()
@click.option("--zip", "archive", type=click.Path(exists=True, path_type=Path), help="ml-1m.zip, as GroupLens has it.")
@click.option("--out", type=click.Path(path_type=Path), help="Data and run directories; outside the repository.")
@click.option("--only", type=click.Choice(PARTS), help="One part of the matrix.")
@click.option("--jobs", type=click.IntRange(1, 8), default=1, show_default=True, help="Runs at a time.")
@click.option("--minutes", type=float, default=0.0, help="Stop after so long.  [default: when all is done]")
@click.option("--results", type=click.Path(path_type=Path), default=DOCS / "accuracy_results.jsonl")
@click.option("--page", type=click.Path(path_type=Path), default=DOCS / "accuracy.md")
@click.option("--render", is_flag=True, help="Only write the page.")
@click.option("--list", "listing", is_flag=True, help="Only show what is to be done.")
def main(
    archive: Path | None,
    out: Path | None,
    only: str | None,
    jobs: int,
    minutes: float,
    results: Path,
    page: Path,
    render: bool,
    listing: bool,
) -> None:
    """Runs, results, page."""
    if listing:
        show(load(results), only or "")
        return
    failed: list[str] = []
    if not render:
        if archive is None or out is None:
            raise click.UsageError("--zip and --out are needed to run anything")
        failed = carry_out(results, Runner(archive, out), only=only or "", jobs=jobs, minutes=minutes)
    accuracy_page.write(page, load(results))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
