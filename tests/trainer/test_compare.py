"""Two models held against each other: matched position by position, refused where that cannot be, said in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from trainer.cli import cli
from trainer.cli_boundary import guarded
from trainer.compare import compare_predictions
from trainer.compare_words import report, sentences, to_json, verdict
from trainer.errors import ConfigError, RunDataError
from trainer.metrics.bootstrap import Difference
from trainer.prediction_files import FILE, OWN, POSITION, ROW, Manifest, PredictionWriter, task_columns, write_manifest

ABOUT = Manifest(
    "runs/x", "step_00000001", 1, "rows", ("click",), "candidates", "user", "time", ("request",), ("item",)
)
FIELDS = [*OWN.items(), ("request", pa.string()), ("user", pa.string()), ("item", pa.int64())]
FIELDS.append(("time", pa.timestamp("us", "UTC")))


def _positions(seed: int = 0, users: int = 400) -> dict[str, Any]:
    """Requests of a few candidates in two files, with true odds."""
    random = np.random.default_rng(seed)
    requests = users * 3
    shown = random.integers(1, 5, requests)
    row = np.repeat(np.arange(requests), shown)
    place = np.arange(len(row)) - np.repeat(np.cumsum(shown) - shown, shown)
    user = random.integers(0, users, requests)[row]
    odds = random.normal(-1, 1.2, len(row)) + random.normal(0, 1, users)[user]
    return {
        FILE: np.where(row % 2, "one.parquet", "two.parquet"),
        ROW: row // 2,
        POSITION: place.astype(np.int32),
        "request": np.char.add("r", row.astype(str)),
        "user": np.char.add("u", user.astype(str)),
        "item": random.integers(0, 50, len(row)),
        "time": 1_790_000_000_000_000 + 60_000_000 * row,
        "odds": odds,
        "click_label": (random.random(len(row)) < 1 / (1 + np.exp(-odds))).astype(np.int8),
        "click_weight": np.ones(len(row), np.float32),
    }


def _predict(positions: dict[str, Any], noise: float, seed: int = 0) -> dict[str, Any]:
    off = np.random.default_rng(seed).normal(0, noise, len(positions[ROW])) if noise else 0.0
    return positions | {"click_probability": (1 / (1 + np.exp(-(positions["odds"] + off)))).astype(np.float32)}


def _write(folder: Path, positions: dict[str, Any], order: Any = None, parts: int = 1, **about: Any) -> str:
    """As `evaluate --predictions` does on so many ranks; order: of the positions in the files."""
    manifest = replace(ABOUT, **about)
    fields = [*FIELDS, *zip(task_columns("click"), (pa.float32(), pa.int8(), pa.float32()), strict=True)]
    order = np.arange(len(positions[ROW])) if order is None else order
    rows = {}
    for rank in range(parts):
        writer = PredictionWriter(folder, rank, pa.schema(fields))
        mine = order[rank::parts]
        for chunk in np.array_split(mine, 3):
            columns = {name: pa.array(positions[name][chunk]) for name, _ in fields}
            columns["time"] = columns["time"].cast(pa.timestamp("us", "UTC"))
            columns[FILE] = columns[FILE].dictionary_encode()
            observed = positions["click_weight"][chunk] > 0
            columns["click_label"] = pa.array(positions["click_label"][chunk], mask=~observed)
            writer.add(columns)
        writer.close()
        rows[writer.name] = writer.rows
    write_manifest(folder, replace(manifest, parts=rows))
    return str(folder)


def test_a_planted_better_model_is_found_whatever_the_order_and_number_of_files(tmp_path: Path) -> None:
    positions = _positions()
    a = _write(tmp_path / "a", _predict(positions, 1.0))
    shuffled = np.random.default_rng(1).permutation(len(positions[ROW]))
    b = _write(tmp_path / "b", _predict(positions, 0.2), shuffled[5:], parts=3)
    found = compare_predictions(a, b, "item", 200, 1)
    assert (found.only_a, found.only_b, found.positions) == (5, 0, len(positions[ROW]) - 5)
    click = found.tasks["click"]
    assert {metric: of.better for metric, of in click.differences.items() if of.better} == dict.fromkeys(
        ("ne", "auc", "gauc"), "b"
    ) | ({"calibration": click.differences["calibration"].better} if click.differences["calibration"].better else {})
    assert any(line.startswith("click: B is better in AUC by .") for line in sentences("click", click))
    assert click.apart is not None
    assert 0.5 < click.apart.correlation < 1
    assert len(found.slices) == 21
    assert sum(of["click"].examples for of in found.slices.values()) == click.examples
    json.dumps(to_json(found), allow_nan=False)
    console = Console(width=140, record=True)
    console.print(report(found, "runs/a", "runs/b"))
    said = console.export_text()
    assert "5 positions that only A has predicted are left out" in said
    assert "200 resamples of users" in said


def test_the_same_model_differs_by_exactly_nothing(tmp_path: Path) -> None:
    positions = _predict(_positions(users=60), 0.5)
    backwards = np.arange(len(positions[ROW]))[::-1]
    found = compare_predictions(
        _write(tmp_path / "a", positions), _write(tmp_path / "b", positions, backwards), "", 50, 1
    )
    of = found.tasks["click"]
    for metric, difference in of.differences.items():
        assert (difference.difference, difference.low, difference.high) == (0, 0, 0), metric
    assert sentences("click", of) == ["click: the two predict the same, to the bit"]


def test_what_cannot_be_matched_is_refused(tmp_path: Path) -> None:
    positions = _predict(_positions(users=20), 0.5)
    a = _write(tmp_path / "a", positions)
    turned = positions["click_label"].copy()
    turned[3] = 1 - turned[3]
    heavier = positions["click_weight"] * 2
    elsewhere = positions | {FILE: np.char.add("other/", positions[FILE])}
    cases: dict[str, tuple[dict[str, Any], dict[str, Any], type[Exception]]] = {
        "another label in B at 1 of .* 'two.parquet' row 1, position 1|row": (
            positions | {"click_label": turned}, {}, RunDataError,
        ),
        "another weight in B at": (positions | {"click_weight": heavier}, {}, RunDataError),
        "no position of .* is in": (elsewhere, {}, ConfigError),
        "positions of candidates, B of history.views": (positions, {"group": "history.views"}, ConfigError),
        "A predicts click, B like": (positions, {"tasks": ("like",)}, ConfigError),
    }  # fmt: skip
    for number, (words, (given, about, kind)) in enumerate(cases.items()):
        b = _write(tmp_path / f"b{number}", given, **about)
        with pytest.raises(kind, match=words):
            compare_predictions(a, b, "", 10, 1)
    with pytest.raises(ConfigError, match="--by country → predictions hold"):
        compare_predictions(a, a, "country", 10, 1)


def test_positions_without_a_label_in_one_of_them_are_left_out_and_counted(tmp_path: Path) -> None:
    positions = _predict(_positions(users=40), 0.5)
    some = positions["click_weight"].copy()
    some[:7] = 0
    a, b = _write(tmp_path / "a", positions), _write(tmp_path / "b", positions | {"click_weight": some})
    of = compare_predictions(a, b, "", 10, 1).tasks["click"]
    assert (of.unshared, of.examples) == (7, len(some) - 7)


def test_verdicts_are_plain() -> None:
    better = Difference(0.7, 0.7021, 0.0021, 0.0008, 0.0035, 0.0021, 0.0008, 0.0035)
    assert verdict("auc", better) == "B is better in AUC by .0021 [.0008, .0035]"
    worse = Difference(0.8, 0.81, 0.01, 0.005, 0.015, -0.01, -0.015, -0.005)
    assert verdict("ne", worse) == "A is better in NE by .010 [.005, .015]"
    nothing = Difference(0.8, 0.8, -0.0001, -0.005, 0.004, 0.0001, -0.004, 0.005)
    assert verdict("ne", nothing) == "no difference in NE that this data can tell: B − A = −.0001 [−.0050, .0040]"
    assert verdict("gauc", Difference(None, None)) == "GAUC is not defined here"


def test_predictions_join_with_a_log_of_what_was_served(tmp_path: Path) -> None:
    """The query of docs/evaluate.md."""
    positions = _predict(_positions(users=30), 0.5)
    folder = _write(tmp_path / "p", positions)
    served = pa.table(
        {
            "request": positions["request"][::3],
            "item": positions["item"][::3],
            "score": positions["click_probability"][::3].astype(np.float64) * 1.1,
        }
    )
    page = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")
    query = page.split("```sql\n")[1].split("```")[0]
    with duckdb.connect() as connection:
        connection.register("served", served)
        found = connection.execute(query.replace("runs/predictions", folder)).fetchall()
    assert found
    assert sum(count for _, count, *_ in found) >= len(served)  # a request may show an item twice
    assert all(0 < off < 0.2 for *_, off in found)


def test_the_command_says_what_it_needs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        code = guarded(lambda: cli.main(["compare", *words], prog_name="tokenformer", standalone_mode=False))
        said = capfd.readouterr()
        return code, said.out, said.err

    positions = _predict(_positions(users=30), 0.5)
    folder = _write(tmp_path / "p", positions)
    assert run("--run", "a")[0] == 2
    assert run("--predictions", folder, "--predictions", folder, "--data", "x")[0] == 2
    code, _, err = run("--predictions", folder, "--predictions", str(tmp_path))
    assert (code, "_SUCCESS" in err) == (5, True)
    written = tmp_path / "found.json"
    code, out, _ = run("--predictions", folder, "--predictions", folder, "--resamples", "20", "--json", str(written))
    assert code == 0
    assert "click: the two predict the same, to the bit" in out
    assert json.loads(written.read_text())["tasks"]["click"]["differences"]["auc"]["difference"] == 0
