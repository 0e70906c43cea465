"""Every way in which a schema can contradict itself is one line, and all come back at once."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.schema import Schema
from pipelines.schema_check import check_schema
from tests.pipelines.rows import COLUMNS, TASKS, make_history_schema, make_schema


def with_column(name: str, **changes: Any) -> Schema:
    return make_schema(columns=COLUMNS | {name: COLUMNS.get(name, {}) | changes})


def with_task(**changes: Any) -> Schema:
    return make_schema(tasks=TASKS | {"click": TASKS["click"] | changes})


HISTORIES = {"views": {"max_length": 4, "time": "v_time"}, "buys": {"max_length": 3, "time": "b_time"}}
CIRCLE = {
    "click": TASKS["click"] | {"product_of": ("order",)},
    "order": TASKS["order"] | {"product_of": ("click",)},
}
BAD: list[tuple[Schema, str]] = [
    (with_column("click", kind="id"), "role label, kind id"),
    (with_column("time", kind="dense"), "role time, kind dense"),
    (with_column("score", kind="time"), "role context, kind time"),
    (with_column("b_item", group="history.baskets"), "group 'history.baskets'"),
    (with_column("score", role="action"), "role action outside a history"),
    (with_column("click", role="action", kind="id"), "role action outside a history"),
    (with_column("item", role="user"), "role user in group candidates"),
    (with_column("ips", role="request", kind="id"), "role request in group"),
    (with_column("slot", serve_as=None), "train_only without serve_as"),
    (with_column("late", serve_as=3), "serve_as without train_only"),
    (with_column("score", default="x"), "default = 'x'"),
    (with_column("late", default=0.5), "default = 0.5"),
    (with_column("profile", size=0), "vector without size"),
    (with_column("score", size=2), "size = 2"),
    (with_column("age", boundaries=(3.0, 1.0)), "boundaries [3.0, 1.0]"),
    (with_column("age", boundaries=()), "boundaries []"),
    (with_column("score", boundaries=(1.0,)), "boundaries for kind dense"),
    (with_column("v_item", shares="user_id"), "shares 'user_id'"),
    (with_column("v_item", shares="nothing"), "shares 'nothing'"),
    (with_column("v_item", shares="words"), "is id and shares 'words', ids"),
    (with_column("age", table="user_id"), "table 'user_id' is shared by ['user_id', 'age']"),
    (with_column("score", table="t"), "table 't' for role context, kind dense"),
    (make_schema(user="nobody"), "schema.user = 'nobody'"),
    (make_schema(user="score"), "schema.user = 'score' is dense"),
    (make_schema(user="item"), "in candidates"),
    (with_column("time2", role="time", kind="time"), "columns ['time', 'time2'] have role time"),
    (make_schema(histories=HISTORIES | {"views": {"max_length": 4, "time": "time"}}), "histories.views: time = 'time'"),
    (make_schema(histories=HISTORIES | {"buys": HISTORIES["buys"] | {"action_time": "x"}}), "action_time = 'x'"),
    (make_schema(ties="order"), "ties = 'order' with histories"),
    (with_column("time", role="key"), "no static column of role time"),
    (make_schema(supervised_history="views"), "it is for 'history'"),
    (make_schema(columns={"user_id": COLUMNS["user_id"]}), "no column of group candidates"),
    (make_history_schema(supervised_history="buys"), "supervised_history = 'buys'"),
    (make_history_schema(columns=COLUMNS), "of group candidates → supervision = 'history'"),
    (make_schema(tasks={}), "no [schema.tasks]"),
    (with_task(label=""), "task 'click' has no label"),
    (with_task(label="nothing"), "label = 'nothing' (no such column)"),
    (with_task(label="ips"), "label = 'ips' (role weight"),
    (with_task(weight="click"), "weight = 'click'"),
    (with_task(space="age"), "space = 'age'"),
    (with_task(product_of=("cvr",)), "product_of names ['cvr']"),
    (make_schema(tasks=CIRCLE), "'click': product_of leads back to itself"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "words"), BAD, ids=[words for _, words in BAD])
def test_a_contradiction_is_named(schema: Schema, words: str) -> None:
    problems = check_schema(schema)
    matching = [line for line in problems if words in line]
    assert matching, problems
    assert all(line.count(" → ") == 2 for line in problems)


def test_sound_schemas_have_no_problems() -> None:
    product = TASKS | {"both": {"label": "order", "product_of": ("click", "order")}}
    for schema in (make_schema(), make_history_schema(), make_history_schema(ties="order"), make_schema(tasks=product)):
        assert check_schema(schema) == []


def test_all_problems_come_back_at_once() -> None:
    columns = COLUMNS | {"age": COLUMNS["age"] | {"boundaries": ()}, "profile": COLUMNS["profile"] | {"size": 0}}
    assert len(check_schema(make_schema(columns=columns, user="nobody", tasks={}))) == 4
