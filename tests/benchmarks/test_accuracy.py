"""The accuracy harness: what is done is not done again, a changed setting is, nothing half written, gaps are shown."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from tests.benchmarks import accuracy_matrix, accuracy_page, accuracy_runs
from tests.benchmarks.accuracy import DOCS, carry_out
from tests.benchmarks.accuracy_matrix import Run, all_runs, final_runs, next_runs, trials
from tests.benchmarks.accuracy_results import Figures, Results, add, load
from tests.benchmarks.accuracy_runs import Runner, check_counts, dense_parameters, identity
from tests.benchmarks.accuracy_settings import (
    ABLATIONS,
    KNOBS,
    RANKERS,
    ROWS,
    TASKS,
    TEST,
    TRAIN,
    TRIALS,
    VALID,
    rows_hash,
    run_file,
    settings_hash,
    settings_of,
)
from trainer.config import load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A matrix of so many rankers."""
    kept = ("tokenformer", "din", "hyformer")
    monkeypatch.setattr(accuracy_matrix, "RANKERS", {ranker: RANKERS[ranker] for ranker in kept})
    return kept


def figures_of(run: Run, auc: float = 0.79) -> Figures:
    """What a run would have come to."""
    scores = {"auc": auc, "loss": 0.54, "ne": 0.78, "calibration": 1.0, "examples": VALID}
    look = {"effective_rank": {"sequence": [9.0] * 5, "field": [8.0] * 5}, "on_fields": [0.1] * 4, "even": [0.2] * 4}
    curve = {"curve": [[300, 60.0, 0.79], [600, 120.0, 0.797]]} if "train.eval_every" in run.settings else {}
    return (
        identity(run)
        | curve
        | {
            "dense_parameters": 300_000,
            "steps": 456,
            "examples": TASKS * TRAIN * run.settings["data.epochs"],
            "seconds": 100.0,
            "bad_steps": 0,
            "progressive": scores,
            "held_out": scores,
            "test": scores | {"examples": TEST, "auc": auc - 0.004 + run.seed * 1e-4} if run.test else None,
            "collapse": look if run.test and run.ranker in ("tokenformer", "transformer") else None,
        }
    )


class Stub:
    """In the place of a training: its score is best where dropout is .1 and everything else as it begins."""

    def __init__(self) -> None:
        self.carried: list[Run] = []

    def __call__(self, run: Run) -> Figures | None:
        self.carried.append(run)
        worse = sum(run.settings[knob] != settings_of(run.ranker)[knob] for knob in KNOBS if knob != "model.dropout")
        return figures_of(run, 0.8 - 0.001 * worse - 0.01 * run.settings["model.dropout"])


def test_every_entry_is_a_run_file_and_the_rankers_are_of_one_size(tmp_path: Path) -> None:
    sizes = {}
    wanted: list[tuple[str, str, Any]] = [(ranker, "long", {}) for ranker in RANKERS]
    wanted += [(r, rows, {}) for r in ("tokenformer", "hyformer") for rows in ("half", "last30", "last30_days")]
    wanted += [("tokenformer", "long", over) for variants in ABLATIONS.values() for over in variants.values()]
    for ranker, rows, over in wanted:
        settings = settings_of(ranker, rows, over)
        content = run_file(settings)
        path = tmp_path / "run.toml"
        path.write_text(tomli_w.dumps(content))
        config = load_config(path)
        assert config.model.kind == over.get("model.kind", ranker)
        for name, value in settings.items():
            section, _, key = name.partition(".")
            if section in ("optim", "model") and "." not in key:
                kept = getattr(getattr(config, section), key)
                assert (list(kept) if isinstance(kept, tuple) else kept) == value
        if rows == "long" and not over:
            sizes[ranker] = dense_parameters(path)
    assert all(abs(size / sizes["tokenformer"] - 1) < 0.1 for size in sizes.values()), sizes
    assert {settings["rows"] for settings in (settings_of(r, rows) for r, rows, _ in wanted)} == set(ROWS)


def test_a_changed_setting_is_another_run_and_what_has_no_effect_is_not() -> None:
    settings = settings_of("tokenformer")
    known = settings_hash(settings)
    assert settings_hash(dict(reversed(settings.items()))) == known
    assert settings_hash(settings | {"train.log_every": 7, "telemetry.tensorboard": False}) == known
    changed = [{"optim.lr": 1e-3}, {"model.gate": False}, {"data.epochs": 2}, {"train.eval_every": 5}]
    assert len({known, *(settings_hash(settings | change) for change in changed)}) == 5
    assert rows_hash(settings) == rows_hash(settings | {"optim.lr": 1e-3})
    assert rows_hash(settings) != rows_hash(settings_of("tokenformer", "half"))


