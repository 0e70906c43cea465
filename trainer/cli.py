"""`tokenformer VERB`. Verbs import what they need when they run, so that `--help` answers at once."""

from __future__ import annotations

import sys
from typing import Any

import click

from pipelines.secrets import REMEDY, RULE, secret_in
from trainer import leaving
from trainer.cli_boundary import guarded
from trainer.cli_checkpoint import checkpoint
from trainer.cli_data import data

# Options of the form --section.key belong to the run file, not to click.
OVERRIDES = {"ignore_unknown_options": True, "allow_extra_args": True}
OVERRIDES_HELP = "Keys of the run file may follow: --model.num-layers 6, --data.segments 2026-11-13..2026-11-19."


class _Command(click.Group):
    """Refuses keys among its words: a command line is seen by everybody on the machine, and kept in env.json."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from trainer.errors import ConfigError  # noqa: PLC0415

        found = [f"a word of the command line holds {what}" for word in args if (what := secret_in(word))]
        if found:
            raise ConfigError([f"{each} → {RULE} → {REMEDY}" for each in found])
        return super().parse_args(ctx, args)


@click.group(cls=_Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Train rankers that read many fields and long histories, on sharded tables.

    Exit codes: 0 fine · 2 usage or config · 3 data · 4 plan does not fit · 5 checkpoint · 1 anything unforeseen.
    """


cli.add_command(data)
cli.add_command(checkpoint)


@cli.command(context_settings=OVERRIDES, epilog=OVERRIDES_HELP)
@click.option("--config", "config_path", required=True, metavar="F", help="Run file.")
@click.option("--run-dir", metavar="D", help="Run directory.  [default: runs/NAME of the run file]")
@click.option("--resume", type=click.Choice(["never", "auto", "must"]), default="never", show_default=True)
@click.option(
    "--init-from", metavar="RUN", help="Begin with another run's newest checkpoint: --init.run RUN; see [init]."
)
@click.option("--dry-run", is_flag=True, help="Two real batches through plan, step, checkpoint and resume.")
@click.option("--profile", is_flag=True, help="A trace of a few steps into the run directory, for Perfetto.")
@click.option("--plan", "saved", metavar="FILE", help="Shard by this plan.json: --embeddings.plan FILE.")
@click.option("--max-steps", type=click.IntRange(min=1), metavar="N", help="Stop after N steps: --train.max-steps N.")
@click.option("--no-live", is_flag=True, help="No live display, a line a log: --telemetry.live off.")
@click.pass_context
def train(
    ctx: click.Context,
    config_path: str,
    run_dir: str | None,
    resume: str,
    init_from: str | None,
    dry_run: bool,
    profile: bool,
    saved: str | None,
    max_steps: int | None,
    no_live: bool,
) -> None:
    """Train, making the data first when they are absent and the run file says how."""
    from trainer.train_verb import TrainOptions, run_training  # noqa: PLC0415

    typed = {"--train.max-steps": max_steps, "--init.run": init_from, "--embeddings.plan": saved}
    typed["--telemetry.live"] = "off" if no_live else None
    overrides = [*ctx.args, *(f"{key}={value}" for key, value in typed.items() if value is not None)]
    run_training(TrainOptions(config_path, overrides, run_dir, resume, dry_run, profile))  # type: ignore[arg-type]


