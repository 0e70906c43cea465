"""Whether a run that was hurt ended as one that never was: nothing lost, nothing repeated, the same model."""

from __future__ import annotations

import contextlib
import json
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.trainer.runs import differing, newest_state, saved_tensors
from trainer.audit import audit_run
from trainer.audit_lineage import account_of
from trainer.checkpoint.state import CheckpointState
from trainer.consumed_format import decode_rows

Rows = frozenset[tuple[str, int]]
# {(epoch, segment): {(last batch, its step): rows of all ranks, of the batches since the key before}}. A record ends
# where a checkpoint was saved, and SIGTERM saves one at any step: two runs are compared where both have an end.
Batches = dict[tuple[int, str], dict[tuple[int, int], Rows]]


@dataclass(frozen=True)
class End:
    """What a run left. findings: of `audit`. counts: (steps, rows read, rows not read yet), by it. batches: what they
    were made of. told: steps of kind train in metrics.jsonl, as they stand there.
    tensors: of the newest checkpoint, shards put together."""

    findings: tuple[str, ...]
    counts: tuple[int, int, int]
    batches: Batches
    told: tuple[int, ...]
    state: CheckpointState
    tensors: dict[str, torch.Tensor]


def end_of(run: Path) -> End:
    """Raises what `audit` raises."""
    with contextlib.chdir(run.parent):  # the run file names rows and store from there
        audit, state, tensors = audit_run(run), newest_state(run), saved_tensors(run)
    counts = audit.steps, sum(s.read for s in audit.segments), sum(s.not_yet for s in audit.segments)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return End(
        findings=tuple(finding.line for finding in audit.all_findings),
        counts=counts,
        batches=global_batches(run, state.step),
        told=tuple(line["step"] for line in lines if line["kind"] == "train"),
        state=state,
        tensors=tensors,
    )


def global_batches(run: Path, step: int) -> Batches:
    """Of the lineage of the checkpoint of this step."""
    found: Batches = {}
    account = account_of(run / "consumed", step)
    for segment in account.lines:
        for _, _, record in account.records(segment):
            of = found.setdefault((record.epoch, record.segment), {})
            rows = ((part.file, int(row)) for part in record.parts for row in decode_rows(part.rows))
            end = record.batches[1], record.steps[1]
            of[end] = of.get(end, frozenset()).union(rows)
    return found


def differing_batches(found: Batches, expected: Batches) -> list[str]:
    """Where the rows between two ends that both runs have are not the same, a line each."""
    problems = []
    for key in sorted(found.keys() | expected.keys()):
        mine, due = found.get(key, {}), expected.get(key, {})
        ends = sorted(mine.keys() & due.keys())
        before = 0
        for (batch, _), got, wanted in zip(
            [*ends, (None, None)], _between(mine, ends), _between(due, ends), strict=True
        ):
            if got != wanted or (got and batch is None):  # nothing comes after the last end that both have
                problems.append(f"epoch {key[0]}, segment {key[1]}: the rows of batches from {before} differ")
            before = 0 if batch is None else batch + 1
    return problems


def _between(batches: dict[tuple[int, int], Rows], ends: list[tuple[int, int]]) -> list[Rows]:
    """Rows up to each end, and those after the last."""
    blocks = [frozenset[tuple[str, int]]() for _ in range(len(ends) + 1)]
    for end, rows in batches.items():
        at = bisect_left(ends, end)
        blocks[at] = blocks[at].union(rows)
    return blocks


def judge(found: End, expected: End, to_the_bit: bool) -> list[str]:
    """What is wrong with a run that came to its end, a line each; none is the aim.

    expected: of a run that was never hurt. to_the_bit: both had the same number of processes all the time, so tensors,
    sums of metrics and position have to be the same; else the global batches and all that follows from them alone.
    """
    problems = [f"audit: {line}" for line in found.findings]
    if found.counts != expected.counts:
        problems.append(f"(steps, rows read, rows not read) are {found.counts}, due: {expected.counts}")
    if found.told != expected.told:
        missing = sorted(set(expected.told) - set(found.told))
        twice = sorted({step for step in found.told if found.told.count(step) > 1})
        problems.append(f"metrics.jsonl: steps missing {missing}, told twice {twice}")
    problems += differing_batches(found.batches, expected.batches)
    left_out = {"resumed_from"} if to_the_bit else {"resumed_from", "extra", "world_size"}
    mine, due = (end.state.model_dump(exclude=left_out) for end in (found, expected))
    problems += [f"state.json: {key} differs" for key in sorted(due) if mine.get(key) != due[key]]
    if to_the_bit:
        problems += [f"tensor {name} differs" for name in differing(expected.tensors, found.tensors)]
    return problems
