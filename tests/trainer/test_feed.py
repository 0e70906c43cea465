"""What ranks agree on about a batch is sent off a call before the batch is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pipelines.errors import DataError
from tests.distributed.ranks import run_ranks
from trainer import feed
from trainer.feed import Feed


class Stream(Iterator[Any]):
    """`count` batches, then the end or `error`."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.read = 0
        self._count, self._error = count, error

    def __next__(self) -> Any:
        if self.read == self._count:
            if self._error is not None:
                raise self._error
            raise StopIteration
        self.read += 1
        return SimpleNamespace(
            number=self.read, weights={}, filler=False, rows=2, status=np.zeros(2), times={}, tables={}, retries=0,
            request_time=np.array([self.read]), position=SimpleNamespace(name="day"),
        )  # fmt: skip

    def close(self) -> None:
        """Nothing is open."""


def feed_of(
    stream: Stream, wants: Callable[[], tuple[bool, bool]] = lambda: (False, False), world_size: int = 1
) -> Feed:
    feed.wrap = lambda batch, info, *_: (batch.number, info)  # type: ignore[assignment]
    runtime = SimpleNamespace(world_size=world_size, control=dist.group.WORLD, device=torch.device("cpu"))
    mapper = SimpleNamespace(mark=lambda _: None, rows_of=lambda *_, **__: {}, groups={})
    return Feed(cast(Any, stream), cast(Any, mapper), (), cast(Any, runtime), wants=wants)


@pytest.fixture(autouse=True)
def whole_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "wrap", feed.wrap)


def test_every_batch_comes_once_in_its_order_and_one_is_read_ahead() -> None:
    stream = Stream(3)
    fed = feed_of(stream)
    assert cast(Any, next(fed))[0] == 1
    assert stream.read == 2
    assert [cast(Any, batch)[0] for batch in fed] == [2, 3]


def test_a_wish_to_save_is_heard_a_call_later_and_not_once_more_when_it_is_fulfilled() -> None:
    wish = [False]
    fed = feed_of(Stream(9), wants=lambda: (False, wish[0]))
    next(fed)
    wish[0] = True
    next(fed)  # sends it off
    assert not fed.saving
    next(fed)
    assert fed.saving
    wish[0] = False  # what it was for is done, while the wish has been sent off once more
    fed.saved()
    for _ in range(3):
        next(fed)
        assert not fed.saving


def test_a_reader_that_fails_leaves_the_batches_before() -> None:
    fed = feed_of(Stream(2, DataError("broken")))
    assert [cast(Any, next(fed))[0] for _ in range(2)] == [1, 2]
    with pytest.raises(DataError, match="broken"):
        next(fed)


def _two_ranks(rank: int, world_size: int) -> list[Any]:
    """Rank 1's reader fails at the third batch, and wishes to stop from its second look on."""
    looks = iter(range(9))
    stream = Stream(2, DataError("mine") if rank else None) if rank else Stream(5)
    fed = feed_of(stream, wants=lambda: (rank == 1 and next(looks) > 0, False), world_size=world_size)
    found: list[Any] = []
    for _ in range(2):
        _, info = cast(Any, next(fed))
        found.append((info.rows, info.data_through, fed.stopping))
    try:
        next(fed)
    except DataError as error:
        found.append(str(error))
    return found


def test_ranks_agree_and_fail_together() -> None:
    first, second = run_ranks(_two_ranks, 2, timeout=60)
    assert first[:2] == second[:2] == [(4, 1, False), (4, 2, True)]
    assert "another rank's reader failed" in first[2]
    assert second[2] == "mine"
