"""What a user can do wrong, through the command: one line a problem, value → rule → remedy, the documented exit code,
no trace, and nothing half-written."""

from __future__ import annotations

import contextlib
import re
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.command import TORCHRUN, Ended, latest_step, ran, write_run_file
from tests.integration.conftest import Call
from tests.pipelines.rows import make_rows, to_table, write_rows
from trainer.run_dir import COMMIT, RunDir

USAGE, DATA, CHECKPOINT = 2, 3, 5
DAY_ONE, DAY_TWO = "rows/dt=2026-01-01", "rows/dt=2026-01-02"
TRAIN = ("train", "--config", "run.toml", "--run-dir", "run", "--launch.workers", "1")


@dataclass(frozen=True)
class Case:
    """prepare: spoils the folder, returns further arguments. lines: what each error line holds; there are no others.
    also_dry: a dry run finds it too."""

    code: int
    lines: tuple[tuple[str, ...], ...]
    prepare: Callable[[Path], tuple[str, ...]] = lambda folder: ()
    arguments: tuple[str, ...] = ()
    also_dry: bool = True


def assert_refused(ended: Ended, case: Case) -> None:
    assert ended.code == case.code, ended.err
    assert "Traceback" not in ended.err
    assert len(ended.errors) == len(case.lines), ended.err
    for parts in case.lines:
        [line] = [line for line in ended.errors if all(part in line for part in parts)]
        assert line.count(" → ") >= 2, line


def spoil_files(folder: Path) -> tuple[str, ...]:
    """One file of each kind of damage."""
    table = to_table(make_rows(6, seed=9))
    whole = folder / DAY_ONE / "part-0.parquet"
    whole.write_bytes(whole.read_bytes()[:-20])
    pq.write_table(table.drop_columns(["v_price"]), folder / DAY_ONE / "part-1.parquet")
    at = table.column_names.index("click")
    text = table.set_column(at, "click", pa.array([["yes"]] * len(table), pa.list_(pa.string())))
    pq.write_table(text, folder / DAY_TWO / "part-0.parquet")
    (folder / DAY_TWO / "part-1.parquet").write_bytes(b"")
    return ()


def spoil_label(folder: Path) -> tuple[str, ...]:
    """In the second window: training has begun by then."""
    rows = make_rows(30, seed=9)
    rows[22]["click"] = [3 for _ in rows[22]["click"]]
    write_rows(folder / DAY_ONE / "part-0.parquet", rows, row_group_rows=5)
    return ()


def spoil_lengths(folder: Path) -> tuple[str, ...]:
    rows = make_rows(30, seed=9)
    rows[22]["v_price"] = [*rows[22]["v_price"], 0.5]
    write_rows(folder / DAY_ONE / "part-0.parquet", rows, row_group_rows=5)
    return ()


def file_for_a_folder(folder: Path) -> tuple[str, ...]:
    (folder / "run").write_text("not a folder")
    return ()


def folder_below_a_file(folder: Path) -> tuple[str, ...]:
    (folder / "notes").write_text("not a folder")
    return ("--run-dir", "notes/run")


BEFORE_TRAINING = {
    "files damaged in four ways": Case(
        DATA,
        (
            ("part-0.parquet' is truncated",),
            ("column 'v_price' is missing",),
            ("column 'click' is list<", "string"),
            ("part-1.parquet' is empty",),
        ),
        spoil_files,
    ),
    "no such segment": Case(DATA, (("2027-01-01",),), arguments=("--data.segments", "2027-01-01..")),
    "no such rows": Case(DATA, (("nowhere",),), arguments=("--data.rows", "nowhere")),
    "a label outside 0 and 1": Case(DATA, (("column 'click' holds 3", "part-0.parquet' row 22"),), spoil_label),
    "lists of unequal length": Case(DATA, (("'v_price'", "part-0.parquet' row 22", "one length"),), spoil_lengths),
    "a file where the run directory should be": Case(
        USAGE, (("run directory run",),), file_for_a_folder, also_dry=False
    ),
    "a run directory below a file": Case(USAGE, (("run directory notes/run",),), folder_below_a_file),
    "four mistakes in the run file": Case(
        USAGE,
        (("model.dims", "'dim'"), ("train.log_every = 'often'",), ("colour",), ("data.global_batch = 0",)),
        arguments=(
            *("--model.dims", "3", "--train.log-every", "often"),
            *("--schema.colour", "red", "--data.global-batch", "0"),
        ),
    ),
}


