"""The Ray feed: the same batches as by threads however tasks are bundled, many windows in flight, memory within its
budget, and failures that are felt where they belong."""

from __future__ import annotations

import dataclasses
import itertools
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import frames
from pipelines.batch import Batch, FieldIds, TableIds
from pipelines.carry import carry_window
from pipelines.feed_orders import Orders
from pipelines.payload import Carry
from pipelines.segments import list_segments
from pipelines.stream import BatchStream, ThreadExecutor, batches
from pipelines.stream_ray import RayExecutor
from pipelines.windows import Pass
from tests.pipelines.obstacles import Crashing, Killed, Meeting, Met
from tests.pipelines.rows import make_data, make_rows, make_schema, write_rows, write_segments
from tests.pipelines.test_stream import canonical, canonical_all, take_all
from trainer.launch_ray import embedded_settings

pytestmark = pytest.mark.timeout(150)
NUMBERS = itertools.count()
MIB = 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segments(tmp_path_factory.mktemp("rows"), {"1": [63, 29], "2": [4], "3": [71]})


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 4 MB of batches in 40 windows."""
    path = tmp_path_factory.mktemp("large")
    write_rows(path / "part-0.parquet", make_rows(400, 5) * 10, row_group_rows=500)
    return path


@pytest.fixture(scope="module")
def feeds() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(log_to_driver=False, logging_level="error", **embedded_settings(4, 64))
    kept = [RayExecutor("wide", memory_mb=64), RayExecutor("narrow", memory_mb=1)]
    yield
    del kept
    ray.shutdown()


def make_pass(folder: Path, **data: Any) -> Pass:
    return Pass(make_schema(), make_data(folder, window_batches=1, **data), list_segments(str(folder)), seed=3)


def large_pass(folder: Path) -> Pass:
    data = make_data(folder, global_batch=50, window_batches=2)
    return Pass(make_schema(), data, list_segments(str(folder)), seed=3)


def executors(count: int, feed: str = "wide", carry: Carry = carry_window) -> list[RayExecutor]:
    """Of one feed, for the ranks of one test."""
    purpose = f"test-{next(NUMBERS)}"
    return [RayExecutor(feed, purpose, carry=carry) for _ in range(count)]


@pytest.mark.slow
def test_bundled_windows_give_the_same_bits_from_any_position(folder: Path, feeds: None) -> None:
    pass_ = make_pass(folder, order="shuffle", epochs=3)
    positions = [batch.position for batch in batches(pass_, 1, 0, None, ThreadExecutor())]
    starts = [None, *random.Random(1).sample(positions, 2)]
    for world_size, start in zip((1, 2, 3), starts, strict=True):
        by_ray = executors(world_size)
        found = take_all(pass_, world_size, start, list(by_ray))
        assert canonical_all(found) == canonical_all(
            take_all(pass_, world_size, start, [ThreadExecutor()] * world_size)
        )
        account = by_ray[0].account()
        assert account["orders"] < len(positions) if start is None else account["orders"] > 0, "several windows a task"
        assert (account["blocks_waiting"], account["bytes_in_flight"]) == (0, 0)
        assert "MapBatches(carry_block)" in account["stats"], "Ray Data ran it, and says how"
        found[0][0].request_time[:] = 0  # a tensor may be made of it, and written to


@pytest.mark.slow
def test_six_ranks_on_four_cpus_keep_four_windows_in_flight(folder: Path, feeds: None) -> None:
    import ray

    meeting = ray.remote(Meeting).options(name="meeting", num_cpus=0).remote(4)
    pass_ = make_pass(folder)
    by_ray = executors(6, carry=Met("meeting"))
    found = take_all(pass_, 6, None, list(by_ray))
    assert canonical_all(found) == canonical_all(take_all(pass_, 6, None, [ThreadExecutor(threads=1)] * 6))
    assert by_ray[0].account()["tasks_at_once"] >= 4
    ray.kill(meeting)


def test_a_slow_consumer_does_not_make_memory_grow(large: Path, feeds: None) -> None:
    [executor] = executors(1, "narrow")
    with batches(large_pass(large), 1, 0, None, executor) as stream:
        first = next(stream)
        account = wait_until(executor, lambda found: found["bytes_in_flight"] > 0.7 * MIB and found["orders"] > 8)
        for _ in range(20):  # nothing is taken meanwhile, and all it may read is read
            account = executor.account()
            assert account["bytes_in_flight"] <= MIB
        rows = first.rows + sum(batch.rows for batch in stream)
    account = executor.account()
    assert rows == 4000
    assert 0.25 * MIB < account["peak_bytes"] <= 1.2 * MIB  # it reads ahead; how far, a busy machine decides


def wait_until(executor: RayExecutor, fulfilled: Any) -> dict[str, Any]:
    """The account once it is so; the test's timeout ends it otherwise."""
    while not fulfilled(account := executor.account()):
        time.sleep(0.01)
    return account


