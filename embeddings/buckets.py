"""Which bucket an id belongs to, and how a bucket's parts lie in memory."""

from __future__ import annotations

import numpy as np

from embeddings.specs import TableSpec, seed_of
from pipelines.batch import Int64
from pipelines.hashing import GOLDEN, mix


def bucket_of(spec: TableSpec, ids: Int64) -> Int64:
    """The bucket of each id: a hash, for ever the same."""
    return (mix(ids, seed_of("bucket", spec.name)) % np.uint64(spec.buckets)).astype(np.int64)


def bucket_salt(table: str) -> int:
    """What the kernels add to an id before they mix it, for the very hash of `bucket_of`; as a signed integer."""
    salt = (seed_of("bucket", table) + 1) * GOLDEN % 2**64
    return salt - 2**64 if salt >= 2**63 else salt


def sums_of(ids: list[Int64], counts: list[Int64]) -> tuple[Int64, Int64]:
    """Several lists of ids and their counts → the ids ascending, each once, and its counts' sum."""
    all_ids, all_counts = np.concatenate(ids), np.concatenate(counts)
    if (all_ids[1:] > all_ids[:-1]).all():
        return all_ids, all_counts
    order = np.argsort(all_ids, kind="stable")
    ordered = all_ids[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    return ordered[first], np.add.reduceat(all_counts[order], first)


def by_bucket(bucket: Int64) -> Int64:
    """A stable order that brings each bucket's ids together."""
    small = bucket.astype(np.uint16) if len(bucket) and bucket.max() < 1 << 16 else bucket  # NumPy's radix sort
    return np.argsort(small, kind="stable")
