"""`audit`: fine where every row was read once, however it was run; planted gaps, repeats and mix-ups are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embeddings.config import Embeddings
from tests.distributed.ranks import run_ranks
from tests.pipelines.rows import make_history_schema, write_segments
from tests.trainer import streams
from tests.trainer.runs import Run, tiny_config, train_all
from trainer.audit import RunAudit, audit_lineage, audit_run
from trainer.audit_lineage import account_of
from trainer.audit_verb import audit, closing_line, consumers_of, find, runs_below
from trainer.cli import cli
from trainer.cli_boundary import guarded
from trainer.consumed_format import file_name
from trainer.errors import CheckpointError, ConfigError, RunDataError
from trainer.run_dir import RunDir

pytestmark = pytest.mark.timeout(300)
SEGMENTS = {"2026-01-01": [14, 9], "2026-01-02": [11, 1]}  # 35 rows, 8 global batches of 5
SHUFFLED = {"order": "shuffle", "epochs": 2}
WRAPPED = {"dropped": streams.dropped, "neighbour unsaid": streams.neighbour_unsaid, "quarantined": streams.quarantined}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs over the same two days. Processes are started once per world size."""
    folder = tmp_path_factory.mktemp("audit")
    rows = write_segments(folder / "rows", SEGMENTS)

    def run(name: str, resume: Any = "never", **sections: Any) -> Run:
        return Run(tiny_config(rows, **sections), folder / "runs" / name, resume)

    history = run("history")
    tables = Embeddings(width=8, default_rows=64)
    history = replace(history, config=replace(history.config, schema=make_history_schema(), embeddings=tables))
    stopped = {"max_steps": 3}
    by_world_size = {
        2: [
            run("two", data={"epochs": 2}),
            run("two, one", data=SHUFFLED, train={"max_steps": 5}),
        ],
        1: [
            run("two, one", "must", data=SHUFFLED),
            run("one", train={"eval_every": 4}, data={"eval_segments": "2026-01-02"}),
            run("stopped", train=stopped),
            run("stopped, shuffled", data=SHUFFLED, train={"max_steps": 11}),
            run("sampled", data={"sample": 0.5}),
            history,
            run("day one", data={"segments": "2026-01-01"}),
            replace(run("day two", data={"segments": "2026-01-02"}), init_from=folder / "runs" / "day one"),
        ],
    }
    for world_size, of_size in by_world_size.items():
        train_all(of_size, world_size)
    wrapped = [(wrapper, run(name)) for name, wrapper in WRAPPED.items()]
    run_ranks(streams.train_wrapped, 1, wrapped, timeout=150)
    return folder / "runs"


def kinds(found: RunAudit) -> dict[str, int]:
    """{kind of finding: rows}."""
    return {
        kind: sum(f.rows for f in found.all_findings if f.kind == kind)
        for kind in sorted({f.kind for f in found.all_findings})
    }


@pytest.mark.parametrize(
    ("name", "read", "attempts"),
    [("one", 35, 1), ("two", 70, 1), ("two, one", 70, 2), ("history", 35, 1), ("sampled", 35, 1),
     ("day one", 23, 1), ("day two", 12, 1), ("quarantined", 35, 1)],
)  # fmt: skip
def test_a_run_that_read_every_row_once_is_fine(runs: Path, name: str, read: int, attempts: int) -> None:
    found = audit_run(runs / name)
    assert [finding.line for finding in found.all_findings] == []
    assert (sum(s.read for s in found.segments), found.attempts) == (read, attempts)
    assert sum(s.not_yet for s in found.segments) == 0
    assert closing_line([found]).startswith(f"audit: fine · {read} rows read, each exactly once an epoch")


def test_rows_left_out_by_rule_are_counted_not_lost(runs: Path) -> None:
    sampled = audit_run(runs / "sampled").segments
    assert 5 < sum(segment.sampled_out for segment in sampled) < 30
    bad = audit_run(runs / "quarantined").segments
    assert [segment.quarantined for segment in bad] == [2, 0]
    assert "2 of them without weight, by rule" in closing_line([audit_run(runs / "quarantined")])


