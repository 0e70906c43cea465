"""What a page of runs costs: CPU seconds to make it, its size, and how long a browser takes to draw it.

    python -m tests.benchmarks.report [--quick]

The alternative beside it is the same page of a long run without cutting its curves. Needs Chromium.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from tests.benchmarks import harness
from tests.report.made_runs import write_run
from trainer.report import figures
from trainer.report.verb import made

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = "/usr/bin/chromium"
SHORT, LONG, QUICK_LONG = 120, 100_000, 10_000


@dataclass(frozen=True)
class Cost:
    """making: CPU seconds. size: bytes. drawing: seconds from opening to the last plot, median."""

    making: float
    size: int
    drawing: float


def cost(browser: Browser, runs: Sequence[Path], file: Path, rounds: int) -> Cost:
    """Of one page."""
    began = time.process_time()
    page = made([str(run) for run in runs])
    making = time.process_time() - began
    file.write_text(page, encoding="utf-8")
    return Cost(making, len(page.encode()), median(_drawing(browser, file) for _ in range(rounds)))


def _drawing(browser: Browser, file: Path) -> float:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    began = time.perf_counter()
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached", timeout=120_000)
    seconds = time.perf_counter() - began
    page.close()
    return seconds


@click.command()
@click.option("--quick", is_flag=True, help="A shorter long run; within a minute.")
def main(quick: bool) -> None:
    """Print sizes and times."""
    from playwright.sync_api import sync_playwright

    lines, rounds = (QUICK_LONG, 1) if quick else (LONG, 3)
    with TemporaryDirectory() as scratch, sync_playwright() as started:
        folder = Path(scratch)
        short = [write_run(folder / f"short{number}", SHORT, number) for number in range(3)]
        long = write_run(folder / "long", lines)
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        costs = {f"1 run, {SHORT} lines": cost(browser, short[:1], folder / "1.html", rounds)}
        costs[f"3 runs, {SHORT} lines each"] = cost(browser, short, folder / "3.html", rounds)
        cut = costs[f"1 run, {lines} lines"] = cost(browser, [long], folder / "cut.html", rounds)
        figures.MOST_POINTS = figures.MOST_MARKS = 1 << 30
        whole = costs["the same, not cut"] = cost(browser, [long], folder / "whole.html", 1)
        browser.close()
    harness.show("pages", {"figures of a train line": "40", "window": "1400 × 900", "rounds": rounds})
    rows = [[name, f"{c.making:.2f}", f"{c.size / 2**20:.1f}", f"{c.drawing:.2f}"] for name, c in costs.items()]
    harness.table(["page", "made in, CPU s", "MiB", "drawn in, s"], rows)
    harness.finish("report", {"drawn_whole_over_cut": whole.drawing / cut.drawing, "bytes": whole.size / cut.size}, 1)


if __name__ == "__main__":
    main()
