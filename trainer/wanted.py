"""What more than scores an evaluation is asked for; imports nothing, so that the command line answers at once."""

from __future__ import annotations

from dataclasses import dataclass

OTHER = "(other)"  # the slice of all values that are not among the most frequent


@dataclass(frozen=True)
class Wanted:
    """by: a field, "" = no slices. predictions: a folder to write to, "" = none. checkpoint: to take, by its step;
    None = the newest."""

    by: str = ""
    predictions: str = ""
    checkpoint: int | None = None
