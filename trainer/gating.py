"""Before a step: every segment still to be trained is held against those before it, as `[data.gate]` says.

RUN/profiles/SEGMENT.json keeps what was counted, RUN/gate.json what was decided: a resumed run counts nothing twice,
and what a run with a checkpoint has left out stays out, so that the order of its batches does not change.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field, ValidationError

from pipelines.config import Gate
from pipelines.errors import DataError
from pipelines.footers import Footer, read_footers
from pipelines.gate import judge
from pipelines.profile import columns_digest, files_digest, profile_segment
from pipelines.profile_format import SegmentProfile, read_profile
from pipelines.schema import Frozen
from pipelines.segments import Segment, find_segments, included, list_segments, matches
from trainer.checkpoint.folder import Folder, Location
from trainer.config import Config
from trainer.errors import RunDataError
from trainer.run_dir import Resume, RunDir

log = logging.getLogger(__name__)

Verdict = Literal["passed", "warned", "skipped"]
FORMAT = 1


class Decision(Frozen):
    """On one segment. fingerprint: of the files it was made on. references: the segments it was held against; none =
    there was nothing to hold it against. reasons: a line per rule that it broke."""

    verdict: Verdict
    fingerprint: str
    references: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


class Decisions(Frozen):
    """RUN/gate.json."""

    format: int = FORMAT
    segments: dict[str, Decision] = Field(default_factory=dict)


def gate_segments(config: Config, run_dir: RunDir, resume: Resume) -> Config:
    """The config whose `data.exclude` also names what the gate leaves out, for every rank to go by.

    Called once a run, by the command, after the run directory was made and before a worker starts. Raises RunDataError
    with a line per rule that a segment breaks, where `on_fail = "fail"`.
    """
    checkpoint = run_dir.latest() if resume != "never" else None
    decided = Decisions() if checkpoint is None else _read(run_dir)  # before the first one nothing is settled
    if config.data.gate is None and not decided.segments:
        return config
    _say_exclusions(config)
    decisions = dict(decided.segments)
    if config.data.gate is not None:
        _Gating(config, config.data.gate, run_dir, decisions, _begun(config, checkpoint)).run()
        if decisions != decided.segments:
            run_dir.write_text(run_dir.gate, Decisions(segments=decisions).model_dump_json(indent=2) + "\n")
    skipped = [name for name, decision in decisions.items() if decision.verdict == "skipped"]
    return _without(config, skipped)


@dataclass
class _Gating:
    """One start of a run. decisions: filled in. begun: segments that the newest checkpoint is in or past."""

    config: Config
    gate: Gate
    run_dir: RunDir
    decisions: dict[str, Decision]
    begun: frozenset[str]
    footers: dict[str, list[Footer]] = field(default_factory=dict)
    profiles: dict[str, SegmentProfile | None] = field(default_factory=dict)
    failures: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def run(self) -> None:
        train = {segment.name for segment in find_segments(self.config.data).train}
        everything = included(list_segments(self.config.data.rows), self.config.data)
        usable: list[Segment] = []  # so far, as references
        for segment in everything:
            name = segment.name
            if name in train and name not in self.begun and not self._stands(segment):
                self._decide(segment, usable)
            decision = self.decisions.get(name)
            if (decision is None or decision.verdict != "skipped") and name not in self.failures:
                usable.append(segment)
        if self.failures:
            raise RunDataError([line for lines in self.failures.values() for line in lines])

    def _stands(self, segment: Segment) -> bool:
        """Whether an earlier decision still holds. What was left out stays out, also where its files were mended."""
        decision = self.decisions.get(segment.name)
        if decision is None:
            return False
        same = decision.fingerprint == self._fingerprint(segment)
        if decision.verdict == "skipped":
            why = (
                "as decided before"
                if same
                else ("as decided before; its files have changed since: to train it, start a new run with --init-from")
            )
            log.warning("segment '%s' is left out, %s", segment.name, why)
            return True
        return same

    def _decide(self, segment: Segment, usable: Sequence[Segment]) -> None:
        nearest = [other for other in usable[-2 * self.gate.previous :] if self._profile(other) is not None]
        previous = [profile for other in nearest if (profile := self._profile(other)) is not None]
        now = self._measured(segment)
        names = tuple(profile.segment for profile in previous[-self.gate.previous :])
        if not names:
            log.info("gate: segment '%s' passes: there is no segment before it to hold it against", segment.name)
        findings = [f for f in judge(now, previous, self.gate, self.config.schema) if f.tripped]
        lines = tuple(finding.line(segment.name, len(names)) for finding in findings)
        verdict: Verdict = "passed"
        if lines and self.gate.on_fail == "fail":
            self.failures[segment.name] = lines
            return
        if lines:
            verdict = "skipped" if self.gate.on_fail == "skip" else "warned"
            done = "left out" if verdict == "skipped" else "trained all the same"
            for line in lines:
                log.warning("%s", line)
            log.warning("segment '%s' is %s (data.gate.on_fail = '%s')", segment.name, done, self.gate.on_fail)
        elif names:
            log.info("gate: segment '%s' passes, beside %s", segment.name, _span(names))
        self.decisions[segment.name] = Decision(
            verdict=verdict, fingerprint=now.fingerprint, references=names, reasons=lines
        )

    def _profile(self, segment: Segment) -> SegmentProfile | None:
        """Of a reference; None, and said, where it cannot be read: it is not what is to be trained."""
        if segment.name not in self.profiles:
            try:
                self._measured(segment)
            except DataError as error:
                log.warning("segment '%s' is no reference for the gate: %s", segment.name, error.problems[0])
                self.profiles[segment.name] = None
        return self.profiles[segment.name]

    def _measured(self, segment: Segment) -> SegmentProfile:
        known = self.profiles.get(segment.name)
        if known is not None:
            return known
        profile = self._kept(segment)
        if profile is None:
            log.info("profiling segment '%s'", segment.name)
            profile = profile_segment(segment, self.config.schema, self.gate.sample_rows, self._footers(segment))
            self.run_dir.profiles.mkdir(exist_ok=True)
            self.run_dir.write_text(self._file(segment), profile.to_json())
        self.profiles[segment.name] = profile
        return profile

    def _kept(self, segment: Segment) -> SegmentProfile | None:
        """What an earlier start counted, when it is of these files, this schema and this sample."""
        path = self._file(segment)
        if not path.exists():
            return None
        try:
            profile = read_profile(path)
        except DataError as error:
            log.warning("counted anew: %s", error.problems[0])
            return None
        wanted = (self._fingerprint(segment), columns_digest(self.config.schema), self.gate.sample_rows)
        return profile if (profile.fingerprint, profile.columns_digest, profile.sample_rows) == wanted else None

    def _file(self, segment: Segment) -> Path:
        return self.run_dir.profiles / f"{quote(segment.name, safe='')}.json"

    def _footers(self, segment: Segment) -> list[Footer]:
        if segment.name not in self.footers:
            self.footers = {segment.name: read_footers(segment.files)}  # of one segment at a time
        return self.footers[segment.name]

    def _fingerprint(self, segment: Segment) -> str:
        return files_digest(self._footers(segment))


def _read(run_dir: RunDir) -> Decisions:
    if not run_dir.gate.exists():
        return Decisions()
    try:
        return Decisions.model_validate_json(run_dir.gate.read_bytes())
    except ValidationError as error:
        raise RunDataError(
            f"{run_dir.gate} cannot be read: {error.errors()[0]['msg']} → it says which segments this run leaves out"
            " → restore it, or start a new run with --init-from"
        ) from error


def _begun(config: Config, checkpoint: Location | None) -> frozenset[str]:
    """Segments that the newest checkpoint is in or past. A later epoch, or an order that mixes segments, has begun all
    of them."""
    if checkpoint is None:
        return frozenset()
    # The worker verifies the checkpoint and says what is wrong with it; torch, which that needs, is not loaded yet.
    position: Any = None
    with suppress(OSError, ValueError):
        position = json.loads(Folder(checkpoint).read("state.json")).get("position")
    if position is None:
        return frozenset()
    train = [segment.name for segment in find_segments(config.data).train]
    if config.data.order == "shuffle" or position["epoch"] > 0 or position["name"] not in train:
        return frozenset(train)
    return frozenset(train[: train.index(position["name"]) + 1])


def _without(config: Config, skipped: Sequence[str]) -> Config:
    """Raises RunDataError where nothing is left to train."""
    new = tuple(name for name in sorted(skipped) if name not in config.data.exclude)
    if not new:
        return config
    if not {segment.name for segment in find_segments(config.data).train} - set(new):
        raise RunDataError(
            f"the gate leaves out all segments of this run: {', '.join(new)} → one at least is trained"
            " → mend them, or set data.gate.on_fail = 'warn'"
        )
    return replace(config, data=config.data.model_copy(update={"exclude": (*config.data.exclude, *new)}))


def _say_exclusions(config: Config) -> None:
    names = [segment.name for segment in list_segments(config.data.rows)]
    for entry in config.data.exclude:
        if not any(matches(name, entry) for name in names):
            log.warning("data.exclude names '%s', which is no segment of '%s'", entry, config.data.rows)


def _span(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
