"""A table read block by block while rows of it are updated in between, at every possible place, is the table as it
stood when the snapshot was taken."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoint.live_model import ALL, ROWS, LiveModel
from trainer.checkpoint import snapshot as module
from trainer.checkpoint.snapshot import FrozenShard, Snapshot


def _reads(snapshot: Snapshot) -> Iterator[tuple[FrozenShard, list[int], list[bytes]]]:
    """Block by block, three rows each; a step may come between any two. (shard, rows, bytes of each of its tensors)"""
    for shard in snapshot.shards:
        chosen = snapshot.chosen(shard)
        yield shard, [], []
        if chosen is None:
            for start in range(0, shard.rows, 3):
                stop = min(start + 3, shard.rows)
                blocks = snapshot.read(shard, start, stop)
                yield shard, list(range(start, stop)), [block.tobytes() for block in blocks]
            continue
        start = 0
        for begin in range(0, len(chosen), 3):
            rows = chosen[begin : begin + 3]
            stop = int(chosen[begin + 3]) if begin + 3 < len(chosen) else shard.rows
            blocks = snapshot.read(shard, start, stop, rows)
            yield shard, rows.tolist(), [block.tobytes() for block in blocks]
            start = stop


STEP = st.lists(st.integers(0, ALL - 1), min_size=1, max_size=8, unique=True)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=3), st.lists(STEP, max_size=2), st.lists(st.lists(STEP, max_size=2), max_size=12))
@pytest.mark.parametrize("changed_only", [False, True])
def test_whatever_comes_in_between_the_snapshot_is_what_it_was(
    changed_only: bool, older: list[list[int]], since: list[list[int]], between: list[list[list[int]]]
) -> None:
    model = LiveModel(elsewhere=20)
    for positions in older:
        model.update(positions)
    model.touched.end_generation()
    for positions in since:
        model.update(positions)
    expected = model.copied()
    wanted = sorted({p for positions in since for p in positions})
    snapshot = Snapshot(model.tensors, model.touched, changed_only)
    found: dict[str, list[int]] = {"a": [], "b": []}
    steps = iter(between)
    for shard, rows, blocks in _reads(snapshot):
        for (name, chunk), block in zip(shard.parts, blocks, strict=len(blocks) > 0):
            column = [c.offsets for c in model.tensors[name].chunks].index(chunk.offsets)
            assert block == expected[name][column][rows].numpy().tobytes(), (name, rows)
        found[shard.table] += rows
        for positions in next(steps, []):
            model.update(positions)
    snapshot.close()
    for table, base in (("a", 0), ("b", ROWS["a"])):
        here = [p - base for p in wanted if 0 <= p - base < ROWS[table]]
        assert found[table] == (here if changed_only else list(range(ROWS[table])))
    assert snapshot._kept_bytes == 0, "what was copied aside is let go"
    assert model.touched.watcher is None


def test_a_row_that_changes_while_a_block_is_being_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer stands still in the middle of a block, by an event; the step runs; then it takes the rest."""
    model = LiveModel(elsewhere=20)
    expected = model.copied()
    snapshot = Snapshot(model.tensors, model.touched)
    copying, go_on = threading.Event(), threading.Event()
    copy = module._copy

    def torn(tensor: torch.Tensor, start: int, stop: int, chosen: object) -> np.ndarray:
        first = copy(tensor, start, (start + stop) // 2, None)
        copying.set()
        assert go_on.wait(30)
        return np.concatenate([first, copy(tensor, (start + stop) // 2, stop, None)])

    monkeypatch.setattr(module, "_copy", torn)
    blocks: list[list[bytes]] = []
    shard = snapshot.shards[0]
    writer = threading.Thread(target=lambda: blocks.append([b.tobytes() for b in snapshot.read(shard, 0, shard.rows)]))
    writer.start()
    assert copying.wait(30)
    model.update([0, 1, 8, 9])
    model.update([0, 9, 10])
    go_on.set()
    writer.join(30)
    for (name, chunk), block in zip(shard.parts, blocks[0], strict=True):
        column = [c.offsets for c in model.tensors[name].chunks].index(chunk.offsets)
        assert block == expected[name][column].numpy().tobytes()


def test_training_waits_where_too_much_lies_aside() -> None:
    model = LiveModel(elsewhere=20)
    expected = model.copied()["tables/a/weight"][0]
    snapshot = Snapshot(model.tensors, model.touched, limit_bytes=30)
    trainer = threading.Thread(target=model.update, args=([0, 5, 10],))
    trainer.start()
    while snapshot.most_kept_bytes == 0:
        assert trainer.is_alive()
    assert torch.equal(model.tensors["tables/a/weight"].chunks[0].tensor, expected), "no row has changed"
    for shard in snapshot.shards:
        snapshot.read(shard, 0, shard.rows)
    trainer.join(30)
    assert not trainer.is_alive()
    assert snapshot.waited_seconds > 0


def test_a_writer_that_gave_up_holds_nobody() -> None:
    model = LiveModel(elsewhere=20)
    snapshot = Snapshot(model.tensors, model.touched, limit_bytes=1)
    trainer = threading.Thread(target=model.update, args=([0, 5, 10],))
    trainer.start()
    while snapshot.most_kept_bytes == 0:
        assert trainer.is_alive()
    snapshot.close()
    trainer.join(30)
    assert not trainer.is_alive()
