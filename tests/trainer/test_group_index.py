"""Fields rebuilt a group at a time are, to the bit, what a plain lookup of every column alone gives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec import KeyedJaggedTensor

from embeddings.tables import group_kjts
from pipelines.batch import FieldIds, Int32
from trainer.group_index import group_indices

WIDTHS = {"narrow": 4, "wide": 8, "unused": 4}


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # as the trainer runs on CPU
    yield
    torch.use_deterministic_algorithms(False)


def _lengths(rng: np.random.Generator, values: int, positions: int) -> Int32:
    """That many values dealt to positions, some of them empty."""
    return np.bincount(rng.integers(0, positions, values), minlength=positions).astype(np.int32)


def _case(
    seed: int, tables: int, fields: int, shared: bool
) -> tuple[dict[str, list[str]], dict[str, torch.Tensor], dict[str, FieldIds]]:
    """Groups, rows {table: [U, W]} and columns: of one value and lists, some tables and columns empty, orders mixed."""
    rng = np.random.default_rng(seed)
    groups: dict[str, list[str]] = {group: [] for group in WIDTHS}
    rows: dict[str, torch.Tensor] = {}
    for k in rng.permutation(tables):
        group = ("narrow", "wide")[int(rng.integers(2))]
        groups[group].append(f"t{k}")
        unique = int(rng.integers(0, 7))
        rows[f"t{k}"] = torch.from_numpy(rng.normal(size=(unique, WIDTHS[group])).astype(np.float32))
    columns = {}
    for k in range(fields if shared else tables):
        table = f"t{rng.integers(tables) if shared else k}"
        values = int(rng.integers(0, 30)) if len(rows[table]) else 0
        inverse = rng.integers(0, max(1, len(rows[table])), values, dtype=np.int32)
        lengths = _lengths(rng, values, int(rng.integers(1, 9))) if rng.random() < 0.5 else None
        columns[f"c{k}"] = FieldIds(table, inverse, lengths)
    return groups, rows, columns


def _kjts(groups: dict[str, list[str]], rows: dict[str, torch.Tensor]) -> dict[str, KeyedJaggedTensor]:
    """What would look these rows up."""
    used = {group: tables for group, tables in groups.items() if tables}
    return group_kjts(used, {table: np.arange(len(found)) for table, found in rows.items()})


def _plain(field: FieldIds, rows_UW: torch.Tensor) -> torch.Tensor:
    """One column by itself."""
    values_VW = rows_UW.index_select(0, torch.from_numpy(field.inverse).long())
    if field.lengths is None:
        return values_VW
    lengths = torch.from_numpy(field.lengths).long()
    segments = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    sums_PW = torch.zeros(len(lengths), rows_UW.shape[1]).index_add(0, segments, values_VW)
    return sums_PW / lengths.clamp(min=1).unsqueeze(1)


def _loss(found: dict[str, torch.Tensor]) -> torch.Tensor:
    """Another gradient for every cell."""
    terms = [(column * torch.arange(1.0, column.numel() + 1).view_as(column).cos()).sum() for column in found.values()]
    return torch.stack(terms).sum()


def _both(
    groups: dict[str, list[str]], rows: dict[str, torch.Tensor], columns: dict[str, FieldIds]
) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """(columns, gradients of tables) by groups, and one by one."""
    joined, leaves = {}, {}
    for group, tables in groups.items():
        leaves |= {table: rows[table].clone().requires_grad_() for table in tables}
        joined[group] = torch.cat([leaves[t] for t in tables]) if tables else torch.zeros(0, WIDTHS[group])
    by_group: dict[str, torch.Tensor] = {}
    for group, index in group_indices(columns, _kjts(groups, rows)).items():
        by_group |= index.columns(joined[group])
    alone = {table: found.clone().requires_grad_() for table, found in rows.items()}
    one_by_one = {name: _plain(field, alone[field.table]) for name, field in columns.items()}
    results = []
    for found, tables_rows in ((by_group, leaves), (one_by_one, alone)):
        _loss({name: found[name] for name in columns}).backward()
        gradients = {t: r.grad if r.grad is not None else torch.zeros_like(r) for t, r in tables_rows.items()}
        results.append((found, gradients))
    return results


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tables=st.integers(1, 12))
def test_groups_give_what_columns_alone_give_to_the_bit(seed: int, tables: int) -> None:
    (found, gradients), (expected, expected_gradients) = _both(*_case(seed, tables, tables, shared=False))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(torch.equal(gradients[table], expected_gradients[table]) for table in expected_gradients)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tables=st.integers(1, 4), fields=st.integers(1, 12))
def test_columns_that_share_a_table_add_their_gradients_up(seed: int, tables: int, fields: int) -> None:
    """In one sum over all of them, so to the last place only."""
    (found, gradients), (expected, expected_gradients) = _both(*_case(seed, tables, fields, shared=True))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for table, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[table], gradient, rtol=0, atol=1e-5)


def test_a_thousand_columns_are_one_lookup_and_repeat_to_the_bit() -> None:
    case = _case(5, 1000, 1000, shared=False)
    first, again = _both(*case), _both(*case)
    for (found, gradients), (found_again, gradients_again) in zip(first, again, strict=True):
        assert all(torch.equal(found[name], found_again[name]) for name in found)
        assert all(torch.equal(gradients[table], gradients_again[table]) for table in gradients)
    groups, rows, columns = case
    indices = group_indices(columns, _kjts(groups, rows))
    assert indices.keys() == {"narrow", "wide"}
    with torch.profiler.profile() as profile:
        for group, index in indices.items():
            index.columns(torch.cat([rows[table] for table in groups[group]]))
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["aten::index_select"] == calls["aten::index_add"] == 2
