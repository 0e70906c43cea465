"""Training sharded tables, on real gloo ranks, is training the plain tables, under every sharding and optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from embeddings.init import fill, initialise
from embeddings.tables import Tables
from tests.embeddings.toy import FROZEN_STATE, MIXED, ROWLESS, ROWWISE, RUNS, SPECS, STEPS, reference, whole_tables

pytestmark = pytest.mark.timeout(400)  # the ranks start inside the first test


@pytest.fixture(scope="module")
def trained(on_ranks: dict[int, list[dict[str, Any]]]) -> dict[int, list[dict[str, Any]]]:
    """{world size: what each rank saw of every run}."""
    return {world_size: [rank["trained"] for rank in ranks] for world_size, ranks in on_ranks.items()}


def _whole(ranks: list[dict[str, Any]], run: str, when: str) -> dict[str, torch.Tensor]:
    return whole_tables(RUNS[run].specs, [rank[run][when] for rank in ranks])


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd"])
def test_sharded_training_equals_plain_training(trained: dict[int, list[dict[str, Any]]], optimizer: str) -> None:
    """Column-wise with row-wise Adagrad: against one state per column shard, which is what it keeps."""
    expected = reference(RUNS[optimizer].specs, STEPS, 2, column_shards={"hour": 2})
    for name, table in _whole(trained[2], optimizer, "after").items():
        torch.testing.assert_close(table, expected[name], rtol=0, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_tables_of_every_optimizer_and_dtype_train_as_plain_ones_side_by_side(
    trained: dict[int, list[dict[str, Any]]],
) -> None:
    """float16 tables: within a rounding or two of weights up to 1."""
    expected = reference(MIXED, STEPS, 2, column_shards={"ada32": 2, "row16": 2})
    before = _whole(trained[2], "mixed", "before")
    for name, table in _whole(trained[2], "mixed", "after").items():
        tolerance = {"fp32": 1e-6, "fp16": 1e-3}[MIXED[name].dtype]
        torch.testing.assert_close(table, expected[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
        moved = float((table - before[name]).abs().mean())
        assert moved == 0 if name == "frozen" else moved > 5 * tolerance, name


def test_a_frozen_table_keeps_every_bit_of_weights_and_state(trained: dict[int, list[dict[str, Any]]]) -> None:
    before, after = _whole(trained[2], "mixed", "before"), _whole(trained[2], "mixed", "after")
    assert torch.equal(before["frozen"], after["frozen"])
    states = [state for rank in trained[2] for state in rank["mixed"]["frozen_states"]]
    assert sum(len(state) for state in states) == MIXED["frozen"].rows
    assert all(bool((state == FROZEN_STATE).all()) for state in states)


@pytest.mark.parametrize(
    ("codec", "difference", "wire"), [("fp16", 1e-3, 0.5), ("bf16", 1e-3, 0.75), ("int8", 0.02, 0.5)]
)
def test_quantised_rows_train_within_a_bound_and_travel_in_fewer_bytes(
    trained: dict[int, list[dict[str, Any]]], codec: str, difference: float, wire: float
) -> None:
    """bf16 is of gradients only here, and travels as fp16 on CPU. int8: 24 bytes for a row of 16, 12 for `hour`'s
    shards of 4."""
    exact, quantised = _whole(trained[2], "rowwise_adagrad", "after"), _whole(trained[2], codec, "after")
    apart = max(float((quantised[name] - exact[name]).abs().max()) for name in SPECS)
    assert 0 < apart < difference
    sent = {run: sum(rank[run]["sent"] for rank in trained[2]) for run in (codec, "rowwise_adagrad")}
    assert sent[codec] <= wire * sent["rowwise_adagrad"]


def test_training_moves_the_tables_far_more_than_that_tolerance(trained: dict[int, list[dict[str, Any]]]) -> None:
    before, after = _whole(trained[2], "rowwise_adagrad", "before"), _whole(trained[2], "rowwise_adagrad", "after")
    assert all(float((after[name] - before[name]).abs().mean()) > 1e-2 for name in SPECS)


def test_buckets_that_the_ranks_do_not_divide_train_alike(trained: dict[int, list[dict[str, Any]]]) -> None:
    """5 buckets of 8 rows on 3 ranks: 2, 2 and 1 buckets."""
    placed = trained[3][0]["rowwise_adagrad"]["placements"]["user_table"]
    assert placed == [([0, 0], [16, 16], 0), ([16, 0], [16, 16], 1), ([32, 0], [8, 16], 2)]
    expected = reference(ROWWISE, STEPS, 3, column_shards={"hour": 2})
    for name, table in _whole(trained[3], "rowwise_adagrad", "after").items():
        torch.testing.assert_close(table, expected[name], rtol=0, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_ranks_without_a_row_keep_in_step(trained: dict[int, list[dict[str, Any]]]) -> None:
    """They look nothing up and update nothing, and still take their part in both exchanges."""
    held = [sum(len(rows) for _, _, rows in rank["rowless"]["after"]["user"]) for rank in trained[3]]
    assert held == [40, 0, 0]
    whole = whole_tables(ROWLESS.specs, [rank["rowless"]["after"] for rank in trained[3]])
    for name, expected in reference(ROWLESS.specs, STEPS, 3, column_shards={}).items():
        torch.testing.assert_close(whole[name], expected, rtol=0, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_the_optimizers_state_lies_where_the_rows_lie(trained: dict[int, list[dict[str, Any]]]) -> None:
    for ranks in trained.values():
        for rank in ranks:
            run = rank["rowwise_adagrad"]
            for name in ("items", "geo.city", "user"):
                assert run["states"][name] == [(row, len(rows)) for row, _, rows in run["after"][name]], name


def test_initial_values_are_the_same_under_every_plan(trained: dict[int, list[dict[str, Any]]]) -> None:
    unsharded = Tables(SPECS, device="cpu")
    initialise(unsharded, SPECS, seed=5)
    for name, table in SPECS.items():
        expected = torch.empty(table.rows, table.width)
        fill(expected, table, seed=5)
        for ranks in trained.values():
            assert torch.equal(_whole(ranks, "rowwise_adagrad", "before")[name], expected), name
        (plain,) = [p for key, p in unsharded.named_parameters() if p.shape == expected.shape and _is(key, name)]
        assert torch.equal(plain, expected), name


def _is(parameter: str, table: str) -> bool:
    return parameter.split(".")[-2] == table.replace(".", "%2E") + "_table"


def test_the_same_steps_twice_give_the_same_bits(trained: dict[int, list[dict[str, Any]]]) -> None:
    once, again = _whole(trained[2], "rowwise_adagrad", "after"), _whole(trained[2], "again", "after")
    assert all(torch.equal(once[name], again[name]) for name in SPECS)
    assert trained[2][0]["rowwise_adagrad"]["losses"] == trained[2][0]["again"]["losses"]


def test_every_collection_is_pipelined(trained: dict[int, list[dict[str, Any]]]) -> None:
    for ranks in trained.values():
        assert all(
            rank["rowwise_adagrad"]["pipelined"] == rank["rowwise_adagrad"]["collections"] == 3 for rank in ranks
        )
