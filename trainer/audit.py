"""What a run was trained on, proved from its files: every row read exactly once, or which were not.

Nothing of the planner or the readers is imported here (an import contract holds that): which rows a run should have
read follows from its segments, its global batch and the position of its newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.batch import Position
from pipelines.segments import Segment, find_segments, list_segments
from trainer.audit_lineage import Account, account_of
from trainer.audit_segment import Due, Finding, SegmentAudit, SegmentAuditor
from trainer.config import Config, load_config
from trainer.errors import CheckpointError
from trainer.run_dir import RunDir

EVERYTHING = 2**62  # batches: more than any segment has


@dataclass
class RunAudit:
    """step: of the checkpoint. steps: trained in this run. attempts: processes that its steps came from."""

    run: str
    step: int
    steps: int
    attempts: int
    segments: list[SegmentAudit] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def all_findings(self) -> list[Finding]:
        """Of the record as a whole, then of the segments."""
        return self.findings + [finding for segment in self.segments for finding in segment.findings]


def audit_run(run: Path) -> RunAudit:
    """Raises CheckpointError where there is no run or no checkpoint, DataError where its rows are not there, and
    RunDataError where it kept no record."""
    from trainer.checkpoint.manifest import read_commit  # noqa: PLC0415 - imports torch
    from trainer.checkpoint.state import read_state  # noqa: PLC0415

    run_dir = RunDir(run)
    config = config_of(run_dir)
    path = run_dir.require_latest()
    state = read_state(path, read_commit(path))
    return audit_lineage(run_dir, config, state.step, state.position)


def audit_lineage(run_dir: RunDir, config: Config, step: int, position: Position | None) -> RunAudit:
    """Of a checkpoint that holds the steps up to `step`, the last of which trained the batch at `position`."""
    account = account_of(run_dir.consumed, step)
    found = RunAudit(str(run_dir.path), step, step - account.first_step, len(account.attempts))
    found.findings += [Finding("record", problem) for problem in account.problems]
    wanted = find_segments(config.data).train
    there = {segment.name: segment for segment in list_segments(config.data.rows)}
    names = [segment.name for segment in wanted]
    for name in [*names, *sorted(account.lines.keys() - set(names))]:
        if name not in there:
            line = f"segment '{name}' was trained, and is not there any more → audit reads its files → restore it"
            found.findings.append(Finding("files", line, name))
            continue
        due = due_of(name, names, position, account, config)
        found.segments.append(_audit_segment(there[name], account, config, due))
    return found


def config_of(run_dir: RunDir) -> Config:
    """Of a run. Raises CheckpointError where there is none."""
    if not run_dir.config.is_file():
        raise CheckpointError(
            f"'{run_dir.path}' has no config.toml → every run directory that training began in has one → check --run"
        )
    return load_config(run_dir.config)


def due_of(
    name: str, names: list[str], position: Position | None, account: Account, config: Config
) -> Mapping[int, Due]:
    """{epoch: how far a segment must have been trained in it}.

    By the position, where segments come in order: all before it, its own up to its batch. While a shuffled epoch is
    under way: any windows, but whole ones, and that of the position up to its batch. Once the stream said that it was
    at its end: everything that the attempt was to train.
    """
    due: dict[int, Due] = {}
    if position is None:
        return due
    for epoch in range(config.data.epochs):
        planned = name in account.planned.get(epoch, ())
        ended = any(epoch < header.epochs and name in header.segments for header in account.ended)
        here = position if epoch == position.epoch and name == position.name else None
        if ended or (epoch < position.epoch and planned):
            due[epoch] = Due(EVERYTHING)
        elif epoch == position.epoch and config.data.order == "shuffle":
            window = None if here is None else here.batch - here.batch % config.data.window_batches
            due[epoch] = Due(None, window, 0 if here is None else here.batch)
        elif here is not None:
            due[epoch] = Due(here.batch + 1)
        elif epoch == position.epoch and _comes_before(name, names, position.name, planned):
            due[epoch] = Due(EVERYTHING)
        else:
            due[epoch] = Due(0)
    return due


def _comes_before(name: str, names: list[str], current: str, planned: bool) -> bool:
    """In the run's order of segments. One that the run file names no more was left behind."""
    if name not in names or current not in names:
        return planned
    return names.index(name) < names.index(current)


def _audit_segment(segment: Segment, account: Account, config: Config, due: Mapping[int, Due]) -> SegmentAudit:
    data = config.data
    auditor = SegmentAuditor(segment, config.schema, data.global_batch, data.window_batches, due)
    for counted, rank, record in account.records(segment.name):
        auditor.take(counted, rank, record)
    found = auditor.close()
    samples = data.sample < 1 or (data.downsampling is not None and data.downsampling.sample)
    if found.sampled_out and not samples:
        found.found(
            "left out",
            f"{found.sampled_out:,} rows were left out as sampled",
            "the run file samples nothing",
            "was it changed since? Keep data.sample and data.downsampling of a run as they are",
            rows=found.sampled_out,
        )
    return found
