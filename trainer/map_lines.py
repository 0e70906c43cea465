"""What a run says of its tables' ids when training ends: a line a table."""

from __future__ import annotations

import logging

import torch.distributed as dist

from embeddings.idmap import IdMapper
from embeddings.map_stats import MapStats
from trainer.runtime import Runtime

log = logging.getLogger(__name__)

MOST_LINES = 12
MOST_NAMES = 6
WORTH_SAYING = 0.01  # of a hash table's ids


def log_maps(mapper: IdMapper, runtime: Runtime) -> None:
    """Collective; rank 0 speaks. Tables with buckets first, then hash tables by what they share; a thousand tables do
    not get a thousand lines."""
    own = mapper.stats(whole=True)
    everywhere: list[dict[str, MapStats] | None] = [None] * runtime.world_size if runtime.is_first else []
    if runtime.world_size == 1:
        everywhere = [own]
    else:
        dist.gather_object(own, everywhere if runtime.is_first else None, group=runtime.control, group_dst=0)
    if not runtime.is_first:
        return
    of_ranks = [each for each in everywhere if each is not None]
    stats = {name: sum((each[name] for each in of_ranks), MapStats()) for name in own}
    lines = map_lines(mapper, stats)
    for line in lines[:MOST_LINES]:
        log.info("%s", line)
    if len(lines) > MOST_LINES:
        log.info("ids: %d more tables, each with less to say", len(lines) - MOST_LINES)


def map_lines(mapper: IdMapper, stats: dict[str, MapStats]) -> list[str]:
    """stats: {table: sums over ranks}."""
    bucketed = {name: spec for name, spec in mapper.specs.items() if spec.is_bucketed}
    hashed = [name for name, spec in mapper.specs.items() if spec.mapping == "hash" and stats[name].sampled_ids]
    lines = []
    for name, spec in sorted(bucketed.items(), key=lambda item: -stats[item[0]].fill):
        told = stats[name]
        evicted = f", {told.evictions:,} evicted ({spec.evict})" if spec.mapping == "managed" else ""
        lines.append(
            f"ids of {name} ({spec.mapping}): {told.fill:.1%} of {told.rows:,} rows in use · {told.admissions:,} "
            f"admitted{evicted} · {told.unknown_rate:.1%} of a batch's unique ids unknown at last"
        )
    roomy = [name for name in hashed if stats[name].collision_rate < WORTH_SAYING]
    for name in sorted(set(hashed) - set(roomy), key=lambda name: (-stats[name].collision_rate, name)):
        told = stats[name]
        lines.append(
            f"ids of {name} (hash): {told.collision_rate:.1%} of the ids share one of {mapper.specs[name].rows:,} rows "
            f"with another, as far as looked at ({told.sampled_ids:,} ids)"
        )
    if roomy:
        names = f"{', '.join(roomy[:MOST_NAMES])}{f' and {len(roomy) - MOST_NAMES} more' if roomy[MOST_NAMES:] else ''}"
        lines.append(f"ids of {names} (hash): under {WORTH_SAYING:.0%} share a row with another, as far as looked at")
    return lines
