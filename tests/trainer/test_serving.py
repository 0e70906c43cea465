"""Exported = trained: what docs/serving.md says, run as it stands there on the exported files alone, gives the answers
of the trainer itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embeddings.config import Embeddings, Table
from pipelines.footer_cache import FooterCache
from pipelines.segments import find_segments
from pipelines.stream import ThreadExecutor
from pipelines.windows import Pass
from tests.distributed.ranks import run_ranks
from tests.docs.pages import ROOT, blocks
from tests.pipelines.rows import TASKS, make_history_schema, make_rows, make_schema, write_rows
from tests.trainer.runs import Run, tiny_config, train_runs
from trainer.assembly import assemble
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint_verbs import verbs
from trainer.config import Config
from trainer.feed import open_feed
from trainer.model_state import load_rest, model_tensors
from trainer.run_dir import RunDir
from trainer.runtime import start

Scores = dict[int, list[list[float]]]
SCRIPT = """
import runpy, sys
sys.argv = ["score_from_export.py", *sys.argv[1:]]
runpy.run_path("score_from_export.py", run_name="__main__")
ours = {"trainer", "embeddings", "pipelines", "torchrec"} & set(sys.modules)
assert not ours, ours
"""


def configs(rows: Path) -> dict[str, Config]:
    """A vocabulary whose buckets are too small for all ids, hashes, an identity; all kinds of columns; a product."""
    tables = {
        "item": Table(rows=32, mapping="vocabulary", buckets=8),
        "late": Table(rows=12, mapping="identity"),
        "words": Table(rows=97, sharding="row_wise"),
        "tags": Table(rows=50, sharding="column_wise"),
    }
    base = tiny_config(rows, train={"max_steps": 4})
    embeddings = Embeddings(width=8, default_rows=64, tables=tables)
    both = {"both": {"label": "order", "product_of": ("click", "order")}}
    events = {k: v for k, v in tables.items() if k in ("late", "tags")}
    events |= {"v_item": tables["item"], "v_words": tables["words"]}
    model = base.model.model_copy(update={"action_tokens": "auto"})
    return {
        "candidates": replace(base, schema=make_schema(tasks=TASKS | both), embeddings=embeddings, model=model),
        "history": replace(
            base,
            schema=make_history_schema(ties="order"),
            embeddings=embeddings.model_copy(update={"tables": events}),
            model=model,
        ),
    }


def scores_of_run(config: Config, run_dir: Path, rows: Path) -> Scores:
    """{row: probabilities [position][task]} of this rank's rows, by the trainer's own way from rows to scores."""
    with start(60, 1) as runtime:
        assembly = assemble(config, runtime)
        tensors = model_tensors(assembly)
        run = RunDir(run_dir)
        Checkpointer(run, config.checkpoint, runtime.control).load(run.require_latest(), tensors, config.schema)
        load_rest(assembly, tensors)
        data = config.data.model_copy(update={"rows": str(rows)})
        pass_ = Pass(config.schema, data, find_segments(data).train, shuffle=False, cache=FooterCache(run.plan_cache))
        feed = open_feed(pass_, None, ThreadExecutor(1), assembly.mapper, runtime, train=False)
        found: Scores = {}
        assembly.model.eval()
        with torch.no_grad():
            for batch in feed:
                _, outputs = assembly.model(batch)
                host = batch.host
                lengths = (
                    host.candidate_lengths
                    if config.schema.supervision == "candidates"
                    else host.history_lengths[config.schema.supervised_history]
                )
                parts = outputs.probabilities_SK.split(lengths.tolist())
                if not host.filler:
                    found |= dict(zip(host.row.tolist(), (part.tolist() for part in parts), strict=True))
        feed.close()
        return found


def train_and_score(rank: int, world_size: int, runs: list[Run], rows: Path) -> list[Scores]:
    train_runs(rank, world_size, runs)
    return [scores_of_run(run.config, run.run_dir, rows) for run in runs]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Scores]]:
    """A folder with runs/NAME trained on two ranks and rows to score; {NAME: what the trainer says of these rows}."""
    folder = tmp_path_factory.mktemp("serving")
    write_rows(folder / "train" / "rows.parquet", make_rows(30, 1))
    rows = write_rows(folder / "new" / "rows.parquet", make_rows(40, 2))
    runs = [Run(config, folder / "runs" / name) for name, config in configs(folder / "train").items()]
    of_ranks = run_ranks(train_and_score, 2, runs, rows.parent, timeout=150)
    merged: list[Scores] = [{**first, **second} for first, second in zip(*of_ranks, strict=True)]
    return folder, dict(zip(["candidates", "history"], merged, strict=True))


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
@pytest.mark.parametrize("name", ["candidates", "history"])
def test_what_the_page_says_gives_the_trained_model_s_answers(
    scored: tuple[Path, dict[str, Scores]], name: str, tmp_path: Path
) -> None:
    folder, expected = scored
    verbs.unshard(str(folder / "runs" / name), str(tmp_path / "export"), None, None)
    found = score_by_the_page(tmp_path / "export", folder / "new" / "rows.parquet", tmp_path)
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