def test_what_the_position_has_not_reached_is_not_yet(runs: Path) -> None:
    """After 3 of 8 batches in order; after 3 of the second epoch's 8, shuffled."""
    stopped = audit_run(runs / "stopped")
    assert [(s.read, s.not_yet) for s in stopped.segments] == [(15, 8), (0, 12)]
    assert [finding.line for finding in stopped.all_findings] == []
    shuffled = audit_run(runs / "stopped, shuffled")
    assert [finding.line for finding in shuffled.all_findings] == []
    assert sum(s.read + s.not_yet for s in shuffled.segments) == 70
    assert 0 < sum(s.not_yet for s in shuffled.segments) < 35


@pytest.mark.parametrize(
    ("stream", "rows", "where"),
    [
        (streams.dropped, {"batches": 0, "missed": 5}, "batches 1–1 were not trained"),
        (streams.window_dropped, {"batches": 0, "missed": 12}, "were not trained"),
        (streams.repeated, {"batches": 0, "repeated": 5}, "batches 1–1 were trained twice"),
        (streams.neighbour_in_its_place, {"missed": 5, "repeated": 5}, "part-0.parquet rows"),
        (streams.neighbour_unsaid, {"ids": 15}, "part-0.parquet rows 0–13"),
        (streams.mixed_up, {"ids": 15}, "window at batch 0, steps 1–3"),
        (streams.one_history_id_is_another, {"ids": 15}, "the ids that were trained are not those of these rows"),
    ],
)
def test_a_stream_that_is_wrong_is_caught(
    runs: Path, tmp_path: Path, stream: streams.Wrapper, rows: dict[str, int], where: str
) -> None:
    """As recorded; two of them were trained over as well."""
    shuffled = SHUFFLED if stream is streams.window_dropped else {}
    run = Run(tiny_config(runs.parent / "rows", data=shuffled), tmp_path / "run")
    position = streams.record(stream, run)
    account = account_of(run.run_dir / "consumed", 10**9)
    steps = max(record.steps[1] for segment in account.lines for _, _, record in account.records(segment))
    found = audit_lineage(RunDir(run.run_dir), run.config, steps, position)
    told = kinds(found)
    assert {kind: told.get(kind) for kind in rows} == rows
    assert not told.keys() - rows.keys() - {"batches"}
    assert any(where in finding.line for finding in found.all_findings)
    trained = next((name for name, wrapper in WRAPPED.items() if wrapper is stream), None)
    if trained is not None:
        assert [f.line for f in audit_run(runs / trained).all_findings] == [f.line for f in found.all_findings]


def test_the_rows_named_are_the_ones(runs: Path) -> None:
    """Of a batch that was dropped: what no other batch held."""
    lines = (runs / "dropped" / "consumed" / file_name(0, 0)).read_text().splitlines()
    records = [json.loads(line) for line in lines if '"kind":"rows"' in line]
    first, second = records[0], records[1]
    assert (first["batches"], second["batches"]) == ([0, 0], [2, 2])
    found = [f for f in audit_run(runs / "dropped").all_findings if f.kind == "missed"]
    named = {(f.file, row) for f in found for first, last in f.ranges for row in range(first, last + 1)}
    assert len(named) == 5
    assert named <= {("part-0.parquet", row) for row in range(14)} | {("part-1.parquet", 0)}


def copied(runs: Path, name: str, to: Path) -> Path:
    """A run of one's own, with its own data."""
    shutil.copytree(runs / name, to / "run")
    shutil.copytree(runs.parent / "rows", to / "rows")
    config = to / "run" / "config.toml"
    config.write_text(config.read_text().replace(str(runs.parent / "rows"), str(to / "rows")))
    return to / "run"


def lines_of(run: Path, attempt: int = 0, rank: int = 0) -> tuple[Path, list[str]]:
    path = run / "consumed" / file_name(attempt, rank)
    return path, path.read_text().splitlines(keepends=True)


def cut_a_line(run: Path) -> None:
    path, lines = lines_of(run)
    path.write_text("".join(lines[:2] + lines[3:]))


def repeat_a_line(run: Path) -> None:
    path, lines = lines_of(run)
    path.write_text("".join([*lines[:3], *lines[2:]]))


def claim_another_row(run: Path) -> None:
    """The second record says that it held a row more in the place of one of its own."""
    path, lines = lines_of(run)
    record = json.loads(lines[2])
    rows = record["parts"][0]["rows"]
    rows["first"], rows["last"] = rows["first"] - 1, rows["last"] - 1
    path.write_text("".join([*lines[:2], json.dumps(record) + "\n", *lines[3:]]))


