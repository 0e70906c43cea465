"""Hundreds of tables are looked up and trained as each alone would be, whatever the order of their keys, and the trace
that pipelining needs does not grow with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchrec import EmbeddingCollection

from embeddings.specs import MISSING_ROW, RESERVED_ROWS, UNKNOWN_ROW, TableSpec, seed_of
from embeddings.stateless import StatelessMap
from embeddings.tables import table_groups
from pipelines.batch import Int64
from pipelines.hashing import mix
from pipelines.schema import MISSING_ID
from tests.distributed.ranks import run_ranks
from tests.embeddings.many_tables import STEPS, Loss, Many, look_up, many_specs, reference
from tests.embeddings.specs import spec

TABLES = 300
WORLD_SIZE = 2


@pytest.fixture(scope="module")
def looked_up() -> list[dict[str, Any]]:
    """Per rank."""
    return run_ranks(look_up, WORLD_SIZE, TABLES, timeout=150)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("order", ["planned", "given"])
def test_every_table_is_looked_up_and_trained_as_if_alone(looked_up: list[dict[str, Any]], order: str) -> None:
    expected = reference(many_specs(TABLES), WORLD_SIZE)
    for rank, found in enumerate(looked_up):
        _, steps, _ = found[order]
        for step in range(STEPS):
            assert steps[step].keys() == expected[step][rank].keys()
            for table, rows in expected[step][rank].items():
                torch.testing.assert_close(steps[step][table], rows, rtol=0, atol=1e-6)


def test_the_order_of_keys_changes_no_bit_of_what_is_looked_up(looked_up: list[dict[str, Any]]) -> None:
    for found in looked_up:
        (planned, one, _), (given_order, other, _) = found["planned"], found["given"]
        assert planned != given_order  # else the slower way would not be tested
        assert all(torch.equal(a[table], b[table]) for a, b in zip(one, other, strict=True) for table in a)


def test_every_collection_is_pipelined(looked_up: list[dict[str, Any]]) -> None:
    groups = table_groups(many_specs(TABLES))
    assert all(found[order][2] == len(groups) for found in looked_up for order in ("planned", "given"))


class _Tracer(torch.fx.Tracer):
    """Stops where TorchRec's does: at what is sharded, and at modules that hold nothing sharded."""

    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(module, EmbeddingCollection | Loss)


def test_the_trace_does_not_grow_with_the_number_of_tables() -> None:
    few, many = (len(_Tracer().trace(Many(many_specs(count))).nodes) for count in (10, 1000))
    assert few == many


def _alone(table: TableSpec, ids: Int64) -> Int64:
    """The documented rule, for one table."""
    slots = table.rows - RESERVED_ROWS
    if table.mapping == "hash":
        rows = (mix(ids, seed_of("hash", table.name)) % np.uint64(slots)).astype(np.int64) + RESERVED_ROWS
    else:
        rows = np.where((ids >= 0) & (ids < slots), ids + RESERVED_ROWS, UNKNOWN_ROW)
    return np.where(ids == MISSING_ID, MISSING_ROW, rows)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tables=st.integers(1, 30))
def test_ids_of_many_tables_are_mapped_as_those_of_one(seed: int, tables: int) -> None:
    rng = np.random.default_rng(seed)
    specs = {
        f"t{k}": spec(f"t{k}", int(rng.integers(3, 2**40)), 4, "auto", mapping=("hash", "identity")[rng.integers(2)])
        for k in range(tables)
    }
    ids = {}
    for name, table in specs.items():
        drawn = rng.integers(-(2**63), 2**63, int(rng.integers(0, 9)))
        ids[name] = np.concatenate([drawn, np.array([MISSING_ID, -1, 0, table.rows - 3, table.rows - 2])])
        ids[name] = ids[name][: int(rng.integers(0, len(ids[name]) + 1))]
    found = StatelessMap(specs).rows_of(ids)
    assert found.keys() == ids.keys()
    for name, given_ids in ids.items():
        np.testing.assert_array_equal(found[name], _alone(specs[name], given_ids))
        assert found[name].dtype == np.int64
