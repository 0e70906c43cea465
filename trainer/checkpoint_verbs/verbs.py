"""The `checkpoint` verbs: which checkpoints are meant, what is done with them, what is said."""

from __future__ import annotations

import json
from contextlib import ExitStack

import click

from trainer.checkpoint_verbs import source
from trainer.errors import CheckpointError, ConfigError


def show_list(run: str, as_json: bool) -> None:
    """Every checkpoint of a run. Raises CheckpointError where it has none."""
    from trainer.checkpoint_verbs.listing import list_checkpoints  # noqa: PLC0415
    from trainer.checkpoint_verbs.printing import print_list  # noqa: PLC0415

    place = source.find_place(run)
    if not place.found:
        place.newest()  # says so
    found = list_checkpoints(place)
    if as_json:
        click.echo(json.dumps([listed.to_json() for listed in found], indent=2))
    else:
        print_list(found)


def check(path: str | None, run: str | None, step: int | None, everything: bool) -> None:
    """A line for each sound checkpoint. Raises CheckpointError with a line per damage."""
    from embeddings.plan_report import human_bytes  # noqa: PLC0415
    from trainer.checkpoint_verbs.verifying import verify  # noqa: PLC0415

    damages: list[str] = []
    for found in _to_verify(path, run, step, everything):
        try:
            verified = verify(found)
        except CheckpointError as error:
            damages += error.problems
            continue
        damages += verified.damages
        if not verified.damages:
            click.echo(
                f"{verified.name}: fine · {verified.kind}, step {verified.step:,} · {verified.files} files of "
                f"{human_bytes(verified.bytes)} are as committed · {verified.tensors} tensors whole and finite · "
                f"{verified.id_maps} id maps consistent"
            )
    if damages:
        raise CheckpointError(list(dict.fromkeys(damages)))


def _to_verify(path: str | None, run: str | None, step: int | None, everything: bool) -> list[source.Found]:
    if (path is None) == (run is None) or (run is None and (step is not None or everything)):
        raise ConfigError("checkpoint verify → takes PATH, or --run D with --step N or --all → give one of them")
    if step is not None and everything:
        raise ConfigError("checkpoint verify: both --step and --all → they exclude each other → leave one out")
    if run is None:
        return [source.find_checkpoint(path or "")]
    place = source.find_place(run)
    if step is not None:
        return [place.of_step(step)]
    if not everything:
        return [place.newest()]
    place.newest()  # there is one
    for step_dir in place.found:
        if not step_dir.complete:
            click.echo(f"{step_dir.path}: not complete, its writing was interrupted or goes on: not looked at")
    return [source.Found(step_dir.path, place.run) for step_dir in place.found if step_dir.complete]


def diff(a: str, b: str, out: str | None, run: str | None, config_path: str | None) -> None:
    """What changed from A to B. a, b: paths, or steps of `run`."""
    from trainer.checkpoint_verbs.diffing import Side, compare  # noqa: PLC0415
    from trainer.checkpoint_verbs.printing import print_changes  # noqa: PLC0415
    from trainer.checkpoint_verbs.saved_tables import checked_specs  # noqa: PLC0415

    with ExitStack() as opened:
        sides = []
        for argument in (a, b):
            found = _of_run(argument, run)
            saved = opened.enter_context(source.open_checkpoint(found))
            source.check_files(saved)
            specs = checked_specs(saved, source.config_of(saved, found.run, config_path))
            sides.append(Side(saved, specs, source.state_of(saved)))
        comparison = compare(sides[0], sides[1], out)
    print_changes(comparison.tables, comparison.dense, comparison.dense_same)
    for difference in comparison.schema:
        click.echo(difference)
    written = f" · rows/ and summary.json written to {out}" if out else ""
    click.echo(f"from step {comparison.steps[0]:,} to step {comparison.steps[1]:,}{written}")


def _of_run(argument: str, run: str | None) -> source.Found:
    if run is None:
        return source.find_checkpoint(argument)
    if not argument.isdecimal():
        raise ConfigError(f"checkpoint diff: '{argument}' with --run → A and B are then steps of it → give numbers")
    return source.find_place(run).of_step(int(argument))


def reshard(path: str, world_size: int, out: str, plan_path: str | None) -> None:
    """The checkpoint as files of N ranks."""
    from embeddings.plan_report import human_bytes  # noqa: PLC0415
    from trainer.checkpoint_verbs.resharding import reshard as write  # noqa: PLC0415

    with source.open_checkpoint(source.find_checkpoint(path)) as saved:
        done = write(saved, world_size, out, plan_path)
    for rank, held in enumerate(done.rank_bytes):
        click.echo(f"rank {rank}  {human_bytes(held)}")
    click.echo(f"checkpoint of step {done.step:,} written to {out}: {done.files} files, {human_bytes(done.bytes)}")


def unshard(path: str, out: str, tables: str | None, config_path: str | None) -> None:
    """Tables, tower, id maps and borders as plain files."""
    from embeddings.plan_report import human_bytes  # noqa: PLC0415
    from trainer.checkpoint_verbs.exporting import export  # noqa: PLC0415
    from trainer.checkpoint_verbs.saved_tables import checked_specs, chosen  # noqa: PLC0415

    found = source.find_checkpoint(path)
    with source.open_checkpoint(found) as saved:
        config = source.config_of(saved, found.run, config_path)
        specs = checked_specs(saved, config)
        done = export(saved, source.state_of(saved), config, specs, list(chosen(specs, tables)), out)
    for name, rows in done.tables.items():
        known = f", {done.ids[name]:,} ids" if name in done.ids else ""
        click.echo(f"table {name}: {rows:,} rows{known}")
    click.echo(f"tower: {done.parameters:,} values")
    click.echo(f"written to {out}: {human_bytes(done.bytes)}; its README.md says what is what")
