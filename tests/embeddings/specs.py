"""Short table specs for tests."""

from __future__ import annotations

from embeddings.specs import TableSpec


def spec(name: str, rows: int, width: int, sharding: str, *, mapping: str = "hash", buckets: int = 0) -> TableSpec:
    return TableSpec(name, rows, width, mapping, buckets, sharding)  # type: ignore[arg-type]
