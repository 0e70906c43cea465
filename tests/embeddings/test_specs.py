"""`[embeddings]` and the schema become tables, or one list of everything that is wrong."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from embeddings.config import Embeddings, Table
from embeddings.device_rules import check_device
from embeddings.errors import PlanError
from embeddings.specs import table_specs
from pipelines.schema import Column, Schema
from tests.embeddings.specs import spec

SCHEMA = Schema(
    columns={
        "user_id": Column(role="user", kind="id"),
        "city": Column(role="context", kind="id"),
        "age": Column(role="user", kind="bucket", boundaries=(18.0, 30.0, 50.0)),
        "item": Column(role="item", kind="id", group="candidates"),
        "h_item": Column(role="item", kind="id", group="history.clicks", shares="item"),
        "when": Column(role="time", kind="time"),
        "click": Column(role="label", kind="dense", group="candidates"),
        "trace": Column(role="key", kind="id"),
    }
)


def _config(**tables: dict[str, Any]) -> Embeddings:
    return Embeddings(default_rows=1000, width=16, buckets=8, tables={n: Table(**t) for n, t in tables.items()})


def test_every_id_column_that_is_an_input_has_a_table_and_shared_columns_one() -> None:
    specs = table_specs(SCHEMA, _config(city={"rows": 50, "width": 8, "mapping": "identity"}))
    assert list(specs) == ["user_id", "city", "age", "item"]
    assert specs["user_id"] == spec("user_id", 1000, 16, "auto")
    assert specs["city"] == spec("city", 50, 8, "auto", mapping="identity")


def test_a_bucketised_column_has_a_row_for_every_bucket_and_the_reserved_two() -> None:
    age = table_specs(SCHEMA, _config())["age"]
    assert (age.mapping, age.rows) == ("identity", 4 + 2)


def test_a_vocabularys_rows_are_whole_buckets_and_row_wise() -> None:
    item = table_specs(SCHEMA, _config(item={"mapping": "vocabulary", "rows": 1001, "buckets": 8}))["item"]
    assert (item.rows, item.buckets, item.rows_per_bucket, item.sharding) == (1008, 8, 126, "row_wise")


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8, 11])
def test_buckets_are_dealt_in_blocks_and_each_once(world_size: int) -> None:
    table = spec("t", 80, 8, "row_wise", mapping="vocabulary", buckets=8)
    dealt = [bucket for rank in range(world_size) for bucket in table.buckets_of_rank(rank, world_size)]
    assert dealt == list(range(8))


@pytest.mark.parametrize(
    ("width", "world_size", "expected"), [(16, 1, 16), (16, 2, 8), (16, 3, 8), (16, 4, 4), (12, 2, 4)]
)
def test_column_shards_are_multiples_of_four_that_divide_the_width(width: int, world_size: int, expected: int) -> None:
    assert spec("t", 10, width, "column_wise").split_width(world_size) == expected


def test_all_problems_are_reported_at_once() -> None:
    config = _config(
        itme={"rows": 10},
        item={"mapping": "vocabulary", "sharding": "column_wise"},
        city={"width": 6},
        age={"mapping": "hash", "rows": 77},
        user_id={"rows": 2, "buckets": 4},
    )
    with pytest.raises(PlanError) as caught:
        table_specs(SCHEMA, config)
    problems = caught.value.problems
    expected = [
        "itme",
        "it is row_wise: its buckets live",
        "width = 6",
        "make 6 rows",
        "are identity",
        "rows = 2",
        "buckets = 4",
    ]
    for words in expected:
        assert sum(words in problem for problem in problems) == 1, words
    assert len(problems) == len(expected)
    assert all("→" in problem and "\n" not in problem for problem in problems)
    assert pickle.loads(pickle.dumps(caught.value)).problems == problems


def test_a_bucketised_column_shares_its_table_with_nothing_else() -> None:
    columns = dict(SCHEMA.columns) | {"rank": Column(role="user", kind="id", table="age")}
    with pytest.raises(PlanError, match="same boundaries"):
        table_specs(Schema(columns=columns), _config())


def test_buckets_too_small_for_the_reserved_rows_are_refused() -> None:
    with pytest.raises(PlanError, match="at least 3 rows"):
        table_specs(SCHEMA, _config(item={"mapping": "vocabulary", "rows": 16, "buckets": 8}))


def test_a_tables_own_optimizer_settings_win_over_the_runs() -> None:
    own = {"optimizer": "adagrad", "lr": 0.5, "eps": 1e-3, "dtype": "fp16", "init": "zeros", "frozen": True}
    config = _config(item=own | {"weight_decay": 0.0}).model_copy(update={"weight_decay": 0.1})
    specs = table_specs(SCHEMA, config)
    assert all(getattr(specs["item"], key) == value for key, value in own.items())
    assert (specs["item"].weight_decay, specs["city"].weight_decay) == (0.0, 0.1)
    assert (specs["city"].optimizer, specs["city"].dtype, specs["city"].frozen) == ("rowwise_adagrad", "fp32", False)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_weight_decay_is_refused_where_fbgemm_has_none(optimizer: str) -> None:
    with pytest.raises(PlanError, match=r"'item': weight_decay = 0.1 with optimizer = .* → optimizer = 'rowwise"):
        table_specs(SCHEMA, _config(item={"optimizer": optimizer, "weight_decay": 0.1}))


def test_what_only_cuda_has_is_refused_on_cpu_all_at_once_with_what_cpu_has() -> None:
    tables = {
        "item": {"dtype": "bf16", "optimizer": "adam"},
        "city": {"optimizer": "adam"},
        "user_id": {"optimizer": "rowwise_adam"},
    }
    config = _config(**tables)
    specs = table_specs(SCHEMA, config)
    check_device(specs, config, "cuda")
    with pytest.raises(PlanError) as caught:
        check_device(specs, config, "cpu")
    asked, remedies = zip(*(problem.split(" on cpu → FBGEMM ") for problem in caught.value.problems), strict=True)
    assert asked == (
        "table 'user_id': optimizer = 'rowwise_adam'",
        "tables 'city', 'item': optimizer = 'adam'",
        "table 'item': dtype = 'bf16'",
    )
    assert [remedy.rsplit("→ ", 1)[1] for remedy in remedies] == [
        "optimizer = 'rowwise_adagrad'",
        "optimizer = 'adagrad'",
        "dtype = 'fp16', of the same size",
    ]


def test_bf16_on_the_wire_is_fp16_on_cpu_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    config = Embeddings(backward_codec="bf16")
    check_device({}, config, "cpu")
    assert [record.getMessage() for record in caplog.records] == [
        "embeddings.backward_codec = 'bf16' → gloo does not carry it → 'fp16' travels on CPU"
    ]


@pytest.mark.parametrize(
    ("tables", "whole", "words"),
    [
        ({"item": {"admit_after": 2}}, {}, "admit_after = 2 but mapping = 'hash'"),
        ({"item": {"mapping": "vocabulary", "evict": "lfu"}}, {}, "evict = 'lfu' but mapping = 'vocabulary'"),
        ({"item": {"mapping": "managed", "ttl_days": 7.0}}, {}, "only 'ttl' evicts by age"),
        ({"item": {"mapping": "managed", "kernel": "fused_uvm_caching"}}, {}, "the cache would keep"),
        ({}, {"evict": "lfu"}, "embeddings.evict = 'lfu' → no table has mapping = 'managed'"),
        ({"item": {"mapping": "managed"}}, {"ttl_days": 2.0}, "no table has mapping = 'managed' and evict = 'ttl'"),
        ({"item": {"mapping": "managed", "sharding": "table_wise"}}, {}, "it is row_wise"),
    ],
)
def test_settings_of_managed_tables_are_refused_where_they_do_nothing(
    tables: dict[str, Any], whole: dict[str, Any], words: str
) -> None:
    with pytest.raises(PlanError) as caught:
        table_specs(SCHEMA, _config(**tables).model_copy(update=whole))
    assert len(caught.value.problems) == 1
    assert words in caught.value.problems[0]


def test_a_managed_table_has_the_runs_policy_or_its_own() -> None:
    config = _config(item={"mapping": "managed"}, city={"mapping": "managed", "evict": "ttl", "ttl_days": 7.0})
    specs = table_specs(SCHEMA, config.model_copy(update={"evict": "lfu", "admit_after": 3}))
    assert (specs["item"].evict, specs["item"].admit_after) == ("lfu", 3)
    assert (specs["city"].evict, specs["city"].ttl_days, specs["city"].sharding) == ("ttl", 7.0, "row_wise")