def test_a_cut_matrix_goes_on_without_repeating(tmp_path: Path, few: tuple[str, ...]) -> None:
    results, runner, first = tmp_path / "results.jsonl", Runner(tmp_path / "no.zip", tmp_path), Stub()

    def cut(run: Run) -> Figures | None:
        """Stopped in the middle of the ninth."""
        if len(first.carried) == 8:
            runner.stop()
            return None
        return first(run)

    assert carry_out(results, runner, only="table", carry=cut) == []
    assert len(load(results).lines) == 8
    second = Stub()
    assert carry_out(results, Runner(tmp_path / "no.zip", tmp_path), only="table", jobs=2, carry=second) == []
    keys = [run.key for run in (*first.carried, *second.carried)]
    done = load(results)
    assert len(keys) == len(set(keys)) + len(few)  # a final run's first seed is its best trial, scored once more
    assert next_runs(done, "table") == []
    for ranker in few:
        tried, best = trials(ranker, done)
        assert len(tried) == TRIALS
        assert best is not None
        assert best.settings["model.dropout"] == 0.1
        assert all(run.settings == best.settings for run in final_runs(ranker, done))
    assert {run.part for run in next_runs(done)} == {"last30", "three", "live", "time", "ablations"}


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path: Path, few: tuple[str, ...]) -> None:
    results, stub = tmp_path / "results.jsonl", Stub()

    def carry(run: Run) -> Figures | None:
        if run.ranker == "din":
            raise accuracy_runs.FailedError("no")
        return stub(run)

    failed = carry_out(results, Runner(tmp_path / "no.zip", tmp_path), only="live", carry=carry)
    assert failed == ["din, seed 1", "din, seed 2"]
    assert {line["ranker"] for line in load(results).lines} == set(few) - {"din"}