@pytest.mark.parametrize("case", BEFORE_TRAINING.values(), ids=BEFORE_TRAINING.keys())
def test_refused_with_a_line_a_problem_and_nothing_left(call: Call, tmp_path: Path, case: Case) -> None:
    write_run_file(tmp_path)
    arguments = (*TRAIN, *case.prepare(tmp_path), *case.arguments)
    before = sorted(tmp_path.rglob("*"))
    assert_refused(call(tmp_path, *arguments), case)
    assert sorted(tmp_path.rglob("*")) == before
    if case.also_dry:
        assert_refused(call(tmp_path, *arguments, "--dry-run"), case)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_taken_port(call: Call, tmp_path: Path, taken_port: int) -> None:
    write_run_file(tmp_path)
    ended = call(tmp_path, *TRAIN, "--telemetry.prometheus", "true", "--telemetry.port", str(taken_port))
    assert_refused(ended, Case(USAGE, ((f"telemetry.port {taken_port}", "Address already in use"),)))
    assert not (tmp_path / "run").exists()


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """As on a full disk, files of this process cannot grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("size", "code", "part"),
    [(100_000, CHECKPOINT, ".safetensors cannot be written"), (1_000, USAGE, "File too large")],
)
def test_a_disk_without_room(call: Call, tmp_path: Path, size: int, code: int, part: str) -> None:
    """For a checkpoint, and for the first files of a run."""
    write_run_file(tmp_path)
    with files_end_at(size):
        ended = call(tmp_path, *TRAIN)
    assert_refused(ended, Case(code, ((part, "make room"),)))
    assert latest_step(tmp_path / "run") == 0
    resumed = call(tmp_path, *TRAIN, "--resume", "auto")
    assert resumed.code == 0, resumed.err
    assert latest_step(tmp_path / "run") == 8


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of three steps, by the command."""
    folder = tmp_path_factory.mktemp("resumed")
    write_run_file(folder)
    ended = ran(folder, *TRAIN, "--max-steps", "3")
    assert ended.code == 0, ended.err
    return folder


def damage_tensors(folder: Path) -> tuple[str, ...]:
    """One bit of the largest file."""
    path = RunDir(folder / "run").require_latest()
    largest = max(path.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[-1] ^= 1
    largest.write_bytes(content)
    return ()


def other_rows(folder: Path) -> tuple[str, ...]:
    write_rows(folder / DAY_ONE / "part-0.parquet", make_rows(17, seed=50))
    return ()


RESUMED = {
    "another schema, in two ways": Case(
        CHECKPOINT,
        (("schema.time_unit was 's' and is 'ms'",), ("schema.tasks.order.loss_weight was 1.0 and is 2.0",)),
        arguments=("--schema.time-unit", "ms", "--schema.tasks.order.loss_weight", "2.0"),
    ),
    "another tower": Case(
        CHECKPOINT,
        (
            *(
                (f"tensor dense/scorer.ranker.blocks.2.{name}.weight is missing",)
                for name in ("attention_norm", "ffn.down", "ffn.gate_and_up", "ffn_norm")
            ),
            ("28 more tensors do not fit",),
        ),
        arguments=("--model.num-layers", "3"),
    ),
    "a table of other size": Case(
        CHECKPOINT,
        (("tables/tags/momentum1 is [50, 1]", "[60, 1]"), ("tables/tags/weight is [50, 8]", "[60, 8]")),
        arguments=("--embeddings.tables.tags.rows", "60"),
    ),
    "a bit that flipped": Case(CHECKPOINT, (("safetensors", "sha256"),), damage_tensors),
    "rows that were written anew": Case(DATA, (("2026-01-01",),), other_rows),
}


@pytest.mark.parametrize("case", RESUMED.values(), ids=RESUMED.keys())
def test_what_cannot_be_resumed_is_refused_and_left_as_it_was(
    call: Call, three_steps: Path, tmp_path: Path, case: Case
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(three_steps, folder)
    arguments = (*case.prepare(folder), *case.arguments)
    checkpoint = RunDir(folder / "run").require_latest()
    held = {path: path.read_bytes() for path in checkpoint.iterdir()}
    assert_refused(call(folder, *TRAIN, "--resume", "must", *arguments), case)
    assert {path: path.read_bytes() for path in checkpoint.iterdir()} == held
    assert RunDir(folder / "run").latest() == checkpoint


@pytest.mark.timeout(200)
def test_a_bad_label_under_two_ranks_ends_both_without_a_checkpoint_that_claims_to_be_one(tmp_path: Path) -> None:
    """Met in a window after the first: training runs, and one rank's rows are bad."""
    write_run_file(tmp_path, checkpoint={"every_steps": 2})
    spoil_label(tmp_path)
    ended = ran(tmp_path, *TRAIN[:-2], launcher=TORCHRUN, timeout=120)
    assert ended.code != 0
    assert str(DATA) in re.findall(r"exitcode\s*: (\S+)", ended.err)  # torchrun's word about a rank; its own is 1
    assert any("column 'click' holds 3" in line and "row 22" in line for line in ended.errors)
    assert all(line.count(" → ") >= 2 for line in ended.errors)
    assert "trainer/" not in ended.err  # no trace of ours
    step = latest_step(tmp_path / "run")
    assert step <= 3
    assert all(found.complete for found in RunDir(tmp_path / "run").step_dirs()), COMMIT