def garble_a_line(run: Path) -> None:
    path, lines = lines_of(run)
    path.write_text("".join([*lines[:2], lines[2].replace('"rows"', '"rose"', 1), *lines[3:]]))


def remove_a_rank(run: Path) -> None:
    lines_of(run, rank=1)[0].unlink()


def change_an_id(run: Path) -> None:
    path = run.parent / "rows" / "dt=2026-01-01" / "part-1.parquet"
    table = pq.read_table(path)
    users = table.column("user_id").to_pylist()
    at = table.column_names.index("user_id")
    changed = table.set_column(at, "user_id", pa.array([*users[:5], "somebody else", *users[6:]]))
    pq.write_table(changed, path, row_group_size=7)


def drop_a_row(run: Path) -> None:
    path = run.parent / "rows" / "dt=2026-01-01" / "part-1.parquet"
    pq.write_table(pq.read_table(path).slice(0, 8), path, row_group_size=7)


def remove_a_file(run: Path) -> None:
    (run.parent / "rows" / "dt=2026-01-02" / "part-1.parquet").unlink()


def remove_a_segment(run: Path) -> None:
    shutil.rmtree(run.parent / "rows" / "dt=2026-01-02")


def stop_sampling(run: Path) -> None:
    config = run / "config.toml"
    config.write_text(config.read_text().replace("sample = 0.5", "sample = 1.0"))


def add_a_file(run: Path) -> None:
    folder = run.parent / "rows" / "dt=2026-01-01"
    shutil.copy(folder / "part-1.parquet", folder / "part-2.parquet")


@pytest.mark.parametrize(
    ("tamper", "run", "kind", "says"),
    [
        (cut_a_line, "one", "missed", "part-1.parquet rows 1–8 were not read"),
        (cut_a_line, "one", "record", "follows step 3"),
        (repeat_a_line, "one", "repeated", "part-1.parquet rows 1–8 were read 8 times too often, in steps 4–5, 4–5"),
        (claim_another_row, "one", "missed", "part-1.parquet rows 8 were not read (1 in all)"),
        (claim_another_row, "one", "repeated", "part-1.parquet rows 0 were read 1 times too often, in steps 1–3, 4–5"),
        (claim_another_row, "one", "record", "rows and their sum differ"),
        (garble_a_line, "one", "record", "no line of this format"),
        (garble_a_line, "one", "missed", "part-1.parquet rows 1–8 were not read"),
        (remove_a_rank, "two", "record", "has no file of rank 1"),
        (remove_a_rank, "two", "missed", "were not read"),
        (change_an_id, "one", "ids", "window at batch 3, steps 4–5 (attempt 0, rank 0; part-1.parquet rows 1–8)"),
        (change_an_id, "two", "ids", "part-1.parquet"),
        (change_an_id, "one", "files", "its fingerprint is"),
        (drop_a_row, "one", "files", "row 8 of part-1.parquet was trained, which now has 8 rows"),
        (remove_a_file, "one", "files", "part-1.parquet was trained, and is not in the segment any more"),
        (stop_sampling, "sampled", "left out", "rows were left out as sampled"),
        (add_a_file, "one", "missed", "part-2.parquet rows 0–8 were not read"),
    ],
)
def test_what_is_planted_is_found(
    runs: Path, tmp_path: Path, tamper: Callable[[Path], None], run: str, kind: str, says: str
) -> None:
    own = copied(runs, run, tmp_path)
    assert audit_run(own).all_findings == []
    tamper(own)
    found = [finding.line for finding in audit_run(own).all_findings if finding.kind == kind]
    assert any(says in line for line in found), found


def test_a_segment_rewritten_with_the_same_rows_under_a_higher_version_is_fine(runs: Path, tmp_path: Path) -> None:
    """As late labels do it: the rows and their ids are those that were trained. Without the version it is told."""
    own = copied(runs, "one", tmp_path)
    path = tmp_path / "rows" / "dt=2026-01-01" / "part-1.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=4)
    assert [finding.kind for finding in audit_run(own).all_findings] == ["files"]
    record, lines = lines_of(own)
    record.write_text("".join(lines).replace('"window"', '"version":1,"window"'))
    (path.parent / "_segment.json").write_text('{"version": 2}')
    found = audit_run(own)
    assert found.all_findings == []
    assert (found.segments[0].versions, found.segments[0].version_now) == ({1}, 2)


