"""What the cells of docs/accuracy.md are made of. A cell without a finished run shows "—"; a mean says of how many
seeds it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from tests.benchmarks.accuracy_matrix import Run
from tests.benchmarks.accuracy_results import Figures, Results

NONE = "—"


def finished(runs: Sequence[Run], results: Results) -> list[Figures]:
    """Their lines, of those that are done; where the test was asked for, with it."""
    lines = [(run, results.get(*run.key)) for run in runs]
    return [line for run, line in lines if line is not None and (line["test"] is not None or not run.test)]


def mean_of(lines: Sequence[Figures], split: str, score: str, digits: int = 5) -> str:
    """Mean ± standard deviation, and of how many seeds."""
    values = [line[split][score] for line in lines if line.get(split)]
    if not values:
        return NONE
    spread = f" ± {short(stdev(values), digits)}" if len(values) > 1 else ""
    return f"{short(mean(values), digits)}{spread} ({len(values)})"


def permille(values: Sequence[float]) -> str:
    if not values:
        return NONE
    spread = f" ± {1000 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{1000 * mean(values):+.2f}{spread} ({len(values)})"


def short(value: float, digits: int) -> str:
    """.79812, as everybody writes it."""
    return f"{value:.{digits}f}".removeprefix("0")


def auc_of(scores: Figures) -> str:
    return short(scores["auc"], 5)


def count(number: int) -> str:
    return f"{number:,}"


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in [heads, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])
