"""What a run suggests when it has ended, and an evaluation that has nothing to score."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.closing_words import say_result
from trainer.errors import ConfigError
from trainer.evaluate_verb import evaluate

SCORES = {"loss": 0.4, "ne": 0.9, "auc": 0.7, "calibration": 1.0, "examples": 10}
TRAINED = {"train": {"tasks": {"click": SCORES}}, "evals": []}
EVALUATED = {"train": None, "evals": [{"split": "2026-11-15", "tasks": {"click": {**SCORES, "gauc": 0.6}}}]}


def _said(capsys: pytest.CaptureFixture[str], result: dict[str, object], stopped: bool = False) -> list[str]:
    say_result(result, "runs/x", stopped)
    return [line.strip() for line in capsys.readouterr().out.splitlines()]


def test_what_to_try_next(capsys: pytest.CaptureFixture[str]) -> None:
    resume = "tokenformer train --config runs/x/config.toml --run-dir runs/x --resume auto"
    ended = _said(capsys, TRAINED | {"evals": EVALUATED["evals"]})
    board = "tensorboard --logdir runs/x/tensorboard"
    assert ended[-3:] == ["tokenformer evaluate --run runs/x", board, resume]
    assert "tokenformer evaluate --run runs/x --data ROWS" in _said(capsys, TRAINED)  # nothing of its own to score
    assert [line for line in _said(capsys, TRAINED, stopped=True) if line.startswith("tokenformer")] == [resume]
    assert "try next:" not in _said(capsys, EVALUATED)


def test_a_run_of_torchrun_goes_on_with_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    resume = "-m trainer train --config runs/x/config.toml --run-dir runs/x --resume auto"
    assert f"torchrun --nproc-per-node 4 {resume}" in _said(capsys, TRAINED, stopped=True)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert f"torchrun … --nproc-per-node 4 {resume}" in _said(capsys, TRAINED, stopped=True)


def test_evaluating_a_run_without_evaluation_segments_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": [1]}), tmp_path / "rows.parquet")
    run = tmp_path / "run"
    run.mkdir()
    schema = """
    [schema]
    user = "user_id"
    supervision = "candidates"
    [schema.columns]
    user_id = { role = "user", kind = "id" }
    time = { role = "time", kind = "time" }
    item = { role = "item", kind = "id", group = "candidates" }
    click = { role = "label", kind = "dense", group = "candidates" }
    [schema.tasks.click]
    label = "click"
    """
    (run / "config.toml").write_text(f"{schema}\n[data]\nrows = '{tmp_path / 'rows.parquet'}'\n")
    with pytest.raises(ConfigError, match=r"has no evaluation segments → .* → name them with --data P"):
        evaluate(str(run), None)