@cli.command(context_settings=OVERRIDES, epilog=OVERRIDES_HELP)
@click.option("--config", "config_path", required=True, metavar="F", help="Run file.")
@click.option("--world-size", type=click.IntRange(min=1), required=True, metavar="N", help="Training processes.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--hbm", "--memory", "memory", metavar="SIZE", help="Memory of a rank's device, such as 80GB.")
@click.option("--local-world-size", type=click.IntRange(min=1), metavar="N", help="Processes a host.  [default: all]")
@click.option("--host-memory", metavar="SIZE", help="Memory of a host, such as 1TB, for rows that lie there.")
@click.option("--hardware", metavar="NAME", help="Peaks for the estimate of a step: h100, h200, a100, l4 or cpu.")
@click.option("--plan", "saved", metavar="FILE", help="A plan.json to show instead: --embeddings.plan FILE.")
@click.option("--json", "as_json", is_flag=True, help="All of it as one JSON value; it can be given back as a plan.")
@click.option("--save", metavar="FILE", help="Also write that JSON to a file.")
@click.pass_context
def plan(
    ctx: click.Context, /, config_path: str, saved: str | None, as_json: bool, save: str | None, **asked: Any
) -> None:
    """Show tables, sharding, memory and bytes per rank, and an estimate of a step. Needs no GPU."""
    from trainer.plan_verb import options_of  # noqa: PLC0415
    from trainer.plan_verb import plan as run  # noqa: PLC0415

    given = [] if saved is None else [f"--embeddings.plan={saved}"]
    run(config_path, [*ctx.args, *given], options_of(**asked), as_json, save)


@cli.command()
@click.option("--run", required=True, metavar="D", help="Run directory; its newest complete checkpoint is taken.")
@click.option("--data", "rows", metavar="P", help="Request rows to score.  [default: the run's evaluation segments]")
@click.option(
    "--collapse",
    type=click.IntRange(min=0),
    metavar="N",
    help="Rows whose tokens are looked at layer by layer.  [default: the run's train.collapse_rows]",
)
@click.option(
    "--by", default="", metavar="FIELD", help="Also by the values of a column: the 20 most frequent, and others."
)
@click.option(
    "--predictions", default="", metavar="DIR", help="Write every prediction, with the ids of the data, as Parquet."
)
@click.option("--checkpoint", type=click.IntRange(min=0), metavar="STEP", help="Of this step.  [default: the newest]")
def evaluate(
    run: str, rows: str | None, collapse: int | None, by: str, predictions: str, checkpoint: int | None
) -> None:
    """Score a trained run: NE, AUC, GAUC and calibration per task."""
    from trainer.evaluate_verb import evaluate as score  # noqa: PLC0415

    score(run, rows, collapse, by, predictions, checkpoint)


@cli.command()
@click.option("--run", "runs", multiple=True, metavar="D", help="Twice: the runs A and B.")
@click.option("--data", "rows", metavar="P", help="Request rows to score.  [default: the runs' evaluation segments]")
@click.option("--predictions", "folders", multiple=True, metavar="DIR", help="Twice, instead of runs: of `evaluate`.")
@click.option(
    "--checkpoint", "steps", type=click.IntRange(min=0), multiple=True, metavar="STEP", help="Twice: of A, B."
)
@click.option(
    "--by", default="", metavar="FIELD", help="Also by the values of a column: the 20 most frequent, and others."
)
@click.option("--resamples", type=click.IntRange(min=2), default=1000, show_default=True, help="Of users.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Of the resamples.")
@click.option("--json", "json_path", metavar="F", help="Also write all of it to a file.")
def compare(
    runs: tuple[str, ...],
    rows: str | None,
    folders: tuple[str, ...],
    steps: tuple[int, ...],
    by: str,
    resamples: int,
    seed: int,
    json_path: str | None,
) -> None:
    """Hold two models against each other on the same rows: differences with intervals by user."""
    if (len(runs), len(folders)) not in ((2, 0), (0, 2)) or len(steps) not in (0, 2 if runs else 0):
        raise click.UsageError("--run twice (and --checkpoint twice or not at all), or --predictions twice, is needed")
    if folders and rows:
        raise click.UsageError("--data is what runs are scored on; predictions are of their rows already")
    from trainer import compare_verb  # noqa: PLC0415

    if folders:
        compare_verb.compare_folders(folders, by, resamples, seed, json_path)
    else:
        compare_verb.compare_runs(runs, rows, steps, by, resamples, seed, json_path)


