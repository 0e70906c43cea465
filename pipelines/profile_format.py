"""A segment's profile as data: what is counted of each column and task, and its JSON file."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from pipelines.errors import DataError
from pipelines.schema import Frozen

FORMAT = 1


class Value(Frozen):
    """A value as text, and its share of all values that are neither null nor NaN."""

    value: str
    share: float


class Lengths(Frozen):
    """Of a column's lists, row by row; null lists count as 0. deviation: standard. quantiles: at 0, 10, … 100 %."""

    mean: float
    deviation: float
    max: int
    quantiles: tuple[float, ...]


class ColumnProfile(Frozen):
    """types: {Arrow type: rows of the segment's files}, from the footers, like coverage: the share of rows whose file
    has the column, and covered_files, of files. All else is of the rows read that have it.

    values: elements looked at, nulls too. nulls, nans: shares of them. null_lists: share of rows. distinct: an estimate
    above 1,024. exact_top: `top` has every value there is. top: the most frequent ones, 32 then,
    else 8. sentinels: {value:
    share}, of those that often stand for nothing. quantiles: of numbers and times (µs since 1970) at 0, 1, … 100 %.
    lengths: of list columns. ids: (hash, occurrences) of the ids with the lowest hashes, ascending: the same ids are
    drawn in every segment, so that segments can be compared; all of them where distinct is no more.
    """

    types: dict[str, int]
    coverage: float
    covered_files: float
    values: int
    nulls: float
    nans: float
    null_lists: float
    distinct: int
    exact_top: bool
    top: tuple[Value, ...]
    sentinels: dict[str, float]
    quantiles: tuple[float, ...] = ()
    lengths: Lengths | None = None
    ids: tuple[tuple[int, int], ...] = ()


class TaskProfile(Frozen):
    """Of the supervised positions in a task's space with weight: how many, how many have a label, how many a 1."""

    positions: int
    labelled: int
    positive: int

    @property
    def rate(self) -> float:
        """Positives among the labelled; 0 where none is."""
        return self.positive / self.labelled if self.labelled else 0.0


class SegmentProfile(Frozen):
    """What a segment looks like. The same files, schema and sample give the same profile, byte for byte.

    fingerprint: of the segment's files (pipelines.profile.files_digest). columns_digest: of the schema it was made by.
    sample_rows: asked for; 0 = all. files, bytes, rows, rows_per_file (lowest, median, highest): from the footers.
    rows_read: what everything else is of. users_read: distinct users in them (an estimate): rows of one user are alike,
    so that this is how many independent ones there are. times: first and last request time read, µs since 1970, where
    rows have one.
    """

    format: int = Field(default=FORMAT)
    segment: str
    fingerprint: str
    columns_digest: str
    sample_rows: int
    files: int
    bytes: int
    rows: int
    rows_per_file: tuple[int, int, int]
    rows_read: int
    users_read: int
    times: tuple[int, int] | None
    columns: dict[str, ColumnProfile]
    tasks: dict[str, TaskProfile]

    def to_json(self) -> str:
        """A line of JSON."""
        return self.model_dump_json() + "\n"


def read_profile(path: Path) -> SegmentProfile:
    """One that `to_json` wrote. Raises DataError: no such file, not a profile, or another format."""
    try:
        profile = SegmentProfile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"profile '{path}': {error.strerror} → a profile is a JSON file → check the path") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"profile '{path}': {where or 'the file'}: {first['msg']} → a profile is what `data profile --json` writes"
            " → write it again"
        ) from error
    if profile.format != FORMAT:
        raise DataError(
            f"profile '{path}' has format {profile.format} → this version reads format {FORMAT} → write it again"
        )
    return profile
