"""OneTrans and HyFormer under the trainer that all rankers share: sharded tables, two ranks, and a run that was stopped
and resumed is the one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from embeddings.specs import table_specs
from tests.pipelines.rows import write_segments
from tests.trainer.runs import Run, differing, newest_state, saved_tensors, tiny_config, train_all
from trainer.assembly import build_dense
from trainer.errors import ConfigError
from trainer.layout import make_layout

MODELS: dict[str, dict[str, Any]] = {
    "onetrans": {"kind": "onetrans", "dropout": 0.2},
    "hyformer": {"kind": "hyformer", "dropout": 0.2},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rivals")
    rows = write_segments(folder / "rows", {"2026-01-01": [14, 6]})

    def run(name: str, place: str, steps: int, resume: Any = "never") -> Run:
        config = tiny_config(rows, model=MODELS[name], train={"max_steps": steps})
        return Run(config, folder / place, resume)

    stopped = {name: f"{name}, stopped" for name in MODELS}
    train_all(
        [
            of_kind
            for name in MODELS
            for of_kind in (run(name, name, 3), run(name, stopped[name], 2), run(name, stopped[name], 3, "must"))
        ],
        2,
    )
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_resumed_is_uninterrupted_to_the_bit(runs: Path, name: str) -> None:
    assert newest_state(runs / name).step == 3
    assert differing(saved_tensors(runs / name), saved_tensors(runs / f"{name}, stopped")) == []


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_trained(runs: Path, name: str) -> None:
    """One that no gradient reaches does not move, but for weight decay, which leaves zeros alone."""
    config = tiny_config(runs / "rows", model=MODELS[name])
    born = build_dense(config, make_layout(config.schema, table_specs(config.schema, config.embeddings)))
    saved = saved_tensors(runs / name)
    still = [key for key, value in born.named_parameters() if torch.equal(value, saved[f"dense/scorer.ranker.{key}"])]
    assert still == []


def test_an_input_that_does_not_fit_is_said_in_one_line(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, model={"kind": "hyformer", "dim": 8})
    layout = make_layout(config.schema, table_specs(config.schema, config.embeddings))
    with pytest.raises(ConfigError) as refused:
        build_dense(config, layout)
    (line,) = refused.value.problems
    assert line.startswith("[model] dim 8 with hyformer's 12 tokens")
