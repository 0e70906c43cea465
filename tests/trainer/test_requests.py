"""From rows on disk to probabilities, the whole way: what a request's answer depends on, and what it does not."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embeddings.config import Embeddings
from pipelines.segments import find_segments
from pipelines.stream import ThreadExecutor
from pipelines.windows import Pass
from tests.pipelines.rows import make_data, make_history_schema, make_rows, write_rows
from tests.trainer.runs import Run, differing, newest_state, saved_tensors, tiny_config, train_all
from trainer.assembly import assemble
from trainer.config import Config
from trainer.evaluation import predict
from trainer.feed import open_feed
from trainer.runtime import start

Row = dict[str, Any]
HASHED = Embeddings(width=8, default_rows=64)


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def answers(config: Config, rows: list[Row], folder: Path, task: str) -> dict[str, np.ndarray]:
    """What a new model, not trained yet, says of every supervised position that has a label."""
    write_rows(folder / "rows.parquet", rows)
    data = config.data.model_copy(update={"rows": str(folder)})
    config = replace(config, data=data, embeddings=HASHED)
    schema = config.schema
    with start(60, 1) as runtime:
        assembly = assemble(config, runtime)
        assembly.mapper.mark(0)  # as a run does before its first batch
        pass_ = Pass(schema, data, find_segments(data).train, shuffle=False)
        feed = open_feed(pass_, None, ThreadExecutor(1), assembly.mapper, runtime, train=False)
        found = predict(assembly.model, feed, tuple(schema.tasks), schema.supervised_history, runtime)
        feed.close()
    return found.tasks[task]


def by_weight(config: Config, rows: list[Row], folder: Path) -> dict[float, float]:
    """{weight of a candidate, which names it here: its probability of a click}."""
    found = answers(config, rows, folder, "click")
    named = dict(zip(found["weight"].tolist(), found["probability"].tolist(), strict=True))
    assert len(named) == sum(len(row["item"]) for row in rows)
    return named


def labelled_rows(count: int, seed: int) -> list[Row]:
    """Every candidate has labels, and a weight of its own."""
    rows = make_rows(count, seed)
    weights = iter(np.arange(1, 1000) / 64)
    for row in rows:
        row["click"] = [index % 2 for index, _ in enumerate(row["item"])]
        row["order"] = row["click"]
        row["ips"] = [float(next(weights)) for _ in row["item"]]
    return rows


def test_a_request_is_answered_alike_alone_among_others_and_cut_into_its_candidates(tmp_path: Path) -> None:
    rows = labelled_rows(9, seed=3)
    config = tiny_config(tmp_path)
    together = by_weight(config, rows, tmp_path / "together")
    alone = replace(config, data=make_data(tmp_path, segments="..", global_batch=1))
    per_candidate = ("item", "words", "image", "click", "order", "ips")
    cut = [
        row | {name: [row[name][index]] for name in per_candidate} for row in rows for index in range(len(row["item"]))
    ]
    assert by_weight(alone, rows, tmp_path / "alone") == pytest.approx(together, abs=1e-6)
    assert by_weight(config, cut, tmp_path / "cut") == pytest.approx(together, abs=1e-6)
    assert np.std(list(together.values())) > 1e-3


def with_history(row: Row) -> Row:
    """A request at 50; of four events before it, the actions of the first and the last are known by then."""
    return row | {
        "time": 50,
        "v_time": [10, 20, 30, 40],
        "v_known": [12, 60, 50, 40],
        "v_click": [0, 0, 0, 0],
        "v_dwell": [0.0] * 4,
        "v_item": [1, 2, 3, 4],
        "v_words": [["a"]] * 4,
        "v_price": [1.0] * 4,
        "v_label": [0] * 4,
    }


def test_labels_and_actions_that_are_not_known_yet_change_no_answer(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    rows = [with_history(row) for row in labelled_rows(4, seed=5)]
    before = by_weight(config, rows, tmp_path / "before")

    later = copy.deepcopy(rows)
    for row in later:
        row["click"] = [1 - label for label in row["click"]]
        row["order"] = [1] * len(row["order"])
        row["v_click"], row["v_dwell"] = [0, 1, 1, 0], [0.0, 9.0, 9.0, 0.0]
    assert by_weight(config, later, tmp_path / "later") == before

    for event in (0, 3):
        known = copy.deepcopy(rows)
        for row in known:
            row["v_click"][event], row["v_dwell"][event] = 1, 9.0
        after = by_weight(config, known, tmp_path / f"known {event}")
        assert all(abs(after[name] - probability) > 1e-6 for name, probability in before.items())


def test_the_actions_of_a_request_change_only_what_comes_after_it(tmp_path: Path) -> None:
    """`history` supervision: of four supervised events, the second and third are one request."""
    config = replace(tiny_config(tmp_path), schema=make_history_schema())
    [row] = make_rows(1, seed=6)
    row |= with_history(row) | {"v_time": [10, 20, 20, 30], "v_known": [10, 20, 20, 30]}
    before = answers(config, [row], tmp_path / "before", "like")["probability"]
    acted = row | {"v_click": [0, 1, 1, 0], "v_dwell": [0.0, 5.0, 7.0, 0.0], "v_label": [0, 1, 1, 0]}
    after = answers(config, [acted], tmp_path / "after", "like")["probability"]
    assert before[:3].tolist() == after[:3].tolist()
    assert abs(before[3] - after[3]) > 1e-6


def unlabelled_rows(count: int, seed: int) -> list[Row]:
    rows = make_rows(count, seed)
    return [row | {name: [None] * len(row["item"]) for name in ("click", "order")} for row in rows]


def test_rows_without_labels_change_nothing_but_counts(tmp_path: Path) -> None:
    """Beside each batch of four rows one whose labels are all null, and one batch of such rows alone; on one rank and
    on two."""
    config = replace(tiny_config(tmp_path), embeddings=HASHED)
    for day in range(4):
        rows = labelled_rows(4, seed=20 + day)
        write_rows(tmp_path / "labelled" / f"dt={day}" / "rows.parquet", rows)
        rows[day:day] = unlabelled_rows(1, seed=40 + day)
        write_rows(tmp_path / "both" / f"dt={day}" / "rows.parquet", rows)
    write_rows(tmp_path / "both" / "dt=2-unlabelled" / "rows.parquet", unlabelled_rows(5, seed=50))
    for world_size in (1, 2):
        names = {name: tmp_path / f"{name} {world_size}" for name in ("labelled", "both")}
        runs = [
            Run(replace(config, data=make_data(tmp_path / name, segments="..")), run_dir)
            for name, run_dir in names.items()
        ]
        train_all(runs, world_size)
        assert differing(*(saved_tensors(run_dir) for run_dir in names.values()), tolerance=2e-5) == []
        plain, more = (newest_state(run_dir) for run_dir in names.values())
        assert (plain.examples, plain.bad_steps) == (more.examples, more.bad_steps)
        assert (plain.step, plain.rows, more.step, more.rows) == (4, 16, 5, 25)
