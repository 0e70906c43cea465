"""Which static columns reach the ranker side by side, so that thousands of fields are few tensors.

A block is the columns of one field token that come out of one place: a group of tables (its lists apart from its single
values), or the dense values and vectors. Its columns stand in the token's order. Tokens of a single column need none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embeddings.specs import TableSpec
from embeddings.tables import table_groups
from model.config import Tokens
from model.tokens import group_fields
from pipelines.batch import Float32
from pipelines.schema import TABLE_KINDS, Schema
from trainer.group_index import Block
from trainer.layout import Layout


@dataclass(frozen=True)
class FieldBlocks:
    """In the order of the field tokens, at most one a place and token."""

    looked_up: tuple[Block, ...] = ()
    dense: tuple[Block, ...] = ()


def field_blocks(schema: Schema, specs: dict[str, TableSpec], layout: Layout, tokens: Tokens) -> FieldBlocks:
    """Of a run file's schema and `[model.tokens]`."""
    group_of = {table: group for group, tables in table_groups(specs).items() for table in tables}
    found: tuple[list[Block], list[Block]] = ([], [])
    for fields in group_fields([field.name for field in layout.spec.static], tokens):
        places: dict[tuple[str, bool], list[str]] = {}
        for column in (layout.static[field] for field in fields):
            kind = schema.columns[column].kind
            looked_up = kind in TABLE_KINDS
            place = group_of[schema.table_of(column)] if looked_up else ""
            places.setdefault((place, kind == "ids"), []).append(column)
        for (place, _), columns in places.items():
            if len(columns) > 1:
                found[not place].append(tuple(columns))
    return FieldBlocks(tuple(found[0]), tuple(found[1]))


def dense_parts(dense: dict[str, Float32], blocks: tuple[Block, ...]) -> dict[Block | str, Float32]:
    """A batch's dense values: {column: [P] or [P, size]}, and of each block [R, ΣW]."""
    in_blocks = {column for block in blocks for column in block}
    found: dict[Block | str, Float32] = {name: values for name, values in dense.items() if name not in in_blocks}
    for block in blocks:
        found[block] = np.concatenate([_matrix(dense[column]) for column in block], axis=1)
    return found


def _matrix(values: Float32) -> Float32:
    return values[:, None] if values.ndim == 1 else values
