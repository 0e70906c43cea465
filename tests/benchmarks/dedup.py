"""Request rows with unique ids against one row per impression: what a shared history saves.

    python -m tests.benchmarks.dedup [--quick]

The same impressions twice: K candidates beside one history, and K rows that repeat it. `storage`: bytes of the Parquet
files. `ingest`: impressions a second through our reader. `step`: impressions a second of one training step of the same
recommender, on flat rows in the plain form, each feature's ids as they come instead of once a table.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.batch import Batch, FieldIds, TableIds
from pipelines.segments import find_segments
from pipelines.stream import ThreadExecutor, batches
from pipelines.windows import Pass
from tests.benchmarks import harness
from tests.benchmarks.train_rows import ITEM, Shape, run_config, write_rows
from tests.benchmarks.train_step import Ours, ready_batches
from tests.distributed.ranks import run_ranks
from trainer import machine
from trainer.runtime import start

REQUESTS, FLAT = "request rows, unique ids", "a row an impression"
Figures = dict[str, list[float]]


@dataclass(frozen=True)
class Plan:
    """shape: of the request rows; a global batch has 512 impressions. rounds: of each contestant, of reading and of
    stepping; a round of stepping is `steps` steps."""

    shape: Shape
    rounds: int
    steps: int


CANDIDATES = 4
FULL = Plan(Shape(rows=32_768, candidates=CANDIDATES, global_batch=512 // CANDIDATES, longest=200), rounds=5, steps=4)
QUICK = replace(FULL, shape=replace(FULL.shape, rows=8_192), rounds=2, steps=1)
TINY = Plan(replace(FULL.shape, rows=256, global_batch=16, mean_length=5, longest=8), rounds=1, steps=1)


def flat_shape(shape: Shape) -> Shape:
    """The same impressions, one a row."""
    k = shape.candidates
    return replace(
        shape,
        rows=shape.rows * k,
        global_batch=shape.global_batch * k,
        row_group_rows=shape.row_group_rows * k,
        candidates=1,
    )


def flatten(rows: pa.Table, candidates: int, shuffled: bool) -> pa.Table:
    """One row an impression: everything of its request, and its own candidate. In the order of the requests, or
    shuffled, as a trainer needs whose batches are stretches of the file."""
    impressions = len(rows) * candidates
    owner = np.repeat(np.arange(len(rows)), candidates)
    flat = rows.take(owner)
    for name in (*ITEM, "click"):
        values = rows.column(name).combine_chunks().flatten()
        lists = pa.ListArray.from_arrays(pa.array(np.arange(impressions + 1), pa.int32()), values)
        flat = flat.set_column(flat.schema.get_field_index(name), name, lists)
    return flat.take(np.random.default_rng(5).permutation(impressions)) if shuffled else flat


def plain_form(batch: Batch) -> Batch:
    """Each feature's ids as they come: every occurrence is looked up, exchanged and updated for itself."""
    tables, fields = {}, {}
    for table, found in batch.tables.items():
        own = {name: field for name, field in batch.fields.items() if field.table == table}
        ids = np.concatenate([found.ids[field.inverse] for field in own.values()])
        tables[table] = TableIds(ids, np.ones(len(ids), np.int64))
        begin = 0
        for name, field in own.items():
            place = np.arange(begin, begin + len(field.inverse), dtype=field.inverse.dtype)
            fields[name] = FieldIds(table, place, field.lengths)
            begin += len(place)
    return replace(batch, tables=tables, fields={name: fields[name] for name in batch.fields})


def read(pass_: Pass, impressions: int) -> float:
    """Impressions a second from Parquet to ready batches."""
    began = time.perf_counter()
    with batches(pass_, 1, 0, None, ThreadExecutor(threads=1)) as stream:
        found = sum(int(batch.candidate_lengths.sum()) for batch in stream)
    if found != impressions:
        raise RuntimeError(f"{found} impressions of {impressions}")
    return impressions / (time.perf_counter() - began)