def test_a_line_that_a_kill_cut_short_and_an_attempt_without_a_line_are_nothing(runs: Path, tmp_path: Path) -> None:
    own = copied(runs, "one", tmp_path)
    path, lines = lines_of(own)
    path.write_text("".join(lines) + lines[2][:40])
    (own / "consumed" / file_name(1, 0)).write_text(lines[0][:10])
    assert audit_run(own).all_findings == []


def test_records_after_the_commit_that_was_gone_on_from_are_void(runs: Path, tmp_path: Path) -> None:
    """An attempt that trained on beyond the checkpoint which a later one went on from: its later steps do not count,
    and those of a third one that never saved count neither."""
    own = copied(runs, "two, one", tmp_path)
    path, lines = lines_of(own)
    later = json.loads(lines[-1]) | {"steps": [6, 7], "batches": [0, 1]}
    path.write_text("".join([*lines, json.dumps(later) + "\n"]))
    header, first, *_ = lines_of(own, attempt=1)[1]
    header = json.dumps(json.loads(header) | {"attempt": 2, "resumed_from": 16}) + "\n"
    beyond = json.dumps(json.loads(first) | {"steps": [17, 18]}) + "\n"
    (own / "consumed" / file_name(2, 0)).write_text(header + beyond)
    assert audit_run(own).all_findings == []


def test_the_verb_prints_a_table_and_raises_what_it_found(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit(str(runs / "one"), as_json=False)
    table = capsys.readouterr().out
    assert "2026-01-01        –    23       1         23" in table
    audit(str(runs / "one"), as_json=True)
    assert json.loads(capsys.readouterr().out)["fine"] is True
    with pytest.raises(RunDataError) as caught:
        audit(str(runs / "dropped"), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["fine"] is False
    assert [finding["line"] for finding in told["findings"]] == caught.value.problems
    assert all(line.count(" → ") == 2 for line in caught.value.problems)
    own = copied(runs, "one", tmp_path)
    shutil.rmtree(own / "consumed")
    with pytest.raises(RunDataError, match="holds no record"):
        audit(str(own), as_json=False)
    with pytest.raises(CheckpointError, match=r"no config\.toml"):
        audit(str(tmp_path), as_json=False)


def test_exit_codes(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 fine, 2 usage, 3 rows missed or repeated, 5 no run."""
    (tmp_path / "nothing").mkdir()
    expected = {
        ("--run", str(runs / "one")): 0,
        (): 2,
        ("--run", str(runs / "one"), "--find", "all"): 2,
        ("--find", "2026-01-02", "--runs", str(tmp_path / "nowhere")): 2,
        ("--run", str(runs / "dropped")): 3,
        ("--run", str(tmp_path / "nothing")): 5,
    }
    found = {
        arguments: guarded(lambda arguments=arguments: cli.main(["audit", *arguments], standalone_mode=False))
        for arguments in expected
    }
    assert found == expected
    assert "error: segment '2026-01-01', epoch 0: batches 1–1 were not trained" in capsys.readouterr().err


def test_the_runs_that_consumed_a_segment_are_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.name for path in runs_below(runs.parent)} >= {"one", "two", "two, one"}
    found = {path.name: consumers_of(path, "2026-01-02") for path in runs_below(runs)}
    assert found["day one"] == []
    assert found["stopped"] == []
    [two], [day_two] = found["two"], found["day two"]
    assert (two.first, two.last, two.rows, two.epochs) == (6, 16, 24, {0, 1})
    assert (day_two.first, day_two.last, day_two.rows) == (6, 8, 12)
    assert two.fingerprint == day_two.fingerprint
    find("2026-01-02", str(runs), as_json=False)
    assert "6–16" in capsys.readouterr().out
    find("2026-01-03", str(runs), as_json=False)
    assert "no run" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="not a folder"):
        find("2026-01-02", str(runs / "nowhere"), as_json=False)


def test_nothing_but_training_is_recorded(runs: Path) -> None:
    """An evaluation under way reads a segment that is trained too: its rows are on record once."""
    [record] = (runs / "one" / "consumed").iterdir()
    assert sum(json.loads(line).get("trained", 0) for line in record.read_text().splitlines()) == 35