@cli.command()
@click.option("--run", metavar="D", help="Run directory; the lineage of its newest complete checkpoint is audited.")
@click.option("--find", "segment", metavar="SEGMENT", help="Name the runs that consumed a segment instead.")
@click.option("--runs", metavar="FOLDER", default="runs", show_default=True, help="Where --find looks for runs.")
@click.option("--lineage", is_flag=True, help="Also audit the runs that the model came from (--init-from).")
@click.option("--json", "as_json", is_flag=True, help="All findings, as one JSON value.")
def audit(run: str | None, segment: str | None, runs: str, lineage: bool, as_json: bool) -> None:
    """Prove from the files that a run read every row exactly once, or name those that it did not."""
    from trainer import audit_verb  # noqa: PLC0415

    if (run is None) == (segment is None):
        raise click.UsageError("one of --run D and --find SEGMENT is needed")
    if run is not None:
        audit_verb.audit(run, as_json, lineage)
    elif segment is not None:
        audit_verb.find(segment, runs, as_json)


@cli.command(name="submit", context_settings=OVERRIDES, epilog=OVERRIDES_HELP)
@click.option("--config", "config_path", metavar="F", help="Run file.")
@click.option("--to", metavar="CLUSTER", help="Where to: slurm or kuberay.")
@click.option("--run-dir", metavar="D", help="Run directory, seen by every node.  [default: runs/NAME of the run file]")
@click.option("--resume", type=click.Choice(["never", "auto", "must"]), default="never", show_default=True)
@click.option("--detach", is_flag=True, help="Do not follow the job.")
@click.option(
    "--print", "only_print", is_flag=True, help="Print what would be given to the cluster; no cluster is needed."
)
@click.option("--status", metavar="D", help="Of a submitted run: where it is.")
@click.option("--logs", metavar="D", help="Of a submitted run: what it said, followed while it runs.")
@click.option("--stop", metavar="D", help="Ask a submitted run to save and leave.")
@click.pass_context
def submit_(
    ctx: click.Context,
    config_path: str | None,
    to: str | None,
    run_dir: str | None,
    resume: str,
    detach: bool,
    only_print: bool,
    status: str | None,
    logs: str | None,
    stop: str | None,
) -> None:
    """Run the same run file on a cluster, or look after a run that is there."""
    from trainer.submit import verb  # noqa: PLC0415

    asked = [
        (action, run) for action, run in ((verb.show_status, status), (verb.show_logs, logs), (verb.stop, stop)) if run
    ]
    if len(asked) + (config_path is not None) != 1:
        raise click.UsageError("one of --config F, --status D, --logs D and --stop D is needed")
    for action, run in asked:
        action(run)
    if config_path is not None:
        if to is None:
            raise click.UsageError("--to says where the run goes")
        if only_print:
            verb.show_script(config_path, ctx.args, to, run_dir)
        else:
            verb.submit(config_path, ctx.args, to, run_dir, resume, detach)  # type: ignore[arg-type]


@cli.command()
@click.option("--run", "runs", required=True, multiple=True, metavar="D", help="Run directory; give it several times.")
@click.option("--out", metavar="F", help="File to write.  [default: report.html of the first run]")
def report(runs: tuple[str, ...], out: str | None) -> None:
    """Write curves, tables and events of runs as one HTML file that needs no network."""
    from trainer.report.verb import report as write  # noqa: PLC0415

    write(runs, out)


@cli.command()
def doctor() -> None:
    """Show versions, devices and backends, and what will be slower here and why."""
    from trainer.doctor import examine  # noqa: PLC0415

    findings = examine()
    click.echo("\n".join(findings.lines()))
    if findings.problems:
        raise SystemExit(1)


def main(arguments: list[str] | None = None) -> None:
    """The console script: every error ends in one place, with the exit code of the contract."""
    leaving.prepare()
    sys.exit(leaving.with_code(guarded(lambda: cli.main(arguments, prog_name="tokenformer", standalone_mode=False))))
