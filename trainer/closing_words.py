"""What the command says when a run has ended: the table, where things are, what to try next."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console

from trainer.telemetry.closing import closing_table

WIDE = 140


def say_result(result: Mapping[str, Any] | None, run: str, stopped: bool = False) -> None:
    """result: of `run_worker` or `run_evaluation`; None where another rank speaks. run: as the user named it."""
    if result is None:
        return
    if "dry_run" in result:
        parts = " · ".join(f"{part} {seconds:.1f} s" for part, seconds in result["dry_run"].items())
        click.echo(f"dry run: fine · {result['steps']} steps, {result['rows']} rows · {parts} · nothing was kept")
        return
    commands = _next_commands(result, run, stopped)
    console = Console(highlight=False)
    if not console.is_terminal:  # a log file has room for the whole table
        console.width = max(console.width, WIDE)
    console.print(closing_table(result, commands), crop=False)  # paths and commands may be longer than a screen
    if "ended" in result:
        click.echo(f"\n{result['ended']}")


def _launcher(env: Mapping[str, str]) -> str:
    """What a run is gone on with: as it was started."""
    if "WORLD_SIZE" not in env or "RANK" not in env:
        return "tokenformer"
    here = env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"])
    return f"torchrun{' …' if here != env['WORLD_SIZE'] else ''} --nproc-per-node {here} -m trainer"


def _next_commands(result: Mapping[str, Any], run: str, stopped: bool) -> list[str]:
    resume = f"{_launcher(os.environ)} train --config {run}/config.toml --run-dir {run} --resume auto"
    if stopped:
        return [resume]
    if not result.get("train"):  # an evaluation
        return []
    evaluate = f"tokenformer evaluate --run {run}"
    return [
        evaluate if result.get("evals") else f"{evaluate} --data ROWS",
        f"tensorboard --logdir {run}/tensorboard",
        resume,
    ]
