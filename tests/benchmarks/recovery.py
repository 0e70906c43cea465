"""How long a run under an embedded Ray stands still when training processes are killed: from the kill until it steps
again, beside the time that its first start took from the command to the first step.

    python -m tests.benchmarks.recovery [--quick] [--rounds N] [--workers N]

The last line's ratio is the slowest recovery over the thirty seconds that a run may take.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.harness import finish, prepare_process, show, table
from tests.integration.command import Command, latest_step, ranks_under_ray, started, write_run_file

LIMIT_SECONDS = 30.0
SETTINGS: dict[str, Any] = {
    "data": {"segments": "..", "epochs": 100_000},
    "train": {"log_every": 1},
    "checkpoint": {"every_steps": 20, "every_minutes": 0.0},
}
HURTS = {"one worker": slice(1, 2), "the first worker": slice(0, 1), "all workers": slice(None)}


@dataclass(frozen=True)
class Recovery:
    """Seconds since the kill. noticed: the command says that it begins again. resumed: the checkpoint is read. stepped:
    the first step of the new start is told. repeated: steps that were lost with the dead start."""

    noticed: float
    resumed: float
    stepped: float
    repeated: int


class Lines:
    """metrics.jsonl as it grows, and is taken back."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "run" / "metrics.jsonl"

    def all(self) -> list[dict[str, Any]]:
        text = self._path.read_text() if self._path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def first(self, since: float, kind: str) -> dict[str, Any] | None:
        """The first of that kind (or event) told since then."""
        found = (line for line in self.all() if line["time"] > since)
        return next((line for line in found if kind in (line["kind"], line.get("event"))), None)


def hurt(command: Command, lines: Lines, killed: slice) -> Recovery:
    """Kills, and looks on until it steps again."""
    said = command.said().count("begun again")
    before = max(line["step"] for line in lines.all())
    pids = ranks_under_ray(command)
    since = time.time()
    for pid in pids[killed]:
        os.kill(pid, signal.SIGKILL)
    command.until(lambda: command.said().count("begun again") > said, "a new start")
    noticed = time.time() - since
    step: dict[str, Any] = command.until(
        lambda: lines.first(since + noticed, "train"), "a step of the new start", timeout=120
    )
    resumed = lines.first(since + noticed, "resumed")
    assert resumed is not None
    return Recovery(noticed, resumed["time"] - since, step["time"] - since, before - resumed["step"])


def main() -> None:
    """See the top of the file."""
    prepare_process()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", "--tiny", action="store_true", help="one worker, once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    hurts = {"one worker": HURTS["one worker"]} if options.quick else HURTS
    rounds = 1 if options.quick else options.rounds
    show("recovery", {"workers": options.workers, "rounds": rounds, "rows": 50, "saves": "every 20 steps"})
    found: dict[str, list[Recovery]] = {name: [] for name in hurts}
    with tempfile.TemporaryDirectory(prefix="recovery-") as name:
        folder = Path(name)
        write_run_file(folder, {"2026-01-01": [30, 20]}, **SETTINGS)
        lines = Lines(folder)
        arguments = ("train", "--config", "run.toml", "--run-dir", "run", "--launch.workers", str(options.workers))
        began = time.time()
        with started(folder, *arguments) as command:
            first: dict[str, Any] = command.until(lambda: lines.first(0.0, "train"), "a step")
            start_up = first["time"] - began
            for _ in range(rounds):
                for hurt_name, killed in hurts.items():
                    saved = latest_step(folder / "run")
                    command.until(lambda saved=saved: latest_step(folder / "run") > saved, "a checkpoint")
                    found[hurt_name].append(hurt(command, lines, killed))
    print(f"first start, from the command to its first step: {start_up:.1f} s\n")
    table(
        ["killed", "said that it begins again", "read the checkpoint", "steps again", "slowest", "steps repeated"],
        [
            [
                each,
                f"{median(r.noticed for r in recoveries):.1f} s",
                f"{median(r.resumed for r in recoveries):.1f} s",
                f"{median(r.stepped for r in recoveries):.1f} s",
                f"{max(r.stepped for r in recoveries):.1f} s",
                f"{median(r.repeated for r in recoveries):.0f}",
            ]
            for each, recoveries in found.items()
        ],
    )
    slowest = max(r.stepped for recoveries in found.values() for r in recoveries)
    finish("recovery", {"recovery_over_thirty_seconds": slowest / LIMIT_SECONDS}, threads=1)


if __name__ == "__main__":
    main()