def compete(rank: int, world_size: int, paths: dict[str, Path], plan: Plan) -> dict[str, Figures]:
    """{"ingest", "step": {contestant: impressions a second of each round}}. In a process of its own."""
    shapes = {REQUESTS: plan.shape, FLAT: flat_shape(plan.shape)}
    reading: dict[str, Callable[[], float]] = {}
    stepping: dict[str, Callable[[], float]] = {}
    with start(300, machine.cores()) as runtime:
        for name, shape in shapes.items():
            config = run_config(shape, paths[name])
            once = config.data.model_copy(update={"epochs": 1})
            segments = find_segments(config.data).train
            reading[name] = partial(read, Pass(config.schema, once, segments, 1), plan.shape.rows * CANDIDATES)
            ready = ready_batches(Pass(config.schema, config.data, segments, 1), world_size, rank)
            trainer = Ours(config, runtime)
            feed = trainer.feed(
                Pass(config.schema, config.data, segments, 1),
                ready if name == REQUESTS else [plain_form(batch) for batch in ready],
            )
            stepping[name] = partial(_steps, partial(trainer.step, feed), plan.steps, shape.examples)
        warm = 1
        figures = {}
        for title, contestants in (("ingest", reading), ("step", stepping)):
            harness.in_turn(contestants, warm)
            figures[title] = harness.in_turn(contestants, plan.rounds)
        return figures


def _steps(step: Callable[[], None], count: int, examples: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        step()
    return count * examples / (time.perf_counter() - began)


def write(plan: Plan, folder: Path) -> tuple[dict[str, Path], dict[str, int]]:
    """({contestant: its file}, {name: bytes}); flat rows in the order of the requests are weighed and not kept."""
    paths = {REQUESTS: folder / "requests.parquet", FLAT: folder / "impressions.parquet"}
    write_rows(plan.shape, paths[REQUESTS])
    rows, ordered = pq.read_table(paths[REQUESTS]).combine_chunks(), folder / "ordered.parquet"
    for path, shuffled in ((paths[FLAT], True), (ordered, False)):
        flat = flatten(rows, CANDIDATES, shuffled)
        pq.write_table(flat, path, compression="zstd", row_group_size=flat_shape(plan.shape).row_group_rows)
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    sizes[f"{FLAT}, a request's together"] = ordered.stat().st_size
    ordered.unlink()
    return paths, sizes


def report(sizes: dict[str, int], figures: dict[str, Figures], impressions: int) -> dict[str, float]:
    """Prints the tables; returns the ratios."""
    rows = [
        [name, f"{size:,}", f"{size / impressions:.0f}", f"{size / sizes[REQUESTS]:.2f}"]
        for name, size in sizes.items()
    ]
    harness.table(["storage, zstd", "bytes", "an impression", "÷ request rows"], rows)
    ratios = {"storage": sizes[FLAT] / sizes[REQUESTS]}
    for title, found in figures.items():
        ratios[title] = harness.ratio(found[REQUESTS], found[FLAT])
        speeds = [[name, harness.spread(values)] for name, values in found.items()]
        harness.table([title, "impressions/s"], speeds)
    return ratios


@click.command()
@click.option("--quick", is_flag=True, help="Ends within a minute on 2 cores.")
@click.option("--tiny", is_flag=True, hidden=True, help="For the tests.")
def main(quick: bool, tiny: bool) -> None:
    """Request rows with unique ids against one row per impression."""
    harness.prepare_process()
    plan = TINY if tiny else QUICK if quick else FULL
    harness.show("shape", plan.shape.facts())
    harness.show("measured", {key: value for key, value in asdict(plan).items() if key != "shape"})
    with TemporaryDirectory() as folder:
        paths, sizes = write(plan, Path(folder))
        [figures] = run_ranks(compete, 1, paths, plan, timeout=1800)
    ratios = report(sizes, figures, plan.shape.rows * CANDIDATES)
    harness.finish("dedup", ratios, machine.cores())


if __name__ == "__main__":
    main()
