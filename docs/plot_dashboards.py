"""Draws the dashboards as pictures: every panel's queries, asked of a Prometheus that watched a run. For the docs, made
where no Grafana was at hand; Grafana draws its own.

Usage: python docs/plot_dashboards.py URL RUN MINUTES FOLDER   (the last MINUTES that Prometheus knows of RUN)
"""

from __future__ import annotations

import json
import math
import sys
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen is needed
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from trainer.monitoring.dashboards import dashboards  # noqa: E402
from trainer.monitoring.panels import COLUMNS, Dashboard, Panel, lines_of  # noqa: E402

POINTS = 150
STEPS = {"s": (("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("h", 3600.0), ("d", 86400.0))}
STEPS["bytes"] = tuple((name, 1024.0**n) for n, name in enumerate(("B", "KiB", "MiB", "GiB", "TiB")))
THOUSANDS = (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12))
WIDTH, CELL, GAP, HEADING, MARGIN = 13.0, 0.17, 0.55, 0.4, 0.62  # inches
MOST = 10  # names in a legend
INK, PALE = "#24292f", "#8a939c"


class Source:
    """A Prometheus, and the time to look at. end: of the run's training, when nothing is left to read."""

    def __init__(self, url: str, run: str, minutes: float) -> None:
        self._url, self._run = url, run
        logged = f'max(max_over_time(timestamp(tokenformer_ready_windows{{run="{run}"}} > 0)[1d:5s]))'
        (newest,) = self._ask("query", query=logged)
        self.end = float(newest["value"][1])
        self.start = self.end - 60 * minutes

    def lines(self, expr: str, legend: str) -> list[tuple[str, list[float], list[float]]]:
        """[(legend filled in, minutes since the start, values)]; NaN is a gap."""
        step = max(1.0, (self.end - self.start) / POINTS)
        asked = expr.replace("$run", self._run).replace("$rank", ".*")
        found = self._ask("query_range", query=asked, start=self.start, end=self.end, step=step)
        return [
            (
                self._filled(legend, series["metric"]),
                [(float(when) - self.start) / 60 for when, _ in series["values"]],
                [float(value) for _, value in series["values"]],
            )
            for series in found
        ]

    def _filled(self, legend: str, labels: dict[str, str]) -> str:
        for name, value in labels.items():
            legend = legend.replace(f"{{{{{name}}}}}", value)
        return legend.replace(f"{self._run} · ", "").replace(self._run, "")

    def _ask(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        address = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=60) as answer:  # noqa: S310 - named on the command line
            return list(json.load(answer)["data"]["result"])


def draw(content: Dashboard, source: Source, picture: Path) -> None:
    """Writes `picture`: the panels as they stand on the dashboard, those that have nothing to show left out."""
    rows = {}
    for heading, panels in content.rows.items():
        shown = [panel for panel in panels if any(_known(*line) for line in _lines(panel, source))]
        if shown:
            rows[heading] = lines_of(tuple(shown))
    height = sum(HEADING + sum(CELL * line[0][0].height + GAP for line in lines) for lines in rows.values())
    figure = plt.figure(figsize=(WIDTH, height))
    y = height
    for heading, lines in rows.items():
        y -= HEADING
        figure.text(0.15 / WIDTH, (y + 0.05) / height, heading, fontsize=11, weight="bold", color=INK)
        for line in lines:
            tall = CELL * line[0][0].height
            y -= tall + GAP
            for panel, x, width in line:
                left, wide = WIDTH * x / COLUMNS + MARGIN, WIDTH * width / COLUMNS - MARGIN - 0.15
                _draw(panel, figure.add_axes((left / WIDTH, (y + 0.28) / height, wide / WIDTH, tall / height)), source)
    figure.savefig(picture, dpi=80)
    plt.close(figure)
    with Image.open(picture) as drawn:  # few colours: a third of the bytes
        drawn.convert("RGB").quantize(48, dither=Image.Dither.NONE).save(picture, optimize=True)


def _lines(panel: Panel, source: Source) -> list[tuple[str, list[float], list[float]]]:
    return [line for query in panel.queries for line in source.lines(query.expr, query.legend)]


def _known(_: str, times: list[float], values: list[float]) -> bool:
    return any(math.isfinite(value) for value in values) and bool(times)


def _draw(panel: Panel, axis: Axes, source: Source) -> None:
    axis.text(0, 1.03, panel.title, transform=axis.transAxes, fontsize=9, color=INK)
    lines = [line for line in _lines(panel, source) if _known(*line)]
    if panel.kind in ("stat", "name"):
        axis.set_axis_off()
        if panel.kind == "name":
            words = [part for name, _, _ in lines for part in name.split(" · ")]
        else:
            words = [_spoken(next(v for v in reversed(vs) if math.isfinite(v)), panel.unit) for _, _, vs in lines]
        size = 17 if panel.kind == "stat" else 8
        axis.text(
            0.5, 0.5, "\n".join(words), transform=axis.transAxes, ha="center", va="center", fontsize=size, color=INK
        )
        return
    colours = plt.get_cmap("tab20" if len(lines) > 10 else "tab10")
    if panel.kind == "stacked":
        times = max((line[1] for line in lines), key=len)
        heights = [[value if math.isfinite(value) else 0.0 for value in v] for _, t, v in lines if len(t) == len(times)]
        kept = [name for name, t, _ in lines if len(t) == len(times)]
        axis.stackplot(times, heights, labels=kept, colors=[colours(n) for n in range(len(kept))], alpha=0.75)
    else:
        for n, (name, times, values) in enumerate(lines):
            axis.plot(times, values, label=name, linewidth=1.1, color=colours(n % 20))
    if panel.low is not None:
        axis.set_ylim(panel.low, axis.get_ylim()[1] + 0.06 * (axis.get_ylim()[1] - panel.low))
    if panel.high is not None:
        axis.set_ylim(top=panel.high * 1.02)
    axis.set_xlim(0, (source.end - source.start) / 60)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _spoken(value, panel.unit)))
    axis.tick_params(labelsize=7, colors=PALE, length=2)
    axis.grid(color="#eceff2", linewidth=0.6)
    axis.spines[:].set_color("#dde2e6")
    handles, names = axis.get_legend_handles_labels()
    if any(names):
        more = [f"… {len(names) - MOST} more"] if len(names) > MOST else []
        axis.legend(
            [*handles[:MOST], *(handles[:1] if more else [])],
            [*names[:MOST], *more],
            fontsize=6,
            ncols=2,
            loc="best",
            frameon=True,
            framealpha=0.7,
            edgecolor="none",
            handlelength=1.2,
            columnspacing=1.0,
            labelspacing=0.2,
        )


def _spoken(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "dateTimeAsIso":
        return f"{datetime.fromtimestamp(value / 1000, UTC):%Y-%m-%d %H:%M}"
    if unit == "sci":
        return f"{value:.1e}"
    name, size = next(
        (step for step in reversed(STEPS.get(unit, THOUSANDS)) if abs(value) >= step[1]), STEPS.get(unit, THOUSANDS)[0]
    )
    return f"{value / size:.3g} {name}".strip() if value else "0"


if __name__ == "__main__":
    url, run, minutes, folder = sys.argv[1:]
    source = Source(url, run, float(minutes))
    for content in dashboards():
        target = Path(folder) / f"dashboard_{content.title.lower()}.png"
        draw(content, source, target)
        print(f"wrote {target}")