def test_a_line_is_there_or_it_is_not(tmp_path: Path) -> None:
    """A writer that is killed at whatever moment leaves whole lines, in their order."""
    results = tmp_path / "results.jsonl"
    program = (
        "import sys; from pathlib import Path; from tests.benchmarks.accuracy_results import add\n"
        "place = Path(sys.argv[1])\n"
        "for n in range(100000): add(place, {'hash': 'x' * 2000, 'seed': n}, place.with_name('lock'))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(2):
        writer = subprocess.Popen([sys.executable, "-c", program, str(results)], env=environment)
        deadline = time.monotonic() + 30
        while len(load(results).lines) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        lines = [json.loads(line) for line in results.read_text().splitlines()]
        assert results.read_text().endswith("\n")
        assert [line["seed"] for line in lines] == list(range(len(lines)))
        results.unlink()
    results.write_text('{"hash": "a", "seed": 1}\n{"hash": "b", "se')  # another program's half line
    assert [line["hash"] for line in load(results).lines] == ["a"]
    add(results, {"hash": "c", "seed": 1}, tmp_path / "lock")
    assert [json.loads(line)["hash"] for line in results.read_text().splitlines()] == ["a", "c"]


@pytest.mark.usefixtures("few")
def test_the_page_shows_gaps_and_how_many_seeds_a_mean_stands_on(tmp_path: Path) -> None:
    page = tmp_path / "accuracy.md"
    shutil.copy(DOCS / "accuracy.md", page)
    before = page.read_text()
    accuracy_page.write(page, Results([]))
    empty = page.read_text()
    assert re.search(r"\| tokenformer \| — \| — \| — \| — \| — \|", empty)
    assert "No run is finished yet." in empty
    stub, results = Stub(), tmp_path / "results.jsonl"

    def carry(run: Run) -> Figures | None:
        return stub(run) if run.ranker in ("tokenformer", "transformer") else _fail()

    carry_out(results, Runner(tmp_path / "no.zip", tmp_path), carry=carry)
    found = load(results)
    kept = [line for line in found.lines if line["seed"] != 3]
    accuracy_page.write(page, Results(kept))
    text = page.read_text()
    assert re.search(
        r"\| \*\*tokenformer\*\* \| 300,000 \| \.79900 ± \.00000 \(2\) \| 399 \| \.7951\d ± \.0000\d \(2\)", text
    )
    assert re.search(r"\| \*\*tokenformer\*\* \| 300,000 \| \.\d+ ± \.00000 \(2\) \| \.\d+ ± \.0000\d \(2\)", text)
    assert re.search(r"\| din \| — \| — \| — \| — \| — \|", text)
    assert re.search(r"\| tokenformer \| 2\.0 \| 200 \| \.7970 \|", text)
    assert re.search(r"\| 4S collapses: 4F over it \| \+36 \| \+0\.00 ± 0\.00 \(2\): not seen \|", text)
    outside = re.compile(r"(<!-- accuracy: (\w+) -->).*?(<!-- /accuracy: \2 -->)", re.DOTALL)
    assert outside.sub("", text) == outside.sub("", before)


def _fail() -> Figures:
    raise accuracy_runs.FailedError("not this one")


def test_other_counts_than_the_protocol_s_are_refused() -> None:
    run = Run("table", "x", "tokenformer", 1, settings_of("tokenformer"), test=True)
    check_counts(figures_of(run))
    short = figures_of(run) | {"examples": TASKS * TRAIN - 1}
    with pytest.raises(accuracy_runs.FailedError, match="2,328,020 training examples"):
        check_counts(short)


def test_the_committed_results_have_no_paths_and_the_page_is_theirs(tmp_path: Path) -> None:
    results = DOCS / "accuracy_results.jsonl"
    assert "/" not in re.sub(r'"(name|date)": "[^"]*"', "", results.read_text(encoding="utf-8"))
    page = tmp_path / "accuracy.md"
    shutil.copy(DOCS / "accuracy.md", page)
    accuracy_page.write(page, load(results))
    assert page.read_text() == (DOCS / "accuracy.md").read_text(), "run `python -m tests.benchmarks.accuracy --render`"


def write_small_archive(path: Path, users: int = 40, ratings: int = 25) -> Path:
    """In GroupLens's format."""
    rng = np.random.default_rng(5)
    rows = [
        f"{user}::{movie}::{rng.integers(1, 6)}::{978300000 + int(rng.integers(0, 10**6))}"
        for user in range(1, users + 1)
        for movie in rng.permutation(60)[:ratings] + 1
    ]
    files = {
        "users.dat": "\n".join(f"{user}::F::25::3::48067" for user in range(1, users + 1)),
        "movies.dat": "\n".join(f"{movie}::Movie {movie} (1995)::Comedy" for movie in range(1, 61)),
        "ratings.dat": "\n".join(rows),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"ml-1m/{name}", text + "\n")
    return path


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("ranker", ["tokenformer", "hyformer"])
def test_a_real_run_from_the_archive_to_its_figures(
    ranker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped under way, it goes on; a trial that is scored on the test later is not trained again."""
    runner = Runner(write_small_archive(tmp_path / "small.zip"), tmp_path / "out")
    counts = {"TRAIN": 640, "VALID": 80, "TEST": 80}
    for name, count in counts.items():
        monkeypatch.setattr(accuracy_runs, name, count)
    over: dict[str, Any] = {"data.global_batch": 8, "optim.warmup_examples": 10, "optim.decay_examples": 600}
    run = Run("table", "x", ranker, 1, settings_of(ranker, over=over))
    stopped = Runner(tmp_path / "small.zip", tmp_path / "out")
    stopped.stop()
    assert stopped(run) is None
    trial = runner(run)
    assert trial is not None
    assert trial["test"] is None
    assert trial["examples"] == TASKS * counts["TRAIN"]
    assert 0 < trial["held_out"]["auc"] < 1
    (done,) = (tmp_path / "out" / "runs").glob("*.done")
    trained = done.stat().st_mtime_ns
    final = runner(replace(run, test=True))
    assert final is not None
    assert done.stat().st_mtime_ns == trained
    assert final["test"]["examples"] == counts["TEST"]
    assert final["held_out"] == trial["held_out"]
    assert str(tmp_path) not in json.dumps(final)


def test_the_order_begins_with_every_ranker_once() -> None:
    first = [run for run, _ in zip(all_runs(Results([])), RANKERS, strict=False)]
    assert [run.ranker for run in first] == list(RANKERS)
    assert accuracy_matrix.done(first[0], Results([figures_of(first[0])]))
    assert not accuracy_matrix.done(first[0], Results([figures_of(replace(first[0], test=False))]))


def test_the_plain_transformer_is_the_ablation_without_both_parts() -> None:
    """The same run file, so it is trained once."""
    (plain,) = {run.hash for run in accuracy_matrix.ablation_runs("parts")["both off"]}
    assert plain == settings_hash(settings_of("transformer"))
