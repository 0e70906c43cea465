"""DCN-V2, DIN and HSTU under the same trainer: sharded tables, two ranks, and a resume that repeats what never
stopping does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from embeddings.specs import table_specs
from model.config import Model
from tests.model.test_rivals_reference import SMALL
from tests.pipelines.rows import write_segments
from tests.trainer.runs import Run, differing, saved_tensors, tiny_config, train_all
from trainer.assembly import build_dense
from trainer.config import Config
from trainer.layout import make_layout

RESUMED = ("dcnv2", "din")
DENSE = "dense/scorer.ranker."


def config_of(folder: Path, kind: str, **sections: Any) -> Config:
    own = getattr(Model(), kind).model_copy(update=SMALL[kind])
    return tiny_config(folder / "rows", model={"kind": kind, kind: own}, **sections)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five steps of each, the last one with a filler; and of two the same with a stop after the second."""
    folder = tmp_path_factory.mktemp("rivals")
    write_segments(folder / "rows", {"2026-01-01": [14, 7]})

    def run(kind: str, name: str, resume: Any = "never", **train: Any) -> Run:
        return Run(config_of(folder, kind, train=train), folder / kind / name, resume)

    runs = [run(kind, "whole") for kind in SMALL]
    for kind in RESUMED:
        runs += [run(kind, "stopped", max_steps=2), run(kind, "stopped", "must")]
    train_all(runs, 2)
    return folder


@pytest.mark.parametrize("kind", SMALL)
def test_every_parameter_moves(folder: Path, kind: str) -> None:
    config, now = config_of(folder, kind), saved_tensors(folder / kind / "whole")
    begun = build_dense(config, make_layout(config.schema, table_specs(config.schema, config.embeddings)))
    still = [name for name, value in begun.named_parameters() if torch.equal(value, now[DENSE + name])]
    assert still == []
    assert all(value.isfinite().all() for value in now.values() if value.is_floating_point())


@pytest.mark.parametrize("kind", RESUMED)
def test_resumed_is_never_stopped(folder: Path, kind: str) -> None:
    assert differing(saved_tensors(folder / kind / "whole"), saved_tensors(folder / kind / "stopped")) == []
