"""A model that trains day after day was trained by many runs, each begun with the last: their audits together."""

from __future__ import annotations

from pathlib import Path

from trainer.audit import RunAudit, audit_lineage, audit_run, config_of
from trainer.audit_segment import Finding
from trainer.errors import CheckpointError
from trainer.run_dir import RunDir


def audit_model(run: Path) -> list[RunAudit]:
    """The run and those that its model came from, the first one first, each up to the checkpoint that the next one
    began with.

    A run that is not there any more is a finding of the one that began with it, and so is a segment that two of them
    trained. Raises what `audit_run` does, for the run itself.
    """
    audits = [audit_run(run)]
    parent = parent_of(run)
    while parent is not None:
        of_parent, parent = _audit_parent(parent, audits[0])
        if of_parent is not None:
            audits.insert(0, of_parent)
    trained: dict[str, str] = {}
    for found in audits:
        for segment in found.segments:
            if segment.read:
                _once(segment.name, found, trained)
    return audits


def parent_of(run: Path, step: int | None = None) -> str | None:
    """RUN/NAME: the checkpoint that a run began with, as its newest checkpoint, or that of `step`, says. None: it began
    with nothing."""
    from trainer.checkpoint.manifest import read_commit  # noqa: PLC0415 - imports torch
    from trainer.checkpoint.state import read_state  # noqa: PLC0415

    run_dir = RunDir(run)
    path = run_dir.require_latest() if step is None else run_dir.step_dir(step)
    lineage = read_state(path, read_commit(path)).resumed_from
    return next((name for name in reversed(lineage) if "/" in name), None)


def _audit_parent(parent: str, child: RunAudit) -> tuple[RunAudit | None, str | None]:
    """(audit of the run up to that checkpoint, what it began with itself)."""
    from trainer.checkpoint.manifest import read_commit  # noqa: PLC0415
    from trainer.checkpoint.state import read_state  # noqa: PLC0415

    run, _, name = parent.rpartition("/")
    run_dir, step = RunDir(run), int(name.removeprefix("step_"))
    try:
        path = run_dir.step_dir(step)
        state = read_state(path, read_commit(path))
        return audit_lineage(run_dir, config_of(run_dir), step, state.position), parent_of(Path(run), step)
    except CheckpointError as error:
        line = (
            f"{child.run} began with {parent}, which cannot be audited ({error.problems[0].partition(' → ')[0]}) → a"
            " model's whole history needs every run it came from → keep them, or audit without --lineage"
        )
        child.findings.append(Finding("lineage", line))
        return None, None


def _once(segment: str, found: RunAudit, trained: dict[str, str]) -> None:
    if segment not in trained:
        trained[segment] = found.run
        return
    line = (
        f"segment '{segment}' was trained by {trained[segment]} and again by {found.run} → a model is trained on a"
        " segment by one of its runs → begin anew with a run before it, or accept its weight"
    )
    found.findings.append(Finding("repeated", line, segment))
