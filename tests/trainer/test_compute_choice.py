"""`[train]` dtype, compile and checkpoint_activations, from the run file to the tower."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch

from model.compute import Compute, set_compute
from model.rankers import build_ranker
from tests.model.builders import make_config, make_input, make_spec
from tests.pipelines.rows import write_segments
from tests.trainer.runs import Run, differing, saved_tensors, tiny_config, train_all
from trainer.compute_choice import _check_compiler
from trainer.compute_probe import probe
from trainer.config import SECTIONS
from trainer.config_check import contradictions
from trainer.config_sections import Train
from trainer.errors import ConfigError


def test_a_resumed_run_keeps_the_dtype_that_was_chosen_and_repeats_to_the_bit(tmp_path: Path) -> None:
    rows = write_segments(tmp_path / "rows", {"2026-01-01": [14, 9]})

    def run(name: str, resume: str = "never", **train: object) -> Run:
        return Run(tiny_config(rows, train=train), tmp_path / name, resume)  # type: ignore[arg-type]

    runs = [
        run("whole", max_steps=4, dtype="bfloat16"),
        run("halves", max_steps=2, dtype="bfloat16"),
        run("halves", "must", max_steps=4, dtype="auto"),
    ]
    train_all(runs, 1)
    whole, halves = (saved_tensors(tmp_path / name) for name in ("whole", "halves"))
    assert differing(whole, halves) == []
    assert all(tensor.dtype != torch.bfloat16 for tensor in whole.values())
    assert tomllib.loads((tmp_path / "halves" / "config.toml").read_text())["train"]["dtype"] == "bfloat16"


def test_the_trial_is_short_and_leaves_the_generator_alone() -> None:
    spec, config = make_spec(max_length=64), make_config(dim=32)
    before = torch.get_rng_state()
    for dtype in (None, torch.bfloat16):
        assert 0 < probe(spec, config, Compute(dtype), torch.device("cpu")) < 1
    assert torch.equal(before, torch.get_rng_state())


def test_compile_without_a_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config, cpp_builder

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    cpp_builder.cpp_compiler_search.cache_clear()
    with pytest.raises(ConfigError, match=r"train.compile = true → .*C\+\+ compiler"):
        _check_compiler(torch.device("cpu"))


def test_what_a_rival_cannot_do_is_said() -> None:
    sections = {name: section() for name, section in SECTIONS.items() if name in ("model", "train")}
    sections["model"] = sections["model"].model_copy(update={"kind": "din"})
    sections["train"] = Train(compile=True, checkpoint_activations=True)
    assert len(contradictions(sections)) == 2


def test_compiled_halves_serve_all_layers_and_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph with all tokens put out and one with some, each before and after attention: not one a batch or layer."""
    from torch._dynamo import reset, utils

    from model import block

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: compiler(*a, **k, backend="eager"))
    block._compiled_halves.cache_clear()
    reset()
    try:
        ranker = build_ranker(make_spec(), make_config()).float()
        graphs = []
        for seed, lengths in enumerate(([5, 0, 8], [3, 7, 1], [8, 8, 8], [2, 4, 6], [1, 1, 9])):
            batch = make_input(make_spec(), {"seen": lengths}, [1 + seed, 2, 3], seed)
            set_compute(ranker, Compute(compiled=True))
            found = ranker(batch)
            found.sum().backward()
            set_compute(ranker, Compute(fused=False))
            torch.testing.assert_close(found, ranker(batch))
            graphs.append(utils.counters["stats"]["unique_graphs"])
        assert graphs[-1] == graphs[1] <= 4
    finally:
        block._compiled_halves.cache_clear()
        reset()
