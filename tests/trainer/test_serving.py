"""Exported = trained: what docs/serving.md says, run as it stands there on the exported files alone, gives the answers
of the trainer itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.docs.pages import ROOT, blocks
from tests.trainer.verb_runs import Trained
from trainer.checkpoint_verbs import verbs

SCRIPT = """
import runpy, sys
sys.argv = ["score_from_export.py", *sys.argv[1:]]
runpy.run_path("score_from_export.py", run_name="__main__")
ours = {"trainer", "embeddings", "pipelines", "torchrec"} & set(sys.modules)
assert not ours, ours
"""


def score_by_the_page(export: Path, rows: Path, folder: Path) -> list[dict[str, Any]]:
    """docs/serving.md's code in a process that has the exported files and model/, nothing else of ours."""
    shutil.copytree(ROOT / "model", folder / "model", dirs_exist_ok=True)
    code = "\n".join(block.text for block in blocks("python", "docs/serving.md"))
    (folder / "score_from_export.py").write_text(code)
    command = [sys.executable, "-c", SCRIPT, str(export), str(rows)]
    done = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", ["candidates", "ordered", "history"])
def test_what_the_page_says_gives_the_trained_model_s_answers(checkpointed: Trained, name: str, tmp_path: Path) -> None:
    expected = checkpointed.scores
    verbs.unshard(str(checkpointed.runs / name), str(tmp_path / "export"), None, None)
    found = score_by_the_page(tmp_path / "export", checkpointed.rows, tmp_path)
    assert sorted(expected[name]) == list(range(len(found))) == list(range(40))
    positions = 0
    for row, tasks in enumerate(found):
        scores = np.array(list(tasks.values())).reshape(len(tasks), -1).T
        known = np.array(expected[name][row]).reshape(-1, len(tasks))
        assert scores.shape == known.shape
        np.testing.assert_allclose(scores, known, rtol=0, atol=1e-6)
        positions += len(known)
    assert positions > 60
    spread = np.concatenate([np.array(scores).reshape(-1) for scores in expected[name].values()])
    assert spread.std() > 1e-3  # the rows are told apart
