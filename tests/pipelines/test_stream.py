"""One iterator, two executors: the same batches bit for bit, from any position, and errors that arrive as one line."""

from __future__ import annotations

import pickle
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.batch import Batch, Position
from pipelines.errors import DataError
from pipelines.frames import Packer, unpack
from pipelines.segments import list_segments
from pipelines.stream import Executor, ThreadExecutor, batches, choose_executor
from pipelines.stream_ray import RayExecutor
from pipelines.windows import Pass
from tests.pipelines.rows import make_data, make_rows, make_schema, to_table, write_rows, write_segments

pytestmark = pytest.mark.timeout(120)
SEEDS = iter(range(10**6))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segments(tmp_path_factory.mktemp("rows"), {"1": [23, 9], "2": [4], "3": [31]})


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    keep = RayExecutor("feed", num_cpus=0.5)  # the feed lives as long as its maker's handle
    yield
    del keep
    ray.shutdown()


def make_pass(folder: Path, **data: Any) -> Pass:
    return Pass(make_schema(), make_data(folder, **data), list_segments(str(folder)), seed=3)


def canonical(value: Any) -> Any:
    """A batch as nested tuples with every array's type, shape and bytes."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return tuple((key, canonical(value[key])) for key in sorted(value))
    return canonical(vars(value)) if hasattr(value, "__dict__") else value


def take_all(pass_: Pass, world_size: int, start: Position | None, executors: list[Executor]) -> list[list[Batch]]:
    """Batches of every rank, the ranks running at once."""
    with ThreadPoolExecutor(world_size) as pool:
        ranks = pool.map(lambda r: list(batches(pass_, world_size, r, start, executors[r])), range(world_size))
        return list(ranks)


def threads(world_size: int) -> list[Executor]:
    return [ThreadExecutor() for _ in range(world_size)]


def ray(world_size: int) -> list[Executor]:
    """Executors of one feed; each call of this has passes of its own."""
    purpose = f"test-{next(SEEDS)}"
    return [RayExecutor("feed", purpose, num_cpus=0.5) for _ in range(world_size)]


def rows_of(ranks: list[list[Batch]]) -> list[tuple[Position, frozenset[tuple[int, int]]]]:
    """Global batches: position and (file, row) of all ranks; each row at one rank, fillers aside."""
    found = []
    for step in zip(*ranks, strict=True):
        assert len({batch.position for batch in step}) == 1
        rows = [(int(f), int(r)) for b in step if not b.filler for f, r in zip(b.file, b.row, strict=True)]
        assert len(rows) == len(set(rows))
        found.append((step[0].position, frozenset(rows)))
    return found


def test_global_batches_do_not_depend_on_the_world_size(folder: Path) -> None:
    alone = rows_of(take_all(make_pass(folder, order="shuffle"), 1, None, threads(1)))
    assert sum(len(rows) for _, rows in alone) == 67
    for world_size in (2, 3):
        assert rows_of(take_all(make_pass(folder, order="shuffle"), world_size, None, threads(world_size))) == alone


def test_both_executors_give_the_same_bits(folder: Path, ray_session: None) -> None:
    pass_ = make_pass(folder, epochs=2)
    middle = take_all(pass_, 1, None, threads(1))[0][7].position
    for world_size, start in ((1, None), (3, None), (2, middle)):
        by_threads = take_all(pass_, world_size, start, threads(world_size))
        by_ray = take_all(pass_, world_size, start, ray(world_size))
        assert canonical_all(by_ray) == canonical_all(by_threads)
        assert by_ray[0][0].dense["score"].flags.writeable, "wrapped as tensors without a copy"


def canonical_all(ranks: list[list[Batch]]) -> list[list[Any]]:
    return [[canonical(batch) for batch in rank] for rank in ranks]


def test_a_rank_may_be_done_before_another_begins(folder: Path, ray_session: None) -> None:
    pass_ = make_pass(folder)
    executors = ray(2)
    one_by_one = [list(batches(pass_, 2, rank, None, executors[rank])) for rank in range(2)]
    assert canonical_all(one_by_one) == canonical_all(take_all(pass_, 2, None, threads(2)))


def test_resuming_at_any_batch_is_the_uninterrupted_tail(folder: Path) -> None:
    pass_ = make_pass(folder, order="shuffle")
    whole = [canonical(batch) for batch in batches(pass_, 2, 1, None, ThreadExecutor())]
    for index, position in enumerate([b.position for b in batches(pass_, 2, 1, None, ThreadExecutor())]):
        tail = [canonical(batch) for batch in batches(pass_, 2, 1, position, ThreadExecutor())]
        assert tail == whole[index:]


def corrupt(folder: Path) -> Path:
    """A label outside {0, 1} in the second segment."""
    write_segments(folder, {"1": [20]})
    rows = make_rows(9, 1)
    for row in rows:
        row["click"][0] = 3
    return write_rows(folder / "dt=2" / "part-0.parquet", rows)


def test_a_bad_row_is_a_data_error_where_its_batches_would_be(tmp_path: Path, ray_session: None) -> None:
    path = corrupt(tmp_path)
    for executors in (threads(2), ray(2)):
        streams = [batches(make_pass(tmp_path), 2, rank, None, executors[rank]) for rank in range(2)]
        for stream in streams:
            assert len([next(stream) for _ in range(4)]) == 4
        for stream in streams:
            with pytest.raises(DataError) as caught:
                next(stream)
            [line] = caught.value.problems
            assert line.startswith(f"column 'click' holds 3 in '{path}' row 0 → labels are 0, 1 or null")
            assert list(stream) == [], "a stream that failed has ended"


def test_a_segment_that_vanishes_does_not_cost_the_batches_before_it(tmp_path: Path) -> None:
    write_segments(tmp_path, {"1": [20], "2": [5]})
    pass_ = make_pass(tmp_path)
    (tmp_path / "dt=2" / "part-0.parquet").unlink()
    stream = batches(pass_, 1, 0, None, ThreadExecutor())
    assert len([next(stream) for _ in range(4)]) == 4
    with pytest.raises(DataError, match="does not exist"):
        next(stream)


def test_closing_early_leaves_no_thread(folder: Path) -> None:
    with batches(make_pass(folder, epochs=50), 1, 0, None, ThreadExecutor()) as stream:
        next(stream)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("windows")]
    assert list(stream) == []


def test_a_position_of_other_data_is_refused_at_once(folder: Path) -> None:
    with pytest.raises(DataError, match="must hold it"):
        batches(make_pass(folder), 1, 0, Position(0, 0, 0, "9", ""), ThreadExecutor())


def test_packing_keeps_every_bit(folder: Path) -> None:
    whole = list(batches(make_pass(folder), 2, 0, None, ThreadExecutor()))
    packer = Packer()
    for batch in (whole, [], whole[:1]):
        packer.add(batch)
    begins = [0, *packer.ends]
    for begin, expected in zip(begins, (whole, [], whole[:1]), strict=False):
        assert [canonical(b) for b in unpack(packer.frames(), begin)] == [canonical(b) for b in expected]


def test_the_executor_is_chosen_without_importing_ray(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_executor(make_data(folder, executor="ray"))[0] == "ray"
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    name, reason = choose_executor(make_data(folder))
    assert (name, "no Ray runs" in reason, "ray" in sys.modules) == ("threads", True, False)


def test_speed_is_printed(tmp_path: Path) -> None:
    """No threshold: other work shares the machine. Look with -s."""
    table = to_table(make_rows(500, 0))
    with pq.ParquetWriter(tmp_path / "part-0.parquet", table.schema) as writer:
        for _ in range(40):
            writer.write_table(table)
    pass_ = Pass(make_schema(), make_data(tmp_path, global_batch=500), list_segments(str(tmp_path)), seed=0)
    begin = time.perf_counter()
    rows = sum(batch.rows for batch in batches(pass_, 1, 0, None, ThreadExecutor()))
    seconds = time.perf_counter() - begin
    print(f"{rows} rows in {seconds:.2f} s: {rows / seconds:,.0f} rows/s, {len(pickle.dumps(pass_)):,} bytes a pass")
    assert rows == 20_000
