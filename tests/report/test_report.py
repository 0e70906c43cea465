"""What a page says of runs, of half-written ones and of hostile ones; and the verb's words."""

from __future__ import annotations

import json
import math
import re
import time
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.made_runs import metrics, write_run
from trainer.cli import cli
from trainer.cli_boundary import guarded
from trainer.report.lines import read_lines
from trainer.report.thin import extremes
from trainer.report.verb import made, write_at_the_end
from trainer.run_dir import RunDir
from trainer.train_verb import _reporting

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028'\""


class Elements(HTMLParser):
    """Of a page: its elements' names with their attributes, and the text of the block of numbers."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.data, self._inside = "", False
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") == "page-data"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.data += data
        elif self.found and self.found[-1][0] not in ("script", "style"):
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def drawn(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Elements(page).data)
    return found


def panels(page: str) -> dict[str, Any]:
    return {panel["title"]: panel for panel in drawn(page)["panels"]}


def test_a_page_holds_what_the_run_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "quick", overrides=("--optim.lr", "0.002"))
    page = made([str(run)])
    assert len(page) < 2.5 * 2**20
    data, found = drawn(page), panels(page)
    ids = [attributes["id"] for _, attributes in Elements(page).found if "id" in attributes]
    assert len(ids) == len(set(ids)) > 10
    wanted = {"Loss", "NE", "AUC", "Calibration", "GAUC", "Gradient norm", "Learning rate", "Throughput", "Data wait"}
    wanted |= {"Where a step goes", "Effective rank by layer", "Attention on fields by layer", "Fill", "Memory", "MFU"}
    wanted |= {"Goodput", "Lost time", "Tokens per second", "AUC of click by country", "Queues · Depth"}
    assert wanted <= set(found)
    told = [line for line in metrics(120, 0, ("click", "purchase"), "2026-11-15") if line["kind"] == "train"]
    loss = found["Loss"]["curves"][0]
    steps = [data["runs"][0]["step"][at] for at in loss["at"]]
    assert steps == [line["step"] for line in told]
    assert loss["values"] == pytest.approx([line["loss"] for line in told], rel=1e-5)
    split = found["Where a step goes"]["curves"]
    total = np.sum([curve["values"] for curve in split], axis=0)
    assert total == pytest.approx([line["step_seconds"] for line in told], rel=1e-4)
    memory = {curve["group"]: curve["values"][-1] for curve in found["Memory"]["curves"]}
    assert memory == {"Process resident bytes": pytest.approx(2.4e9, rel=1e-3), "Host memory bytes": 3.2e10}
    queues = {curve["group"]: curve["values"][-1] for curve in found["Queues · Depth"]["curves"]}
    assert queues.keys() == {"Read", "Write"}  # figures that nothing here has heard of
    lost = {curve["group"]: curve["values"][-1] for curve in found["Lost time"]["curves"]}
    assert lost == {"start up": 8.0, "evaluation": 9.0, "down": 30.0}
    assert "Unlabelled steps" not in found
    rank = next(curve for curve in found["Effective rank by layer"]["curves"] if curve["group"] == "sequence")
    assert rank["values"] == pytest.approx([21.12, 12.12, 13.2, 13.32, 13.44])
    kinds = {event["kind"] for event in data["events"]}
    assert {"checkpoint", "evaluation", "segment", "resumed", "warning", "bad step", "loss spike"} <= kinds
    warning = next(event for event in data["events"] if event["kind"] == "warning")
    assert (warning["step"], data["runs"][0]["step"][warning["at"]]) == (800, 800)
    words = " ".join(Elements(page).words)
    for said in (
        "--optim.lr 0.002",
        "optim.lr",
        "2 starts",
        "evaluation of 2026-11-15",
        "row_wise",
        "lost to down 30 s",
        "country 3",
    ):
        assert said in words, said


def test_runs_are_told_apart_by_what_they_set(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1, overrides=("--model.dim", "128"))]
    page = made([str(run) for run in runs] + [str(runs[0])])  # named twice is the same run
    section = page.split('<section id="differences">')[1].split("</section>")[0]
    assert re.findall(r"<td>(.*?)</td>", section) == ["model.dim", "32", "128"]
    loss = panels(page)["Loss"]["curves"]
    assert [(curve["group"], curve["colour"]) for curve in loss] == [("a", 0), ("b", 1)]


def test_names_of_runs_and_fields_are_never_markup(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", lines=12, tasks=(HOSTILE,), split=HOSTILE)
    hostile = tmp_path / "<img src=x onerror=alert(3)>"
    run.rename(hostile)
    with (hostile / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"time": 1e9, "kind": HOSTILE, "step": 9, "examples": 9, HOSTILE: {HOSTILE: 1}}) + "\n")
        more = {"loss": 1.0, HOSTILE: 3.5, "tables": {HOSTILE: {"fill": 0.5}}, "step_split": {HOSTILE: 1}}
        file.write(json.dumps({"time": 1e9, "kind": "train", "step": 99, "examples": 9, **more}) + "\n")
    page = made([str(hostile)])
    parsed = Elements(page)
    scripts = [attributes.get("id") for tag, attributes in parsed.found if tag == "script"]
    assert scripts == ["page-data", "page-plotly", None]
    assert not [tag for tag, _ in parsed.found if tag in ("img", "iframe", "object", "link", "base", "form")]
    assert not [name for _, attributes in parsed.found for name in attributes if name.startswith("on")]
    assert HOSTILE in {curve["group"] for panel in json.loads(parsed.data)["panels"] for curve in panel["curves"]}


def test_nothing_of_a_page_comes_from_elsewhere_and_nothing_may(tmp_path: Path) -> None:
    page = made([str(write_run(tmp_path / "run", lines=12))])
    policy = next(a["content"] for tag, a in Elements(page).found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    scripts = policy.split("script-src ")[1].split(";")[0].split()
    assert [script[:8] for script in scripts] == ["'sha256-", "'sha256-"]
    assert not [a for _, a in Elements(page).found if a.get("src") or a.get("href")]


def test_a_run_that_is_still_going_has_a_page(tmp_path: Path) -> None:
    """Nothing yet; then a few lines, the last one torn, and one that is not ours; files that are missing or halves."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("[model]\ndim = 8\n")
    page = made([str(run)])
    assert drawn(page)["panels"] == []
    assert "Nothing has been reported yet" in page
    lines = [json.dumps(line) for line in metrics(20, 0, ("click",), "x") if line["kind"] == "train"][:3]
    old = json.dumps({"time": 1.0, "kind": "train", "step": 80, "examples": 90, "loss": None, "tasks": {"click": 3}})
    text = "\n".join([lines[0], "not json", lines[1], '{"kind": "train"}', lines[2], old, lines[0][:70]])
    (run / "metrics.jsonl").write_text(text)
    (run / "plan.json").write_text('{"tables": [{"name"')
    (run / "env.json").write_text("[]")
    page = made([str(run)])
    assert panels(page)["Loss"]["curves"][0]["values"][-1] is None
    words = " ".join(Elements(page).words)
    for said in ("2 lines of metrics.jsonl", "plan.json could not be read", "env.json is not what a run writes"):
        assert said in words, said


