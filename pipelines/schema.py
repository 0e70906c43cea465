"""What the columns of a request-row Parquet file mean: the `[schema]` of a run file.

One column has one role and one kind. List columns name their group (`history.NAME` or `candidates`); the rest are
static, one value (or, for `ids` and `vector`, one list) a row.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Role = Literal["user", "context", "item", "action", "label", "weight", "time", "request", "key"]
Kind = Literal["id", "ids", "bucket", "dense", "vector", "time"]
INPUT_ROLES: tuple[Role, ...] = ("user", "context", "item", "action")
TABLE_KINDS: tuple[Kind, ...] = ("id", "ids", "bucket")

# The id of a null, in every table: it has a row of its own (embeddings/idmap.py).
MISSING_ID = -(2**63)


class Frozen(BaseModel):
    """Typed, frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Column(Frozen):
    """One Parquet column.

    role:   what it is to the model: user, context and item are inputs; an action is known only after its event; label,
            weight, time and request are what they say; a key is carried along but never an input.
    kind:   id (integer or string), ids (a list of them), bucket (a number cut at `boundaries` into ids 0…n), dense (one
            float), vector (`size` floats), time (timestamp, or an integer in the schema's time_unit).
    group:  "" for a static column, "history.NAME" or "candidates" for a list column.
    table:  embedding table of an id, ids or bucket column; by default the column's own name, or that of `shares`.
    shares: for a history column, the candidate column it is the same thing as: same table, same place in the token.
    source: column of the event log that `data prepare` fills it from; by default the column's own name.
    boundaries: of a bucket, ascending: n of them make n + 1 buckets, a value on a boundary belongs to the one above.
    size:   floats of a vector.
    max_id: of id and ids columns of integers: larger ids, and negative ones, are bad rows; absent = any 64-bit id.
    default: value where a file lacks the column, as older files do; without one every file must have it.
    train_only: known in training only (the position of an ad).
    serve_as: of a train_only column: what stands in its place in evaluation and serving.
    """

    role: Role
    kind: Kind
    group: str = ""
    table: str = ""
    shares: str = ""
    source: str = ""
    boundaries: tuple[float, ...] = ()
    size: int = Field(default=0, ge=0)
    max_id: int | None = Field(default=None, ge=0)
    default: int | float | str | None = None
    train_only: bool = False
    serve_as: int | float | str | None = None


class History(Frozen):
    """A named behaviour history: list columns of one length, oldest first.

    max_length:  events kept, the newest ones.
    time:        its column of event times (role time).
    action_time: column of the times from which the actions are known; "" = the event's own time.
    """

    max_length: int = Field(gt=0)
    time: str
    action_time: str = ""


class Task(Frozen):
    """A label to predict.

    label:      column of 0, 1 or null (null = not observed: weight 0). Empty for a product.
    weight:     column of example weights; "" = 1.
    space:      label column that must be 1 for this task to count (conversion given click); "" = everywhere.
    loss_weight: weight in the loss.
    product_of: tasks whose probabilities multiply to this one's (pCTCVR = pCTR · pCVR); it is then scored against
                `label`.
    """

    label: str
    weight: str = ""
    space: str = ""
    loss_weight: float = Field(default=1.0, ge=0)
    product_of: tuple[str, ...] = ()


class Schema(Frozen):
    """`[schema]`: what the columns mean. Held against itself by `check_schema`, against the files by footers.py.

    file:        a TOML file that holds the schema, relative to the run file; "" = it is here.
    user:        column that names the user: rows are ordered by its hash, GAUC averages over it.
    supervision: "candidates" (paper: NIO): labels are lists of group candidates. "history" (paper: UC): labels are
                 lists of the group of `supervised_history`, and every state token of weight > 0 is predicted.
    supervised_history: name of that history; "" with "candidates".
    ties:        "exclude": an action is unseen at its own timestamp. "order": rows and events of one timestamp are
                 ordered by a stated key (see data.prepare), and what comes earlier in that order is known.
    time_unit:   of integer time columns. Everything downstream is int64 microseconds since 1970.
    """

    file: str = ""
    user: str = ""
    supervision: Literal["candidates", "history"] = "candidates"
    supervised_history: str = ""
    ties: Literal["exclude", "order"] = "exclude"
    time_unit: Literal["s", "ms", "us"] = "s"
    columns: dict[str, Column] = {}
    histories: dict[str, History] = {}
    tasks: dict[str, Task] = {}

    @property
    def supervised_group(self) -> str:
        """Group of the labels."""
        return "candidates" if self.supervision == "candidates" else f"history.{self.supervised_history}"

    def static(self) -> dict[str, Column]:
        """Columns without a group, in file order."""
        return {name: c for name, c in self.columns.items() if not c.group}

    def candidates(self) -> dict[str, Column]:
        """Columns of the candidate lists."""
        return {name: c for name, c in self.columns.items() if c.group == "candidates"}

    def history(self, history: str) -> dict[str, Column]:
        """Columns of one named history."""
        return {name: c for name, c in self.columns.items() if c.group == f"history.{history}"}

    def table_of(self, column: str) -> str:
        """Embedding table that a column's ids live in."""
        spec = self.columns[column]
        if spec.table:
            return spec.table
        return self.table_of(spec.shares) if spec.shares else column

    def column_with_role(self, role: Role, group: str = "") -> str | None:
        """The one column of a group with this role, or None."""
        return next((n for n, c in self.columns.items() if c.role == role and c.group == group), None)

    def table_columns(self) -> dict[str, list[str]]:
        """{table: its columns}, in column order: columns that are model inputs and hold ids."""
        tables: dict[str, list[str]] = {}
        for name, spec in self.columns.items():
            if spec.role in INPUT_ROLES and spec.kind in TABLE_KINDS:
                tables.setdefault(self.table_of(name), []).append(name)
        return tables
