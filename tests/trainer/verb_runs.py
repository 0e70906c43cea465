"""Runs for the `checkpoint` verbs: trained on two ranks, a checkpoint every step, most of them differences; and what
the trainer says of rows it has not seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from embeddings.config import Embeddings, Table
from pipelines.footer_cache import FooterCache
from pipelines.segments import find_segments
from pipelines.stream import ThreadExecutor
from pipelines.windows import Pass
from tests.distributed.ranks import run_ranks
from tests.pipelines.rows import COLUMNS, TASKS, make_history_schema, make_rows, make_schema, write_rows
from tests.trainer.runs import Run, tiny_config, train_runs
from trainer.assembly import assemble
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.config import Config
from trainer.feed import open_feed
from trainer.model_state import load_rest, model_tensors
from trainer.run_dir import RunDir
from trainer.runtime import start

Scores = dict[int, list[list[float]]]


def configs(rows: Path) -> dict[str, Config]:
    """A vocabulary whose buckets are too small for all ids, a managed table that evicts, hashes, an identity; all kinds
    of columns; a product."""
    tables = {
        "item": Table(rows=32, mapping="vocabulary", buckets=8),
        "late": Table(rows=12, mapping="identity"),
        "words": Table(rows=24, mapping="managed", buckets=4, admit_after=2),
        "tags": Table(rows=50, sharding="column_wise"),
    }
    base = tiny_config(
        rows,
        train={"max_steps": 5},
        checkpoint={"every_steps": 1, "keep": 9, "full_every": 3},
    )
    embeddings = Embeddings(width=8, default_rows=64, tables=tables)
    both = {"both": {"label": "order", "product_of": ("click", "order")}}
    events = {k: v for k, v in tables.items() if k in ("late", "tags")}
    events |= {"v_item": tables["item"], "v_words": tables["words"]}
    views = {name: column for name, column in COLUMNS.items() if not name.startswith("b_")}
    of_views = {"views": {"max_length": 4, "time": "v_time", "action_time": "v_known"}}
    one_history = make_schema(ties="order", columns=views, histories=of_views)
    model = base.model.model_copy(update={"action_tokens": "auto"})
    return {
        "candidates": replace(base, schema=make_schema(tasks=TASKS | both), embeddings=embeddings, model=model),
        "ordered": replace(base, schema=one_history, embeddings=embeddings, model=model),
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
        checkpointer = Checkpointer(run, config.checkpoint, runtime.control)
        step = checkpointer.load(run.require_latest(), tensors, config.schema).step
        load_rest(assembly, tensors)
        assembly.mapper.mark(step)
        data = config.data.model_copy(update={"rows": str(rows)})
        pass_ = Pass(config.schema, data, find_segments(data).train, shuffle=False, cache=FooterCache(run.plan_cache))
        feed = open_feed(pass_, None, ThreadExecutor(1), assembly.mapper, runtime, step, train=False)
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


@dataclass(frozen=True)
class Trained:
    """runs: folder with the run directories named as `configs`. rows: Parquet of rows to score. scores: {run:
    {row: probabilities [position][task]}}."""

    runs: Path
    rows: Path
    scores: dict[str, Scores]


def train_on_two_ranks(folder: Path) -> Trained:
    """Five steps each."""
    write_rows(folder / "train" / "rows.parquet", make_rows(30, 1))
    rows = write_rows(folder / "new" / "rows.parquet", make_rows(40, 2))
    runs = [Run(config, folder / "runs" / name) for name, config in configs(folder / "train").items()]
    of_ranks = run_ranks(train_and_score, 2, runs, rows.parent, timeout=150)
    merged: list[Scores] = [{**first, **second} for first, second in zip(*of_ranks, strict=True)]
    return Trained(folder / "runs", rows, dict(zip((run.run_dir.name for run in runs), merged, strict=True)))
