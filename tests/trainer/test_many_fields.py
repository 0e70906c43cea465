"""Many fields, vectors among them, and three histories, from rows on disk through the trainer."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.schema_check import check_schema
from pipelines.segments import find_segments
from pipelines.stream import ThreadExecutor
from pipelines.windows import Pass
from tests.trainer.runs import Run, saved_tensors, train_all
from tests.trainer.wide_rows import wide_config, wide_rows, write_wide_rows
from trainer.assembly import assemble
from trainer.config import Config
from trainer.evaluation import predict
from trainer.feed import open_feed
from trainer.runtime import start

FIELDS, MANY = 60, 250
PROJECTIONS = "dense/scorer.ranker.tokens.fields.projections."


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


class Answers:
    """What a new model says of rows, in several forms: [positions] probabilities of a click and order."""

    def __init__(self, folder: Path, fields: int) -> None:
        self._folder, self._fields, self._count = folder, fields, 0

    def __enter__(self) -> Answers:
        self._runtime = start(60, 1)
        runtime = self._runtime.__enter__()
        self.config = wide_config(self._folder, self._fields)
        self.assembly = assemble(self.config, runtime)
        self.assembly.mapper.mark(0)
        self.runtime = runtime
        return self

    def __exit__(self, *error: Any) -> None:
        self._runtime.__exit__(*error)

    def of(self, rows: list[dict[str, Any]], *, blocks: bool = True) -> np.ndarray:
        self._count += 1
        folder = self._folder / f"case{self._count}"
        write_wide_rows(folder / "rows.parquet", rows, self._fields)
        data = self.config.data.model_copy(update={"rows": str(folder)})
        pass_ = Pass(self.config.schema, data, find_segments(data).train, shuffle=False)
        given = self.assembly.blocks if blocks else None
        feed = open_feed(pass_, None, ThreadExecutor(1), self.assembly.mapper, self.runtime, train=False, blocks=given)
        found = predict(self.assembly.model, feed, ("click", "order"), "", self.runtime)
        feed.close()
        return np.concatenate([found.tasks[task]["probability"] for task in ("click", "order")])


def _labelled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        shown = len(row["item"])
        row |= {"click": [1] * shown, "order": [0] * shown, "ips": [1.0] * shown}
    return rows


def test_fields_side_by_side_answer_as_fields_one_by_one_and_all_of_them_are_read(tmp_path: Path) -> None:
    """Static vectors and floats, vectors of candidates, events and actions: each changes the answer of its row. An
    action that is not known yet changes nothing."""
    rows = _labelled(wide_rows(6, MANY))
    row = rows[0]
    row |= {"time": 60, "s_time": [40, 59, 60], "s_image": [[0.1, 0.5]] * 3, "s_list": [1, 2, 3]}
    row["s_mood"] = [[0.1, 0.2, 0.3]] * 3
    with Answers(tmp_path, MANY) as answers:
        blocks = answers.assembly.blocks
        assert sum(map(len, blocks.looked_up)) + sum(map(len, blocks.dense)) > MANY / 2
        before = answers.of(rows)
        np.testing.assert_allclose(answers.of(rows, blocks=False), before, rtol=0, atol=1e-6)

        def changed(name: str, value: Any) -> bool:
            others = copy.deepcopy(rows)
            others[0][name] = value
            after = answers.of(others)
            return bool(np.abs(after - before).max() > 1e-7)

        ignored = [name for name, value in _other_values(row).items() if not changed(name, value)]
        assert ignored == []
        late = [row["s_mood"][0], row["s_mood"][1], [9.0, 9.0, 9.0]]
        assert not changed("s_mood", late), "an action of the request's own time is not known at the request"


def _other_values(row: dict[str, Any]) -> dict[str, Any]:
    """One column of each kind and place."""
    return {
        "x9": 5.0,
        "x6": [77],
        "x15": [9.0, 0.0, 0.0, 0.0],
        "profile": [4.0, 4.0, 4.0],
        "x0": 51,
        "x237": 7.0,
        "image": [[8.0, 8.0]] * len(row["item"]),
        "s_image": [[8.0, 8.0], *row["s_image"][1:]],
        "s_mood": [[8.0, 8.0, 8.0], *row["s_mood"][1:]],
    }


def _run(folder: Path, fields: int, ranks: int) -> dict[str, torch.Tensor]:
    """Two steps of the trainer; what the last checkpoint holds."""
    for day in (1, 2):
        write_wide_rows(folder / "rows" / f"day={day}" / "a.parquet", wide_rows(10, fields, seed=day), fields)
    config: Config = wide_config(folder / "rows", fields, train={"max_steps": 2})
    result = train_all([Run(config, folder / "run")], ranks)[0]
    assert result is not None
    return saved_tensors(folder / "run")


def _check(found: dict[str, torch.Tensor]) -> None:
    weights = {name: value for name, value in found.items() if name.startswith(PROJECTIONS) and "weight" in name}
    assert len(weights) == 32
    moments = {name: value for name, value in found.items() if "exp_avg" in name and PROJECTIONS[6:] in name}
    assert len(moments) >= 64
    assert all(bool(value.any()) for name, value in moments.items()), "every token has learned"
    assert all(bool(value.isfinite().all()) for value in found.values() if value.is_floating_point())


def test_sixty_fields_and_three_histories_train_with_32_field_tokens(tmp_path: Path) -> None:
    _check(_run(tmp_path, FIELDS, 1))


@pytest.mark.slow
@pytest.mark.parametrize("fields", [500, 2000])
def test_thousands_of_fields_train_with_32_field_tokens(tmp_path: Path, fields: int) -> None:
    _check(_run(tmp_path, fields, 2))


def test_a_vector_that_is_shared_has_one_length(tmp_path: Path) -> None:
    schema = wide_config(tmp_path, 1).schema
    columns = schema.columns | {"v_image": schema.columns["v_image"].model_copy(update={"size": 3})}
    problems = check_schema(schema.model_copy(update={"columns": columns}))
    assert problems == [
        "column 'v_image': size = 3 and shares 'image' of size 2 → the same thing has one length → make them alike"
    ]
