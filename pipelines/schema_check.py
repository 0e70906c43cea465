"""Whether a `[schema]` is consistent with itself: every contradiction, one line each: value → rule → remedy."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.schema import INPUT_ROLES, TABLE_KINDS, Column, Schema

KINDS_OF_ROLE = {
    "label": ("dense",),
    "weight": ("dense",),
    "time": ("time",),
    "request": ("id",),
    "key": ("id", "ids", "bucket", "dense", "vector", "time"),
} | dict.fromkeys(INPUT_ROLES, ("id", "ids", "bucket", "dense", "vector"))


def check_schema(schema: Schema) -> list[str]:
    """All problems of a schema; files are not looked at (pipelines.footers does). Empty = consistent."""
    columns = [line for name, column in schema.columns.items() for line in _column(schema, name, column)]
    return [*columns, *_tables(schema), *_user(schema), *_histories(schema), *_supervision(schema), *_tasks(schema)]


def _column(schema: Schema, name: str, column: Column) -> Iterator[str]:
    """Rules that one column breaks."""
    what = f"column '{name}'"
    kinds = KINDS_OF_ROLE[column.role]
    if column.kind not in kinds:
        yield (
            f"{what}: role {column.role}, kind {column.kind} → its kind is {' or '.join(kinds)}"
            " → change the kind or the role"
        )
    groups = ["candidates", *(f"history.{history}" for history in schema.histories)]
    if column.group and column.group not in groups:
        yield (
            f"{what}: group '{column.group}' → groups are {', '.join(groups)}"
            f" → correct it, or describe the history in [schema.histories]"
        )
    yield from _kind(what, column)
    if column.role == "action" and not column.group.startswith("history."):
        yield (
            f"{what}: role action outside a history → an action is known only after its event"
            " → make it a label, or a key"
        )
    if column.role == "user" and column.group:
        yield (
            f"{what}: role user in group {column.group} → a user's fields are static"
            " → role context or item, or no group"
        )
    if column.role == "request" and column.group:
        yield f"{what}: role request in group {column.group} → a row is one request → take its group away"
    if column.train_only and column.serve_as is None:
        yield f"{what}: train_only without serve_as → evaluation and serving need a stated value → add serve_as"
    if column.serve_as is not None and not column.train_only:
        yield (
            f"{what}: serve_as without train_only → it replaces what only training knows"
            " → add train_only, or drop serve_as"
        )
    for key, value in (("default", column.default), ("serve_as", column.serve_as)):
        if isinstance(value, str) and column.kind not in ("id", "ids"):
            yield f"{what}: {key} = '{value}' for kind {column.kind} → it is a number there → give a number"
        if column.kind in ("id", "ids") and isinstance(value, float):
            yield f"{what}: {key} = {value} for kind {column.kind} → ids are integers or strings → give one of them"
    if column.shares:
        yield from _shares(schema, what, column)


def _kind(what: str, column: Column) -> Iterator[str]:
    if column.kind == "vector" and not column.size:
        yield f"{what}: vector without size → its length is fixed → add size"
    if column.kind != "vector" and column.size:
        yield (
            f"{what}: size = {column.size} for kind {column.kind} → only vectors have one"
            " → drop it, or make it a vector"
        )
    ascending = all(low < high for low, high in zip(column.boundaries, column.boundaries[1:], strict=False))
    if column.kind == "bucket" and not (column.boundaries and ascending):
        yield (
            f"{what}: boundaries {list(column.boundaries)} → a bucket is cut at ascending numbers"
            " → give them in order, each once"
        )
    if column.kind != "bucket" and column.boundaries:
        yield f"{what}: boundaries for kind {column.kind} → only buckets have them → drop them, or make it a bucket"


def _shares(schema: Schema, what: str, column: Column) -> Iterator[str]:
    other = schema.columns.get(column.shares)
    group = schema.supervised_group
    if other is None or other.group != group or not column.group.startswith("history.") or column.group == group:
        yield (
            f"{what}: shares '{column.shares}' → a history column shares a column of group {group}"
            " → name one of those, or drop it"
        )
    elif other.kind != column.kind:
        yield (
            f"{what} is {column.kind} and shares '{column.shares}', {other.kind} → the same thing has one kind"
            " → make them alike"
        )
    elif other.size != column.size:
        yield (
            f"{what}: size = {column.size} and shares '{column.shares}' of size {other.size}"
            " → the same thing has one length → make them alike"
        )
    elif other.shares:
        yield f"{what}: shares '{column.shares}', which shares '{other.shares}' → name the candidate column itself"


def _tables(schema: Schema) -> Iterator[str]:
    """Tables whose columns cannot live together."""
    tables: dict[str, list[str]] = {}
    for name, column in schema.columns.items():
        if column.role not in INPUT_ROLES or column.kind not in TABLE_KINDS:
            if column.table:
                yield (
                    f"column '{name}': table '{column.table}' for role {column.role}, kind {column.kind}"
                    " → only inputs of ids have a table → drop it"
                )
        elif not column.shares or _is_plain(schema, column.shares):
            tables.setdefault(schema.table_of(name), []).append(name)
    for table, columns in tables.items():
        buckets = {
            schema.columns[name].boundaries if schema.columns[name].kind == "bucket" else None for name in columns
        }
        if len(buckets) > 1:
            yield (
                f"table '{table}' is shared by {columns}"
                " → bucket numbers and ids do not mix, and buckets share their boundaries"
                " → give the columns tables of their own"
            )


def _is_plain(schema: Schema, name: str) -> bool:
    return name in schema.columns and not schema.columns[name].shares


def _user(schema: Schema) -> Iterator[str]:
    column = schema.columns.get(schema.user)
    if column is None:
        yield f"schema.user = '{schema.user}' → names the column of the user → name one of [schema.columns]"
    elif column.kind != "id" or column.group:
        yield (
            f"schema.user = '{schema.user}' is {column.kind}{' in ' + column.group if column.group else ''}"
            " → the user is a static id → name such a column"
        )
    for role in ("time", "request"):
        static = [name for name, c in schema.static().items() if c.role == role]
        if len(static) > 1:
            yield f"columns {static} have role {role} → a row has one {role} → make the others keys"


def _histories(schema: Schema) -> Iterator[str]:
    for name, history in schema.histories.items():
        for key, wanted in (("time", history.time), ("action_time", history.action_time)):
            column = schema.columns.get(wanted)
            if (wanted or key == "time") and (
                column is None or column.role != "time" or column.group != f"history.{name}"
            ):
                yield (
                    f"histories.{name}: {key} = '{wanted}' → its events have times of their own"
                    f" → name a column of role time and group history.{name}"
                )
    if schema.ties == "order" and len(schema.histories) > 1:
        yield (
            f"ties = 'order' with histories {list(schema.histories)} → an order is of one list"
            " → keep one history, or ties = 'exclude'"
        )


def _supervision(schema: Schema) -> Iterator[str]:
    if schema.supervision == "candidates":
        if not schema.candidates():
            yield (
                "supervision = 'candidates' and no column of group candidates → labels are lists of it"
                " → add them, or supervision = 'history'"
            )
        if schema.column_with_role("time") is None:
            yield "supervision = 'candidates' and no static column of role time → a request has its time → add it"
        if schema.supervised_history:
            yield (
                f"supervised_history = '{schema.supervised_history}' with supervision = 'candidates'"
                " → it is for 'history' → drop it"
            )
        return
    if schema.supervised_history not in schema.histories:
        yield (
            f"supervised_history = '{schema.supervised_history}'"
            f" → supervision = 'history' predicts a history's events → name one of {list(schema.histories)}"
        )
    if schema.candidates():
        yield (
            f"columns {list(schema.candidates())} of group candidates → supervision = 'history' has none"
            " → drop them, or supervision = 'candidates'"
        )


def _tasks(schema: Schema) -> Iterator[str]:
    if not schema.tasks:
        yield "no [schema.tasks] → there is a label to predict → add [schema.tasks.NAME] with its label"
    group = schema.supervised_group
    for name, task in schema.tasks.items():
        if not task.label and not task.product_of:
            yield f"task '{name}' has no label → a task predicts a label column, or is a product_of others → name one"
        for key, wanted, role in (
            ("label", task.label, "label"),
            ("weight", task.weight, "weight"),
            ("space", task.space, "label"),
        ):
            column = schema.columns.get(wanted)
            if wanted and (column is None or column.role != role or column.group != group):
                found = "no such column" if column is None else f"role {column.role}, group '{column.group}'"
                yield (
                    f"task '{name}': {key} = '{wanted}' ({found}) → it is a column of role {role} in group {group}"
                    " → name one, or correct that"
                )
        strangers = [other for other in task.product_of if other not in schema.tasks]
        if strangers:
            yield f"task '{name}': product_of names {strangers} → factors are tasks: {list(schema.tasks)} → correct it"
        elif name in _factors(schema, name):
            yield (
                f"task '{name}': product_of leads back to itself → a product has other tasks as factors"
                " → break the circle"
            )


def _factors(schema: Schema, name: str) -> set[str]:
    """All tasks that enter a product, at any depth."""
    seen: set[str] = set()
    open_ = list(schema.tasks[name].product_of)
    while open_:
        task = open_.pop()
        if task not in seen and task in schema.tasks:
            seen.add(task)
            open_ += schema.tasks[task].product_of
    return seen
