"""A row's initial value is a function of (seed, table, row, column) alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from embeddings.init import fill, initial_rows, initialise
from embeddings.specs import seed_of
from embeddings.tables import Tables
from tests.embeddings.specs import spec

TABLE = spec("t", 3000, 16, "auto")


def _filled(name: str = "t", seed: int = 1) -> torch.Tensor:
    table = torch.empty(TABLE.rows, TABLE.width)
    fill(table, replace(TABLE, name=name), seed)
    return table


def test_any_cut_of_a_table_is_filled_alike_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _filled()
    monkeypatch.setattr("embeddings.init.CHUNK", 100)
    part = torch.empty(777, 8)
    fill(part, TABLE, 1, first_row=1234, first_column=4)
    assert torch.equal(part, whole[1234 : 1234 + 777, 4:12])


def test_values_are_uniform_and_bounded_by_the_width() -> None:
    values = _filled().flatten() * 4  # √16
    assert values.abs().max() <= 1
    counts = torch.histc(values, bins=20, min=-1, max=1)
    assert float((counts / counts.mean() - 1).abs().max()) < 0.1
    assert abs(float(torch.corrcoef(_filled()[:, :2].T)[0, 1])) < 0.06


def test_seeds_and_tables_differ() -> None:
    assert not torch.equal(_filled(seed=1), _filled(seed=2))
    assert not torch.equal(_filled("t"), _filled("u"))


def test_values_are_the_documented_generators() -> None:
    """Against plain Python integers."""
    values, mask, golden = _filled(seed=3), 2**64 - 1, 0x9E3779B97F4A7C15
    for row, column in [(0, 0), (0, 1), (7, 5), (2999, 15)]:
        z = (seed_of("init", "t") ^ (3 * golden)) + (row * 16 + column) * golden & mask
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        z ^= z >> 31
        assert float(values[row, column]) == ((z >> 40) * 2.0**-24 * 2 - 1) / 4


@pytest.mark.parametrize("init", ["uniform", "normal", "zeros"])
def test_a_half_precision_table_starts_from_the_same_values_rounded(init: Any) -> None:
    single, half, brain = (torch.empty(500, 16, dtype=t) for t in (torch.float32, torch.float16, torch.bfloat16))
    for table in (single, half, brain):
        fill(table, replace(TABLE, init=init), 1)
    assert torch.equal(half, single.half())
    assert torch.equal(brain, single.bfloat16())
    part = torch.empty(100, 8, dtype=torch.float16)
    fill(part, replace(TABLE, init=init), 1, first_row=300, first_column=8)
    assert torch.equal(part, half[300:400, 8:])


def test_a_normal_start_has_the_stated_deviation() -> None:
    table = torch.empty(3000, 16)
    fill(table, replace(TABLE, init="normal", init_scale=2.0), 1)
    values = table.flatten() / (2.0 / 4)  # √16
    assert abs(float(values.mean())) < 0.02
    assert abs(float(values.std()) - 1) < 0.02
    assert abs(float((values.abs() < 1).float().mean()) - 0.6827) < 0.01
    assert 3.5 < float(values.abs().max()) < 6


def test_any_number_of_threads_fills_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _filled()
    monkeypatch.setattr("embeddings.cpu_rows.ROWS_PER_THREAD", 100)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    assert torch.equal(_filled(), whole)


def test_a_table_that_the_module_lacks_is_an_error() -> None:
    with pytest.raises(ValueError, match="'t' is not in the module"):
        initialise(nn.Linear(2, 2), {"t": TABLE}, seed=1)


def test_unsharded_tables_are_filled_in_place() -> None:
    tables = Tables({"t": TABLE}, device="cpu")
    initialise(tables, {"t": TABLE}, seed=1)
    assert torch.equal(next(tables.parameters()), _filled())


@pytest.mark.parametrize("init", ["uniform", "normal", "zeros"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_single_rows_have_the_values_that_they_had_at_the_start(init: Any, dtype: Any) -> None:
    table = replace(TABLE, init=init, dtype=dtype)
    whole = torch.empty(table.rows, table.width, dtype=table.torch_dtype)
    fill(whole, table, 1)
    rows, columns = torch.tensor([2999, 0, 17]), torch.arange(4, 12)
    assert torch.equal(initial_rows(table, 1, rows, columns).to(whole.dtype), whole[rows][:, 4:12])