def test_a_rank_far_behind_finds_all_its_batches(large: Path, feeds: None) -> None:
    pass_ = large_pass(large)
    first, second = executors(2, "narrow")
    ahead: list[Batch] = []
    stream = batches(pass_, 2, 0, None, first)
    runner = threading.Thread(target=lambda: ahead.extend(stream), daemon=True)
    late = batches(pass_, 2, 1, None, second)
    runner.start()
    wait_until(first, lambda found: found["bytes_in_flight"] > 0.7 * MIB and found["orders"] > 8)
    assert runner.is_alive(), "the budget holds the foremost rank"
    behind = list(late)
    runner.join(60)
    assert canonical_all([ahead, behind]) == canonical_all(take_all(pass_, 2, None, [ThreadExecutor()] * 2))


def test_a_fault_of_the_program_is_felt_at_its_place_on_every_rank(folder: Path, feeds: None) -> None:
    by_ray = executors(2, carry=Crashing(5))
    streams = [batches(make_pass(folder), 2, rank, None, by_ray[rank]) for rank in range(2)]
    for stream in streams:
        assert len(list(itertools.islice(stream, 5))) == 5
    for stream in streams:
        with pytest.raises(RuntimeError, match="planted"):
            next(stream)


def test_a_rank_that_leaves_early_frees_its_blocks(folder: Path, feeds: None) -> None:
    by_ray = executors(2)
    pass_ = make_pass(folder)
    leaving, staying = (batches(pass_, 2, rank, None, by_ray[rank]) for rank in range(2))
    next(leaving)
    leaving.close()
    assert len(list(staying)) == pass_.total_batches()
    assert (by_ray[1].account()["blocks_waiting"], by_ray[1].account()["bytes_in_flight"]) == (0, 0)


def test_leaving_does_not_wait_for_a_rank_that_never_came(large: Path, feeds: None) -> None:
    [executor] = executors(1, "narrow")
    stream: BatchStream = batches(large_pass(large), 2, 0, None, executor)
    next(stream)
    wait_until(executor, lambda found: found["bytes_in_flight"] > 0.7 * MIB)
    stream.close()


def test_a_killed_reader_is_replaced_and_changes_nothing(folder: Path, feeds: None, tmp_path: Path) -> None:
    pass_ = make_pass(folder)
    marker = tmp_path / "killed"
    found = take_all(pass_, 2, None, list(executors(2, carry=Killed(marker, 9))))
    assert marker.exists()
    assert canonical_all(found) == canonical_all(take_all(pass_, 2, None, [ThreadExecutor()] * 2))


def test_orders_hold_the_budget_whatever_comes_when(folder: Path) -> None:
    """Blocks arrive late and out of step, ranks are done late: all windows in order, and never more in flight."""
    for seed in range(12):
        random_ = random.Random(seed)
        pass_, slots, a_row = make_pass(folder, epochs=4), random_.randint(1, 5), random_.randint(10, 300)
        budget = random_.randint(20, 60) * 5 * a_row
        orders = Orders(pass_.windows_from(), slots, budget)
        waiting, held, ordered, given = [], [], [], itertools.count()
        while True:
            orders.look_ahead()
            windows = orders.cut(-1)
            if windows is None:
                break
            if windows:
                ordered += windows
                waiting.append((next(given), sum(window.rows for window in windows) * a_row))
                assert len(waiting) + len(held) <= 2 * slots or orders.bytes_in_flight <= budget
            elif waiting and (not held or random_.random() < 0.5):
                number, size = waiting.pop(0)
                orders.arrived(number, size)
                held.append(number)
            else:
                orders.release(held.pop(0))
        assert ordered == list(pass_.windows_from())
        assert next(given) < len(ordered), "several windows an order"


def test_the_first_orders_are_single_windows_and_the_last_ones_small(folder: Path) -> None:
    orders = Orders(make_pass(folder, epochs=20).windows_from(), 2, 10**9)
    sizes = []
    while True:
        orders.look_ahead()
        windows = orders.cut(-1)
        if windows is None:
            break
        if windows:
            sizes.append(len(windows))
        for number in range(len(sizes) if len(sizes) >= 4 else 0):
            if number in orders._rows:
                orders.arrived(number, 1000)
                orders.release(number)
    assert sizes[:4] == [1, 1, 1, 1]
    assert max(sizes) >= 32
    assert sizes[-1] <= 2


def test_a_batch_of_the_feed_equals_itself_again(folder: Path, feeds: None) -> None:
    """Two passes of one executor are two passes: the feed keeps them apart."""
    pass_ = make_pass(folder)
    [executor] = executors(1)
    twice = [[canonical(batch) for batch in batches(pass_, 1, 0, None, executor)] for _ in range(2)]
    assert twice[0] == twice[1]


def test_no_field_of_a_batch_is_left_behind() -> None:
    kept = {*frames.DICTIONARIES, *frames.ARRAYS, *frames.PLAIN, "tables", "fields"}
    assert {field.name for field in dataclasses.fields(Batch)} == kept
    assert [field.name for field in dataclasses.fields(TableIds)] == ["ids", "counts"]
    assert [field.name for field in dataclasses.fields(FieldIds)] == ["table", "inverse", "lengths"]