def test_long_curves_are_cut_and_keep_their_extremes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    values[51_234], values[7] = 40.0, -40.0
    values[60_000:62_000] = math.nan
    kept = extremes(values, 600)
    assert len(kept) <= 602
    assert {0, 7, 51_234, 99_999} <= set(kept.tolist())
    assert np.isnan(values[kept]).any()
    borders = np.linspace(0, 100_000, 301).astype(int)
    stretches = [
        values[begin:end] for begin, end in pairwise(borders.tolist()) if not np.isnan(values[begin:end]).all()
    ]
    assert {float(best(stretch)) for stretch in stretches for best in (np.nanmin, np.nanmax)} <= set(
        values[kept].tolist()
    )
    run = tmp_path / "run"
    run.mkdir()
    line = {"time": 1.0, "kind": "train", "examples": 9, "tasks": {"click": {"ne": 1.0, "auc": 0.5}}}
    with (run / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(line | {"step": n, "loss": float(values[n % 9973])}) + "\n" for n in range(20_000))
    began = time.process_time()
    page = made([str(run)])
    assert time.process_time() - began < 5
    assert len(panels(page)["Loss"]["curves"][0]["at"]) <= 602
    assert max(panels(page)["Loss"]["curves"][0]["values"]) == pytest.approx(values[:9973].max(), rel=1e-5)


def test_lines_of_any_shape_are_read_or_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    head = {"time": 1.0, "kind": "train", "step": 1, "examples": 1}
    odd: list[Any] = [[], 1, {"step": "x"}, head | {"step": None}, head | {"time": "now"}, head | {"kind": 3}]
    deep: Any = 1.0
    for _ in range(40):
        deep = {"x": deep}
    fine = [head | {"loss": 10**400, "flag": True, "a": {"b": 2}, "deep": deep}, head | {"kind": "other"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*odd, *fine]))
    lines = read_lines(path)
    assert lines.unreadable == len(odd)
    assert list(lines.columns) == [("a", "b")]
    assert [line.kind for line in lines.others] == ["other"]


def test_the_verb(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = guarded(lambda: cli.main(["report", *arguments], prog_name="tokenformer", standalone_mode=False))
        said = capfd.readouterr()
        return code, said.out, said.err

    run = write_run(tmp_path / "run", lines=12)
    code, out, _ = call("--run", str(run))
    assert (code, (run / "report.html").is_file()) == (0, True)
    assert str(run / "report.html") in out
    assert call("--run", str(run), "--out", str(tmp_path / "new" / "page.html"))[0] == 0
    assert (tmp_path / "new" / "page.html").is_file()
    code, _, err = call("--run", str(tmp_path / "no"), "--run", str(tmp_path / "new"))
    assert code == 2
    assert len(err.splitlines()) == 2
    assert all("→ check --run" in line for line in err.splitlines())
    assert call("--run", str(run), "--out", str(tmp_path))[0] == 2
    assert call("--run", str(run), "--out", str(run / "env.json" / "x.html"))[0] == 2


def test_a_run_ends_with_its_page_whatever_ended_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(write_run(tmp_path / "run", lines=12))
    with pytest.raises(ValueError, match="broken"), _reporting(run, True):
        raise ValueError("broken")
    assert run.report.is_file()
    run.report.unlink()
    with pytest.raises(KeyboardInterrupt), _reporting(run, True):  # asked twice to leave
        raise KeyboardInterrupt
    assert not run.report.is_file()
    monkeypatch.setattr("trainer.report.page.page", lambda runs: 1 / 0)
    with _reporting(run, True) as places:
        pass
    assert places == {}
    assert "report.html was not written: ZeroDivisionError" in caplog.text
    assert write_at_the_end(RunDir(tmp_path / "nothing")) is None
