"""What fields cost a row: which field tokens there are, what each holds, multiplications and embedding bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from embeddings.plan_load import ASSUMED_CANDIDATES
from embeddings.plan_report import aligned, human_bytes
from embeddings.specs import TableSpec
from model.config import Model
from model.tokens import group_fields
from pipelines.reading import RowCost
from pipelines.schema import Schema
from trainer.layout import Layout
from trainer.plan_ids import Work
from trainer.row_work import WORK

SHOWN = 32  # tokens; plan.json has all


@dataclass(frozen=True)
class FieldToken:
    """width: of its fields' embeddings and dense values together."""

    fields: tuple[str, ...]
    width: int

    @property
    def named(self) -> str:
        """Thousands of fields are not listed: the first and the last of a token's."""
        return ", ".join(self.fields) if len(self.fields) < 4 else f"{self.fields[0]} … {self.fields[-1]}"


@dataclass(frozen=True)
class FieldCosts:
    """Of a row of `length` events and candidates, forward; the backward pass takes twice the multiplications.

    projections: multiplications from fields to field tokens. tower: of all else in the ranker. looked_up: ids whose
    vectors are read, a list of ids counted as one. bytes_read: their vectors'.
    """

    tokens: tuple[FieldToken, ...]
    dim: int
    projections: int
    tower: float
    looked_up: float
    bytes_read: float
    length: float

    def lines(self) -> list[str]:
        """As the plan prints them."""
        count = sum(len(token.fields) for token in self.tokens)
        told = [
            f"fields    {count:,} static field(s) in {len(self.tokens)} field token(s)",
            f"a row     {_millions(self.projections)} multiplications from fields to tokens, "
            f"{_millions(self.tower)} in the rest of the tower, forward; {self.looked_up:,.0f} vectors looked up, "
            f"{human_bytes(self.bytes_read)} "
            f"(with {self.length:,.0f} events and candidates; a list of ids counted as one)",
        ]
        if any(len(token.fields) > 1 for token in self.tokens):
            body = [
                [
                    str(number),
                    f"{len(token.fields):,}",
                    f"{token.width:,}",
                    f"{token.width * self.dim:,}",
                    token.named,
                ]
                for number, token in enumerate(self.tokens[:SHOWN])
            ]
            head = ["token", "fields", "inputs", "multiplications/row", "which"]
            told += ["", *aligned([head, *body], right={0, 1, 2, 3})]
            hidden = len(self.tokens) - SHOWN
            told += [f"… and {hidden} more, in --json"] if hidden > 0 else []
        return told

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "tokens": [{"fields": list(token.fields), "width": token.width} for token in self.tokens],
            "multiplications_per_row": {"projections": self.projections, "tower": round(self.tower)},
            "looked_up_per_row": round(self.looked_up, 1),
            "bytes_read_per_row": round(self.bytes_read),
        }


def field_costs(
    schema: Schema, specs: dict[str, TableSpec], layout: Layout, model: Model, cost: RowCost, work: Work
) -> FieldCosts:
    """Static columns are counted once a row, and those of events and candidates as often as a row has positions, dealt
    to the groups by their lengths in the schema."""
    widths = {field.name: field.width for field in layout.spec.static}
    groups = group_fields(list(widths), model.tokens)
    tokens = tuple(FieldToken(group, sum(widths[name] for name in group)) for group in groups)
    times = _times_a_row(schema, work)
    vectors = {name: times[column.group] for name, column in schema.columns.items() if name in layout.table_of}
    row_bytes = {name: _row_bytes(specs[layout.table_of[name]]) for name in vectors}
    projections = model.dim * sum(token.width for token in tokens)
    ranker = cost.fixed + cost.linear * work.length + cost.quadratic * work.length_squared
    return FieldCosts(
        tokens=tokens,
        dim=model.dim,
        projections=projections,
        tower=max(0.0, ranker - projections) if model.kind in WORK else ranker,
        looked_up=sum(vectors.values()),
        bytes_read=sum(count * row_bytes[name] for name, count in vectors.items()),
        length=work.length,
    )


def _row_bytes(spec: TableSpec) -> int:
    return int(spec.width * spec.torch_dtype.itemsize)


def _times_a_row(schema: Schema, work: Work) -> dict[str, float]:
    """Positions of each group in a row: the row's length, dealt as plans without data assume it."""
    lengths = {f"history.{name}": history.max_length / 2 for name, history in schema.histories.items()}
    if schema.supervision == "candidates":
        lengths["candidates"] = ASSUMED_CANDIDATES
    total = sum(lengths.values())
    return {"": 1.0} | {group: work.length * length / total for group, length in lengths.items()}


def _millions(count: float) -> str:
    return f"{count / 1e6:,.2f} M"
