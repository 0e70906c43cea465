"""`tokenformer checkpoint …`: looking at a run's checkpoints, and turning them into other files."""

from __future__ import annotations

import click

OUT = "New or empty folder; it appears whole or not at all."


@click.group()
def checkpoint() -> None:
    """Checkpoints: list, verify, compare, rewrite, export. PATH is a checkpoint, or a run directory, whose newest
    complete one is taken."""


@checkpoint.command(name="list")
@click.option("--run", required=True, metavar="D", help="Run directory.")
@click.option("--json", "as_json", is_flag=True, help="All that is known, as one JSON value.")
def list_(run: str, as_json: bool) -> None:
    """Show a run's checkpoints. Step, kind, examples, data position, size, scores; what is not complete, and why."""
    from trainer.checkpoint_verbs.verbs import show_list  # noqa: PLC0415

    show_list(run, as_json)


@checkpoint.command()
@click.argument("path", required=False)
@click.option("--run", metavar="D", help="Run directory instead; its newest complete checkpoint is taken.")
@click.option("--step", type=click.IntRange(min=0), metavar="N", help="With --run: the one of this step.")
@click.option("--all", "everything", is_flag=True, help="With --run: all complete ones.")
def verify(path: str | None, run: str | None, step: int | None, everything: bool) -> None:
    """Read every byte of a checkpoint. Files as committed, tensors whole and finite, id maps consistent; exit code 5
    with a line per damage."""
    from trainer.checkpoint_verbs.verbs import check  # noqa: PLC0415

    check(path, run, step, everything)


@checkpoint.command()
@click.argument("before", metavar="A")
@click.argument("now", metavar="B")
@click.option("--out", metavar="D", help=f"Write the changed rows there as Parquet. {OUT}  [default: show only]")
@click.option("--run", metavar="D", help="Run directory: A and B are then steps of it.")
@click.option("--config", "config_path", metavar="F", help="Run file of both.  [default: config.toml of their runs]")
def diff(before: str, now: str, out: str | None, run: str | None, config_path: str | None) -> None:
    """Show what changed from A to B. Table by table; writes the changed rows: table, row, raw id, vector."""
    from trainer.checkpoint_verbs.verbs import diff as compare  # noqa: PLC0415

    compare(before, now, out, run, config_path)


@checkpoint.command()
@click.argument("path")
@click.option(
    "--world-size", type=click.IntRange(min=1), required=True, metavar="N", help="Ranks, a file or more each."
)
@click.option("--out", required=True, metavar="D", help=OUT)
@click.option("--plan", "plan_path", metavar="F", help="A plan.json to cut tables by.  [default: row by row]")
def reshard(path: str, world_size: int, out: str, plan_path: str | None) -> None:
    """Rewrite a checkpoint as files of N ranks. Bit for bit, a chain of deltas as one. Resuming does not need it."""
    from trainer.checkpoint_verbs.verbs import reshard as rewrite  # noqa: PLC0415

    rewrite(path, world_size, out, plan_path)


@checkpoint.command()
@click.argument("path")
@click.option("--out", required=True, metavar="D", help=OUT)
@click.option("--tables", metavar="A,B", help="Rows of these tables only.  [default: all]")
@click.option("--config", "config_path", metavar="F", help="Run file.  [default: config.toml of its run]")
def unshard(path: str, out: str, tables: str | None, config_path: str | None) -> None:
    """Export a model for serving. Tables, tower, id maps and borders as Parquet, safetensors and JSON."""
    from trainer.checkpoint_verbs.verbs import unshard as export  # noqa: PLC0415

    export(path, out, tables, config_path)
