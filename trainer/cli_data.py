"""`tokenformer data …`: making request rows, and looking at what is there."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import click


@click.group()
def data() -> None:
    """Event logs and request rows: make them, look at them."""


@data.command()
@click.option("--out", required=True, metavar="D", help="Folder for the log; new or empty.")
@click.option(
    "--config", "config_path", metavar="F", help="Run file whose [data.synth] says how much; else its defaults."
)
def synth(out: str, config_path: str | None) -> None:
    """Write the seeded synthetic event log, and a schema file to start from."""
    from pipelines.config import Synth  # noqa: PLC0415
    from pipelines.synth import write_log  # noqa: PLC0415
    from trainer.config import load_config  # noqa: PLC0415

    settings = load_config(config_path).data.synth if config_path else None
    report = write_log(settings or Synth(), Path(out))
    _write_schema("synthetic.toml", out)
    _show(report, out)


@data.command()
@click.option("--zip", "archive", required=True, metavar="FILE", help="The original ml-1m.zip.")
@click.option("--out", required=True, metavar="D", help="Folder for the log; new or empty.")
def movielens(archive: str, out: str) -> None:
    """Turn the original MovieLens-1M archive into an event log, and a schema file to start from."""
    from pipelines.movielens import write_log  # noqa: PLC0415

    report = write_log(Path(archive), Path(out))
    _write_schema("movielens.toml", out)
    _show(report, out)


@data.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.option("--config", "config_path", required=True, metavar="F", help="Run file with [schema] and [data.prepare].")
@click.option("--out", metavar="D", help="Folder for the rows: new, or prepared before.  [default: data.rows]")
@click.option("--refresh", is_flag=True, help="Also make anew the segments whose events or labels changed.")
@click.option("--as-of", default="", metavar="T", help="Labels as known then.  [default: data.prepare.as_of]")
@click.pass_context
def prepare(ctx: click.Context, config_path: str, out: str | None, refresh: bool, as_of: str) -> None:
    """Make request rows from event logs; where there are some, add the days that are new."""
    from trainer.config import load_config  # noqa: PLC0415
    from trainer.errors import ConfigError  # noqa: PLC0415
    from trainer.make_data import prepare_rows  # noqa: PLC0415

    config = load_config(config_path, ctx.args)
    if config.data.prepare is None:
        raise ConfigError(f"{config_path} has no [data.prepare] → it says which log and how → add it")
    target = out or config.data.rows
    _show(prepare_rows(config, target, refresh=refresh, as_of=as_of), target)


@data.command()
@click.argument("path")
@click.option("--write-schema", metavar="F", help="Write the drafted schema there; guesses are marked.")
def inspect(path: str, write_schema: str | None) -> None:
    """Show columns, types, lengths, cardinalities and label rates of request rows; draft a schema."""
    from pipelines.inspect import inspect as examine  # noqa: PLC0415
    from trainer.errors import ConfigError  # noqa: PLC0415

    if write_schema and Path(write_schema).exists():
        raise ConfigError(f"'{write_schema}' exists → a draft never replaces a file → name another")
    findings = examine(path)
    click.echo("\n".join(findings.lines()))
    if write_schema:
        findings.write_schema(Path(write_schema))
        click.echo(f"schema drafted in {write_schema}: check what is marked as a guess")


@data.command()
@click.argument("path", required=False)
@click.option("--config", "config_path", metavar="F", help="Run file: its schema, its segments, its [data.gate].")
@click.option("--segment", metavar="S", help="Show this one in full.  [default: the last]")
@click.option("--json", "json_path", metavar="F", help="Also write that one's profile there.")
@click.option("--all", "everything", is_flag=True, help="Read every row, not a sample.")
def profile(
    path: str | None, config_path: str | None, segment: str | None, json_path: str | None, everything: bool
) -> None:
    """Show what segments look like: rows, label rates, nulls, unknown ids, quantiles, frequent values."""
    from trainer.profile_verbs import show_profile  # noqa: PLC0415

    show_profile(path, config_path, segment, json_path, everything)


@data.command()
@click.argument("before", metavar="A")
@click.argument("now", metavar="B")
@click.option("--config", "config_path", metavar="F", help="Run file: its schema, its segments, its [data.gate].")
@click.option("--all", "everything", is_flag=True, help="Read every row, not a sample.")
def compare(before: str, now: str, config_path: str | None, everything: bool) -> None:
    """Show what changed from segment A to B, the largest changes first, and what [data.gate] would not let pass. A and
    B: names of segments of the run file, paths, or profiles written by `data profile --json`."""
    from trainer.profile_verbs import show_comparison  # noqa: PLC0415

    show_comparison(before, now, config_path, everything)


def _write_schema(run_file: str, out: str) -> None:
    """The `[schema]` of a shipped run file, as it stands there with its comments, beside the log."""
    text = resources.files("trainer").joinpath("configs", run_file).read_text(encoding="utf-8")
    schema = text[text.index("[schema]") : text.index("[data]")].rstrip()
    Path(out, "schema.toml").write_text(f"{schema}\n", encoding="utf-8")


def _show(report: Any, out: str) -> None:
    click.echo("\n".join([*report.lines(), f"written to {out}"]))
