"""Which lines of consumed/ count: those of steps in the lineage of a checkpoint.

An attempt counts up to the step that a later attempt went on from; what it trained after that was trained again.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from pipelines.schema import Frozen
from trainer.consumed_format import FORMAT_VERSION, Attempt, End, Record, files_of
from trainer.errors import RunDataError

Line = TypeVar("Line", bound=Frozen)


@dataclass(frozen=True)
class Counted:
    """An attempt with steps in the lineage: those after `header.resumed_from`, up to `upto`. files: {rank: path}."""

    header: Attempt
    upto: int
    files: dict[int, Path]


@dataclass
class Account:
    """Of a lineage. lines: {segment: where its records are}, `ended`: attempts whose stream was at its end. problems:
    steps without a record, lines that are none. planned: {epoch: segments that were to be trained in it}."""

    attempts: list[Counted]
    paths: list[Path] = field(default_factory=list)
    lines: dict[str, array[int]] = field(default_factory=dict)
    ended: list[Attempt] = field(default_factory=list)
    planned: dict[int, set[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def first_step(self) -> int:
        """The account begins after it."""
        return self.attempts[0].header.resumed_from if self.attempts else 0

    def records(self, segment: str) -> Iterator[tuple[Counted, int, Record]]:
        """(attempt, rank, record) of a segment, read anew from the files, one at a time."""
        owners = {path: (counted, rank) for counted in self.attempts for rank, path in counted.files.items()}
        places = self.lines.get(segment, array("q"))
        for file, offset in zip(places[::2], places[1::2], strict=True):
            with self.paths[file].open("rb") as opened:
                opened.seek(offset)
                yield (*owners[self.paths[file]], Record.model_validate_json(opened.readline()))


def attempts_of(consumed: Path, final_step: int) -> list[Counted]:
    """In order, those that count for a checkpoint of this step. Raises RunDataError: there is no record."""
    found = []
    for files in files_of(consumed).values():
        headers = {rank: header for rank, path in files.items() if (header := _header(path)) is not None}
        if headers:
            found.append((headers[min(headers)], files))
    if not found:
        raise RunDataError(
            f"'{consumed}' holds no record of what was trained → every run keeps one from its first step on"
            " → check --run; a run of an earlier version cannot be audited"
        )
    counted, upto = [], final_step
    for header, files in reversed(found):
        if header.resumed_from < upto:
            counted.append(Counted(header, upto, files))
        upto = min(upto, header.resumed_from)
    return counted[::-1]


def account_of(consumed: Path, final_step: int) -> Account:
    """Goes through all lines that count, once. Raises RunDataError: there is no record."""
    account = Account(attempts_of(consumed, final_step))
    for counted in account.attempts:
        for rank in range(counted.header.world_size):
            path = counted.files.get(rank)
            steps = f"steps {counted.header.resumed_from + 1}–{counted.upto}"
            if path is None:
                account.problems.append(
                    f"attempt {counted.header.attempt} has no file of rank {rank} in '{consumed}' → each of its"
                    f" {counted.header.world_size} ranks wrote one → what it trained in {steps} is unknown: restore it"
                )
                continue
            account.paths.append(path)
            _scan(account, counted, len(account.paths) - 1)
    return account


def _scan(account: Account, counted: Counted, file: int) -> None:
    """One rank's file: its steps must follow each other up to where the attempt counts."""
    path, step = account.paths[file], counted.header.resumed_from
    for offset, line in _lines(path):
        try:
            found = _parse(line)
        except ValueError as error:
            account.problems.append(f"'{path}', byte {offset}: {error} → lines are as they were written → restore it")
            continue
        if isinstance(found, End):
            if found.step <= counted.upto and found.step == step:
                account.ended.append(counted.header)
        elif isinstance(found, Record):
            if found.steps[0] > counted.upto:
                break
            if found.steps[0] != step + 1 or found.steps[1] > counted.upto:
                account.problems.append(
                    f"'{path}': the record of steps {found.steps[0]}–{found.steps[1]} follows step {step}, and counts"
                    f" up to step {counted.upto} → every step is on record once → restore the file"
                )
            step = found.steps[1]
            account.lines.setdefault(found.segment, array("q")).extend((file, offset))
            account.planned.setdefault(found.epoch, set()).update(counted.header.segments, {found.segment})
    if step < counted.upto:
        account.problems.append(
            f"'{path}' ends at step {step}, the checkpoint holds steps up to {counted.upto} → every step is on record"
            " before its checkpoint is complete → restore the file"
        )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, line); the last one is left out where a kill cut it short."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)


def _parse(line: bytes) -> Frozen:
    """Raises ValueError."""
    kinds: dict[str, type[Frozen]] = {"attempt": Attempt, "rows": Record, "end": End}
    try:
        kind = kinds.get(json.loads(line)["kind"])
    except (ValueError, KeyError, TypeError):
        kind = None
    if kind is None:
        raise ValueError("no line of this format")
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _header(path: Path) -> Attempt | None:
    """None where the process was killed before it was written. Raises RunDataError: of a later format."""
    with path.open("rb") as file:
        line = file.readline()
    if not line.endswith(b"\n"):
        return None
    try:
        found = _parse(line)
    except ValueError as error:
        raise RunDataError(f"'{path}' does not begin as a record of this run: {error} → restore it") from None
    if not isinstance(found, Attempt) or found.format_version != FORMAT_VERSION:
        raise RunDataError(f"'{path}' is of another format → format {FORMAT_VERSION} is read → use its own version")
    return found
