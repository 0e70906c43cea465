"""How many rows may be bad before a run fails: a few are the world's, many are a fault of the log."""

from __future__ import annotations

from pipelines.errors import DataError

FIRST_LOOK = 10_000  # rows; before that one bad row in a small file would be a large share


class BadShare:
    """Counts the rows of a pass as all ranks see them, so that all fail at the same step.

    The share is of the rows read since the process began, or resumed; it is looked at with every batch from the
    10,000th row on, and where a segment ends. limit: `data.max_bad_share`. folder: of the quarantine.
    """

    def __init__(self, limit: float, folder: str) -> None:
        self._limit, self._folder = limit, folder
        self._rows = self._bad = 0
        self._segment = ""

    def add(self, rows: int, bad: int, segment: str) -> None:
        """A global batch. Raises DataError beyond the limit."""
        if segment != self._segment:
            self.end()
        self._segment = segment
        self._rows, self._bad = self._rows + rows, self._bad + bad
        if self._rows >= FIRST_LOOK:
            self.end()

    def end(self) -> None:
        """Of a segment, or of the pass. Raises DataError beyond the limit."""
        if self._bad > self._limit * self._rows:
            raise DataError(
                f"{self._bad} of {self._rows} rows are bad (to segment '{self._segment}')"
                f" → at most data.max_bad_share = {self._limit:g} of them"
                f" → see '{self._folder}' for each row's reason; mend the log, or raise the limit"
            )
