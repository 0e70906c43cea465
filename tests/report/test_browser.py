"""The page in a real browser: every plot drawn, nothing asked of any network, nothing on top of anything else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.report.made_runs import write_run
from trainer.report.verb import made

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
WIDTHS = (800, 1400)
HOSTILE = "</script><script>window.stolen = 1</script><img src=https://example.org/x onerror='window.stolen = 1'>"

# Pairs of boxes that lie on each other, of the elements of each group.
OVERLAPPING = """(groups) => {
  const found = [];
  for (const elements of groups) {
    const boxes = elements.map((e) => [e.className || e.id || e.textContent, e.getBoundingClientRect()]);
    const seen = boxes.filter(([, box]) => box.width && box.height);
    for (let i = 0; i < seen.length; i++) for (let j = i + 1; j < seen.length; j++) {
      const [a, b] = [seen[i][1], seen[j][1]];
      const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (x > 1 && y > 1) found.push([String(seen[i][0]), String(seen[j][0]), x, y]);
    }
  }
  return found;
}"""
# Blocks of a section, plots in a grid, what is in a plot's frame; and words in a plot.
BLOCKS = """[...document.querySelectorAll("main, section, .panels, figure, header, .legend")]
  .map((group) => [...group.children].filter((e) => getComputedStyle(e).position !== "sticky"))"""
WORDS = """[...document.querySelectorAll(".plot")]
  .map((plot) => [...plot.querySelectorAll(".xtick text, .ytick text, .xtitle, .ytitle")])"""
# Of each plot: how many curves have ink, and whether it stands inside its box.
PLOTS = """() => [...document.querySelectorAll("figure.panel")].map((figure) => {
  const plot = figure.querySelector(".plot"), box = figure.getBoundingClientRect();
  const inked = [...plot.querySelectorAll(".js-line, .js-fill, .point")].filter((e) => {
    const b = e.getBBox();
    return b.width + b.height > 0;
  });
  const svg = plot.querySelector("svg.main-svg").getBoundingClientRect();
  return {title: (figure.querySelector("h3") || {}).textContent || "timeline", inked: inked.length,
          inside: svg.left >= box.left - 1 && svg.right <= box.right + 1 && svg.bottom <= box.bottom + 1};
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        if os.environ.get("CI") == "true":
            pytest.fail("no chromium: CI has to have one")
        pytest.skip("no chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of one run, whose task has a hostile name, and one of two."""
    folder = tmp_path_factory.mktemp("pages")
    one = write_run(folder / "quick", lines=60, tasks=("click", HOSTILE))
    two = write_run(folder / "wider", lines=60, seed=2, overrides=("--model.dim", "128"))
    made_pages = {"one": folder / "one.html", "two": folder / "two.html"}
    made_pages["one"].write_text(made([str(one)]), encoding="utf-8")
    made_pages["two"].write_text(made([str(two), str(one)]), encoding="utf-8")
    return made_pages


def opened(browser: Browser, path: Path, width: int) -> tuple[Page, list[str]]:
    """The page with all of its plots drawn, and what went wrong: console lines, errors, requests beside the file."""
    wrong: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("console", lambda message: wrong.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("request", lambda request: wrong.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)
    return page, wrong


def until(page: Page, condition: str) -> None:
    """Waits, picture by picture; the page's own policy forbids playwright's way. Bounded by the test's timeout."""
    page.evaluate(f"(async () => {{ while (!({condition})) await new Promise(requestAnimationFrame); }})()")


def wrong_with(page: Page) -> dict[str, Any]:
    plots = page.evaluate(PLOTS)
    return {
        "no ink": [plot["title"] for plot in plots if not plot["inked"]],
        "out of its box": [plot["title"] for plot in plots if not plot["inside"]],
        "overlaps": page.evaluate(f"({OVERLAPPING})({BLOCKS})"),
        "words on words": page.evaluate(f"({OVERLAPPING})({WORDS})"),
        "wider than the window": page.evaluate("document.documentElement.scrollWidth > innerWidth"),
    }


NOTHING = {"no ink": [], "out of its box": [], "overlaps": [], "words on words": [], "wider than the window": False}


@pytest.mark.timeout(120)
def test_one_run_is_drawn_whole_at_both_widths_and_over_every_axis(browser: Browser, pages: dict[str, Path]) -> None:
    page, wrong = opened(browser, pages["one"], WIDTHS[0])
    drawn = page.evaluate("document.documentElement.dataset.drawn")
    assert int(drawn) == page.locator("figure.panel").count() > 20
    assert wrong_with(page) == NOTHING
    page.set_viewport_size({"width": WIDTHS[1], "height": 900})
    until(page, "[...document.querySelectorAll('.wide svg.main-svg')].every((e) => e.clientWidth > 1000)")
    assert wrong_with(page) == NOTHING
    for axis in ("hours", "through"):
        page.click(f"[data-axis={axis}]")
        until(page, f"document.documentElement.dataset.over === '{axis}'")
        assert wrong_with(page) == NOTHING
    assert page.evaluate("window.stolen") is None
    assert wrong == []
    page.close()


@pytest.mark.timeout(120)
def test_runs_lie_over_each_other_and_zoom_together(browser: Browser, pages: dict[str, Path]) -> None:
    page, wrong = opened(browser, pages["two"], WIDTHS[0])
    assert wrong_with(page) == NOTHING
    plots = "[...document.querySelectorAll('.plot')]"
    ranges = f"[...new Set({plots}.map((e) => e._fullLayout.xaxis).filter((x) => x.title.text === 'step')"
    ranges += ".map((x) => x.range.map(Math.round).join()))].join('|')"
    assert page.evaluate(ranges).count("|") == 0  # one time axis
    page.evaluate(f"Plotly.relayout({plots}[2], {{'xaxis.range[0]': 200, 'xaxis.range[1]': 600}})")
    until(page, f"{ranges} === '200,600'")
    page.click(".runs button >> nth=0")
    until(page, "document.documentElement.dataset.without === '0'")
    assert page.evaluate(f"{plots}[1].data.map((trace) => trace.visible)") == [False, True]
    assert wrong == []
    page.close()
