"""`checkpoint verify`: whether a checkpoint is whole, and whether what is in it can be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from embeddings.held import Held
from embeddings.specs import RESERVED_ROWS, seed_of
from pipelines.batch import Int64
from pipelines.hashing import mix
from pipelines.schema import MISSING_ID
from trainer.checkpoint import manifest
from trainer.checkpoint.folder import name_of
from trainer.checkpoint.reading import SavedTensors
from trainer.checkpoint_verbs.source import Found, check_files, open_checkpoint, state_of
from trainer.errors import CheckpointError

BLOCK_BYTES = 1 << 24
EXAMPLES = 3  # of what is wrong, in a line


@dataclass(frozen=True)
class Verified:
    """What was looked at. files, bytes: of the checkpoint and what it is built on. damages: a line each, value → rule →
    remedy."""

    name: str
    step: int
    kind: str
    files: int
    bytes: int
    tensors: int
    id_maps: int
    damages: list[str]


def verify(found: Found) -> Verified:
    """Reads every byte of a complete checkpoint. Raises CheckpointError where it cannot even be opened."""
    with open_checkpoint(found) as saved:
        damages = _files(saved)
        id_maps = [name for name in saved.tensors if name.startswith("id_maps/") and name.endswith("/ids")]
        if not damages:  # else what the tensors hold is not to be believed
            damages = [*_whole(saved), *_shapes(saved)]
        if not damages:
            damages = _finite(saved)
            for name in id_maps:
                damages += _id_map(saved, name.removeprefix("id_maps/").removesuffix("/ids"))
        commits = [link.commit for link in saved.chain()]
        return Verified(
            name=str(saved.path),
            step=saved.commit.step,
            kind=saved.commit.kind,
            files=sum(len(commit.files) for commit in commits),
            bytes=sum(commit.total_bytes() for commit in commits),
            tensors=len(saved.tensors),
            id_maps=len(id_maps),
            damages=damages,
        )


def _files(saved: SavedTensors) -> list[str]:
    """Every file against COMMIT, then what they say of each other."""
    try:
        check_files(saved)
        state = state_of(saved)
    except CheckpointError as error:
        return error.problems
    named = f"step_{saved.commit.step:08d}"
    lines = []
    if state.step != saved.commit.step:
        lines.append(f"COMMIT is of step {saved.commit.step}, state.json of {state.step} → they are of one step")
    if name_of(saved.path).startswith("step_") and name_of(saved.path) != named:
        lines.append(f"the folder is called {name_of(saved.path)}, COMMIT is of {named} → they are of one step")
    return [_line(saved, line) for line in lines]


def _whole(saved: SavedTensors) -> list[str]:
    """Every value of every tensor was saved."""
    wanted = {
        name: Held(tuple(record.size), manifest.torch_dtype(record.dtype), ()) for name, record in saved.tensors.items()
    }
    return saved.problems(wanted)


def _shapes(saved: SavedTensors) -> list[str]:
    """States and id maps have a value for each row of their table."""
    lines = []
    for name, record in saved.tensors.items():
        kind, _, rest = name.partition("/")
        if kind not in ("tables", "id_maps"):
            continue
        table, _, key = rest.rpartition("/")
        weight = saved.tensors.get(f"tables/{table}/weight")
        if weight is None:
            lines.append(f"{name} is of a table without a weight → a table is saved with all of its tensors")
            continue
        rows = math.prod(record.size) if (kind, key) == ("id_maps", "ids") else record.size[0]
        if rows != weight.size[0] and (kind == "tables" or key == "ids"):
            lines.append(f"{name} has {rows:,} rows, table {table!r} {weight.size[0]:,} → they are of the same rows")
    return [_line(saved, line) for line in lines]


def _finite(saved: SavedTensors) -> list[str]:
    lines = []
    for name, record in saved.tensors.items():
        if not manifest.torch_dtype(record.dtype).is_floating_point:
            continue
        bad = [f for part in _parts(saved, name) if (f := int((~torch.isfinite(part)).sum()))]
        if bad:
            lines.append(f"{sum(bad):,} values of {name} are NaN or infinite → training saves finite numbers")
    return [_line(saved, line) for line in lines]


def _parts(saved: SavedTensors, name: str) -> Iterator[torch.Tensor]:
    record = saved.tensors[name]
    if not record.size:
        yield saved.read(name)
        return
    if not math.prod(record.size):
        return
    rest = tuple(record.size[1:])
    step = max(1, BLOCK_BYTES // max(1, math.prod(rest) * manifest.torch_dtype(record.dtype).itemsize))
    for first in range(0, record.size[0], step):
        yield saved.read(name, (first, *(0,) * len(rest)), (min(step, record.size[0] - first), *rest))


def _id_map(saved: SavedTensors, table: str) -> list[str]:
    """No id has two rows, and each lies in its bucket. A bucket's ids are in memory at once."""
    buckets, rows = saved.tensors[f"id_maps/{table}/ids"].size
    step = max(1, BLOCK_BYTES // (8 * rows))
    twice: list[int] = []
    strayed: list[int] = []
    reserved = 0
    for first in range(0, buckets, step):
        count = min(step, buckets - first)
        ids = saved.read(f"id_maps/{table}/ids", (first, 0), (count, rows)).numpy()
        if first == 0:
            head = ids.reshape(-1)[:RESERVED_ROWS]
            reserved = int((head != MISSING_ID).sum())
        held = ids != MISSING_ID
        own = np.broadcast_to(np.arange(first, first + count)[:, None], ids.shape)[held]
        found = ids[held]
        home = (mix(found, seed_of("bucket", table)) % np.uint64(buckets)).astype(np.int64)
        strayed += found[home != own][:EXAMPLES].tolist()
        ordered = np.sort(found)  # equal ids have one bucket, so that both are here
        twice += np.unique(ordered[1:][ordered[1:] == ordered[:-1]])[:EXAMPLES].tolist()
    lines = []
    if reserved:
        lines.append(f"{reserved} of its reserved rows have an id → rows 0 and 1 are the missing and unknown ids'")
    if strayed:
        lines.append(f"ids {_some(strayed)} lie in a bucket that is not theirs → an id's bucket is a hash of it")
    if twice:
        lines.append(f"ids {_some(twice)} have more than one row → an id has one row")
    lines += _used(saved, table, buckets, rows)
    return [_line(saved, f"id map of table {table!r}: {line}") for line in lines]


def _used(saved: SavedTensors, table: str, buckets: int, rows: int) -> list[str]:
    """A bucket is filled from its first row on, and a row that was given out stays somebody's."""
    if f"id_maps/{table}/used" not in saved.tensors:
        return [f"id_maps/{table}/used is missing → it says how far each bucket is filled"]
    used: Int64 = saved.read(f"id_maps/{table}/used").numpy()
    if len(used) != buckets or ((used < 0) | (used > rows)).any() or used[0] < RESERVED_ROWS:
        return [f"rows used are outside 0 … {rows} in some bucket → a bucket has {rows} rows"]
    step = max(1, BLOCK_BYTES // (8 * rows))
    wrong = 0
    for first in range(0, buckets, step):
        count = min(step, buckets - first)
        held = saved.read(f"id_maps/{table}/ids", (first, 0), (count, rows)).numpy() != MISSING_ID
        expected = np.arange(rows) < used[first : first + count, None]
        if first == 0:
            expected[0, :RESERVED_ROWS] = held[0, :RESERVED_ROWS]  # told of above
        wrong += int((held != expected).sum())
    return [f"{wrong:,} rows are used without an id, or have one unused → a bucket fills in order"] if wrong else []


def _some(ids: list[int]) -> str:
    more = " …" if len(ids) > EXAMPLES else ""
    return ", ".join(map(str, ids[:EXAMPLES])) + more


def _line(saved: SavedTensors, what: str) -> str:
    return f"checkpoint {saved.path}: {what} → use an older one"
