"""`tokenformer checkpoint …` on real runs: what is said is what is there, what is written is what was saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from embeddings.buckets import bucket_of
from embeddings.held import whole
from embeddings.specs import RESERVED_ROWS, table_specs
from pipelines.schema import MISSING_ID
from tests.trainer.runs import differing
from tests.trainer.verb_runs import Trained
from trainer.checkpoint import manifest
from trainer.checkpoint.reading import SavedTensors
from trainer.checkpoint.saving import save_tensors
from trainer.checkpoint.state import read_state
from trainer.checkpoint_verbs import resharding, saved_tables
from trainer.cli import cli
from trainer.cli_boundary import guarded
from trainer.config import load_config

GOLDEN = Path(__file__).parents[1] / "checkpoint" / "golden" / "format_1"
GOLDEN_STEP = GOLDEN / "checkpoints" / "step_00000004"
Tensors = dict[str, torch.Tensor]
Command = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """(exit code, stdout, lines of stderr) of `tokenformer checkpoint …`, in this process."""

    def run(*arguments: object) -> tuple[int, str, list[str]]:
        words = ["checkpoint", *map(str, arguments)]
        code = guarded(lambda: cli.main(words, prog_name="tokenformer", standalone_mode=False))
        said = capfd.readouterr()
        assert "Traceback" not in said.err, said.err
        return code, said.out, said.err.splitlines()

    return run


def tensors_of(path: Path) -> Tensors:
    with SavedTensors(path) as saved:
        return {name: saved.read(name) for name in saved.tensors}


def save(path: Path, tensors: Tensors, like: Path = GOLDEN_STEP, **state: Any) -> Path:
    """A full checkpoint of these tensors, its state that of another."""
    known = read_state(like, manifest.read_commit(like)).model_copy(update=state)
    save_tensors(path, {name: whole(tensor) for name, tensor in tensors.items()}, known.step, known.model_dump_json())
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with the golden checkpoint of step 4, in today's format."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(GOLDEN / "config.toml", folder)
    save(folder / "checkpoints" / "step_00000004", tensors_of(GOLDEN_STEP))
    return folder


def step(folder: Path, number: int) -> Path:
    return folder / "checkpoints" / f"step_{number:08d}"


# list


def test_list_says_what_each_checkpoint_is_and_why_one_is_not(
    checkpointed: Trained, run: Path, command: Command, tmp_path: Path
) -> None:
    code, said, _ = command("list", "--run", checkpointed.runs / "candidates")
    assert code == 0
    assert [line.split()[:2] for line in said.splitlines() if "epoch" in line] == [
        ["1", "full"], ["2", "delta"], ["3", "delta"], ["4", "full"], ["5", "delta"],
    ]  # fmt: skip
    found = json.loads(command("list", "--run", checkpointed.runs / "candidates", "--json")[1])
    last = found[-1]
    assert (last["step"], last["complete"], last["kind"], last["base"]) == (5, True, "delta", "step_00000004")
    assert last["position"]["batch"] == 4
    assert (
        last["bytes"]
        == sum(file.stat().st_size for file in step(checkpointed.runs / "candidates", 5).iterdir())
        - (step(checkpointed.runs / "candidates", 5) / "COMMIT").stat().st_size
    )
    assert last["examples"] > found[0]["examples"] > 0
    assert abs(last["time"] - (step(checkpointed.runs / "candidates", 5) / "COMMIT").stat().st_mtime) < 1

    save(step(run, 5), tensors_of(GOLDEN_STEP), step=5, resumed_from=("step_00000004",))
    scored = {"kind": "eval", "step": 5, "tasks": {"click": {"ne": 0.8312, "auc": None}}}
    (run / "metrics.jsonl").write_text(json.dumps(scored) + '\n{"kind": "ev')
    (step(run, 6)).mkdir()
    shutil.copytree(step(run, 4), step(run, 7))
    (step(run, 7) / "rank_00000_000.safetensors").unlink()
    shutil.copytree(step(checkpointed.runs / "candidates", 2), step(run, 8))
    code, said, _ = command("list", "--run", run)
    assert code == 0
    assert "click NE 0.8312" in said
    assert "the newest went on from step_00000004" in said
    assert "step_00000006 is not complete: no COMMIT" in said
    assert "step_00000007 is not complete: rank_00000_000.safetensors is missing" in said
    assert "step_00000008 is not complete: its base step_00000001 is not there" in said
    listed = json.loads(command("list", "--run", run, "--json")[1])
    assert [checkpoint["complete"] for checkpoint in listed] == [True, True, False, False, False]


# verify


def test_verify_finds_every_checkpoint_of_a_run_sound(checkpointed: Trained, run: Path, command: Command) -> None:
    for name in ("candidates", "history"):
        code, said, lines = command("verify", "--run", checkpointed.runs / name, "--all")
        assert (code, lines) == (0, [])
        assert said.count(": fine") == 5
    assert command("verify", GOLDEN)[0] == 0
    (step(run, 9)).mkdir()
    code, said, _ = command("verify", "--run", run, "--all")
    assert code == 0
    assert "step_00000009: not complete" in said
    assert command("verify", "--run", run, "--step", 4)[0] == 0


def break_byte(path: Path) -> None:
    file = path / "rank_00000_000.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def remove_file(path: Path) -> None:
    (path / "rank_00000_000.safetensors").unlink()


def break_json(path: Path) -> None:
    (path / "metadata.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "words"),
    [(break_byte, "another sha256"), (remove_file, "is missing"), (break_json, "metadata.json has 2")],
)
def test_verify_names_a_damaged_file_and_looks_at_the_others(
    run: Path, command: Command, damage: Callable[[Path], None], words: str
) -> None:
    save(step(run, 5), tensors_of(GOLDEN_STEP), step=5)
    save(step(run, 6), tensors_of(GOLDEN_STEP), step=6)
    damage(step(run, 5))
    code, said, lines = command("verify", "--run", run, "--all")
    assert code == 5
    assert len(lines) == 1
    assert words in lines[0]
    assert "step_00000005" in lines[0]
    assert said.count(": fine") == 2


def test_verify_follows_a_difference_to_its_base(checkpointed: Trained, command: Command, tmp_path: Path) -> None:
    copied = shutil.copytree(checkpointed.runs / "candidates", tmp_path / "run")
    break_byte(step(copied, 1))
    code, said, lines = command("verify", "--run", copied, "--all")
    assert code == 5
    assert len(lines) == 1
    assert "step_00000001" in lines[0]
    assert said.count(": fine") == 2  # 4 and 5; 2 and 3 are built on 1
    code, _, lines = command("verify", step(copied, 3))
    assert code == 5
    assert "step_00000001" in lines[0]


def nan(tensors: Tensors) -> None:
    tensors["tables/author/weight"][7, 3] = float("nan")
    tensors["dense_optimizer/scorer.ranker.tokens.sep/exp_avg"][0] = float("inf")


def id_twice(tensors: Tensors) -> None:
    ids, used = tensors["id_maps/user_id/ids"], tensors["id_maps/user_id/used"]
    ids[3, used[3]] = ids[3, 0]
    used[3] += 1


def id_astray(tensors: Tensors) -> None:
    ids = tensors["id_maps/user_id/ids"]
    ids[2, 0], ids[3, 0] = ids[3, 0].clone(), ids[2, 0].clone()


def id_unused(tensors: Tensors) -> None:
    tensors["id_maps/user_id/used"][4] -= 1


def id_reserved(tensors: Tensors) -> None:
    ids, used = tensors["id_maps/user_id/ids"], tensors["id_maps/user_id/used"]
    used[0] -= 1
    ids[0, 1] = ids[0, used[0]]
    ids[0, used[0]] = MISSING_ID


def state_short(tensors: Tensors) -> None:
    tensors["tables/hour/momentum1"] = tensors["tables/hour/momentum1"][:-1].clone()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (nan, ["1 values of tables/author/weight", "sep/exp_avg are NaN or infinite"]),
        (id_twice, ["have more than one row"]),
        (id_astray, ["lie in a bucket that is not theirs"]),
        (id_unused, ["1 rows are used without an id"]),
        (id_reserved, ["1 of its reserved rows have an id"]),
        (state_short, ["tables/hour/momentum1 has 25 rows, table 'hour' 26"]),
    ],
)
def test_verify_finds_what_cannot_be_though_every_file_is_as_committed(
    run: Path, command: Command, damage: Callable[[Tensors], None], words: list[str]
) -> None:
    tensors = tensors_of(GOLDEN_STEP)
    damage(tensors)
    save(step(run, 5), tensors, step=5)
    code, _, lines = command("verify", run)
    assert code == 5
    assert sorted(next((line for line in lines if part in line), "") for part in words) == sorted(lines)
    assert all("step_00000005" in line for line in lines)


# diff


def test_diff_writes_just_the_changed_rows(
    run: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_tables, "BLOCK_BYTES", 4 * 8 * 7)  # 7 rows at a time, which end nowhere with a bucket
    config = load_config(GOLDEN / "config.toml")
    specs = table_specs(config.schema, config.embeddings)
    before, after = tensors_of(GOLDEN_STEP), tensors_of(GOLDEN_STEP)
    for table, rows in {"item_id": [5, 199], "hour": [1, 2, 25], "author": [0]}.items():
        after[f"tables/{table}/weight"][rows, 2] += 0.5
    ids, used = after["id_maps/user_id/ids"], after["id_maps/user_id/used"]
    newcomer = next(i for i in range(10**6, 10**7) if bucket_of(specs["user_id"], np.array([i]))[0] == 6)
    row = 6 * 15 + int(used[6])
    ids[6, used[6]] = newcomer
    used[6] += 1
    leaver, left = int(ids[5, 0]), 5 * 15
    other = next(i for i in range(10**6, 10**7) if bucket_of(specs["user_id"], np.array([i]))[0] == 5)
    ids[5, 0] = other
    after["dense/scorer.ranker.head.bias"] += 3
    save(step(run, 5), after, step=5)

    code, said, _ = command("diff", 4, 5, "--run", run, "--out", tmp_path / "out")
    assert code == 0
    assert "from step 4 to step 5" in said
    files = sorted(path.stem for path in (tmp_path / "out" / "rows").iterdir())
    assert files == ["author", "hour", "item_id", "user_id"]
    query = f"""select "table", row, raw_id, raw_id_before, reserved, vector
                from '{tmp_path}/out/rows/*.parquet' order by "table", row"""
    found = duckdb.sql(query).fetchall()
    assert [line[:5] for line in found] == [
        ("author", 0, None, None, "missing"),
        ("hour", 1, None, None, "unknown"),
        ("hour", 2, 0, 0, None),
        ("hour", 25, 23, 23, None),
        ("item_id", 5, None, None, None),
        ("item_id", 199, None, None, None),
        ("user_id", left, other, leaver, None),
        ("user_id", row, newcomer, None, None),
    ]
    for table, at, *_, vector in found:
        assert vector == after[f"tables/{table}/weight"][at].tolist()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    by_table = {table["table"]: table for table in summary["tables"]}
    assert {name: table["changed"] for name, table in by_table.items() if table["changed"]} == {
        "author": 1, "hour": 3, "item_id": 2, "user_id": 2,
    }  # fmt: skip
    assert by_table["hour"]["share"] == pytest.approx(3 / 26)
    assert by_table["hour"]["mean_change"] == pytest.approx(0.5 / 8, rel=1e-5)
    assert by_table["user_id"]["new_ids"] == 2
    [dense] = summary["dense"]
    assert dense["parameter"] == "scorer.ranker.head.bias"
    assert dense["change"] == pytest.approx(3 * 2**0.5)
    assert dense["norm_before"] == pytest.approx(float(before["dense/scorer.ranker.head.bias"].norm()), rel=1e-6)


def test_diff_of_a_run_s_checkpoints_is_what_training_changed(
    checkpointed: Trained, command: Command, tmp_path: Path
) -> None:
    run = checkpointed.runs / "candidates"
    code, _, _ = command("diff", step(run, 3), run, "--out", tmp_path / "out")  # a difference, and the newest
    assert code == 0
    old, new = tensors_of(step(run, 3)), tensors_of(step(run, 5))
    total = 0
    for name in (name for name in new if name.startswith("tables/") and name.endswith("/weight")):
        changed = (old[name] != new[name]).any(1).nonzero()[:, 0]
        path = tmp_path / "out" / "rows" / f"{name.split('/')[1]}.parquet"
        found = pq.read_table(path) if path.exists() else None
        assert found is not None or not len(changed)
        if found is not None:
            rows = torch.tensor(found["row"].to_pylist())
            assert set(changed.tolist()) <= set(rows.tolist())  # and rows that got an id without being moved
            assert torch.equal(torch.tensor(found["vector"].to_pylist()), new[name][rows])
            total += len(rows)
    assert total > 20


def test_diff_says_which_tables_cannot_be_compared(run: Path, command: Command, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    text = (other / "config.toml").read_text()
    assert "[embeddings.tables.hour]\nrows = 26" in text
    (other / "config.toml").write_text(
        text.replace("[embeddings.tables.hour]\nrows = 26", "[embeddings.tables.hour]\nrows = 30")
    )
    tensors = tensors_of(GOLDEN_STEP)
    for key, width in (("weight", 8), ("momentum1", 1)):
        tensors[f"tables/hour/{key}"] = torch.zeros(30, width)
    save(step(other, 4), tensors)
    code, said, _ = command("diff", run, other)
    assert code == 0
    assert "was 26 × 8, is 30 × 8" in said


# reshard


def test_reshard_is_the_same_tensors_bit_for_bit(
    checkpointed: Trained, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resharding, "BLOCK_BYTES", 300)
    for source in (GOLDEN_STEP, step(checkpointed.runs / "candidates", 3), step(checkpointed.runs / "history", 5)):
        expected = tensors_of(source)
        for world_size in (1, 3):
            out = tmp_path / source.parents[1].name / str(world_size) / source.name
            assert command("reshard", source, "--world-size", world_size, "--out", out)[0] == 0
            assert differing(tensors_of(out), expected) == []
            assert command("verify", out)[0] == 0
            commit, before = manifest.read_commit(out), manifest.read_commit(source)
            assert (commit.kind, commit.step) == ("full", before.step)
            assert read_state(out, commit).position == read_state(source, before).position


def test_reshard_puts_into_a_rank_s_file_what_lies_on_it(command: Command, tmp_path: Path) -> None:
    columns = [{"rank": 2 - rank, "row": 0, "rows": 50, "column": 4 * rank, "columns": 4} for rank in range(2)]
    whole_table = [{"rank": 2, "row": 0, "rows": 26, "column": 0, "columns": 8}]
    tables = [
        {"name": "author", "rows": 50, "width": 8, "sharding": "column_wise", "shards": columns},
        {"name": "hour", "rows": 26, "width": 8, "sharding": "table_wise", "shards": whole_table},
    ]
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"format": 1, "world_size": 3, "replicas": 1, "tables": tables}))
    out = tmp_path / "out"
    assert command("reshard", GOLDEN, "--world-size", 3, "--out", out, "--plan", plan)[0] == 0
    assert differing(tensors_of(out), tensors_of(GOLDEN_STEP)) == []
    held = [load_file(out / f"rank_0000{rank}_000.safetensors") for rank in range(3)]
    whole_tensors = tensors_of(GOLDEN_STEP)
    assert torch.equal(held[2]["tables/author/weight@0,0"], whole_tensors["tables/author/weight"][:, :4])
    assert torch.equal(held[1]["tables/author/momentum1@0,1"], whole_tensors["tables/author/momentum1"][:, 1:])
    assert torch.equal(held[2]["tables/hour/weight@0,0"], whole_tensors["tables/hour/weight"])
    assert torch.equal(held[1]["tables/item_id/weight@67,0"], whole_tensors["tables/item_id/weight"][67:134])
    # 8 buckets of 15 rows over 3 ranks: 3, 3 and 2.
    assert torch.equal(held[1]["tables/user_id/weight@45,0"], whole_tensors["tables/user_id/weight"][45:90])
    assert torch.equal(held[2]["id_maps/user_id/ids@6,0"], whole_tensors["id_maps/user_id/ids"][6:])
    tables[0]["shards"] = columns[:1]
    plan.write_text(json.dumps({"world_size": 3, "tables": tables}))
    code, _, lines = command("reshard", GOLDEN, "--world-size", 3, "--out", tmp_path / "no", "--plan", plan)
    assert (code, len(lines)) == (2, 1)
    assert "do not make 50 × 8" in lines[0]


# unshard


def test_unshard_writes_every_row_with_its_raw_id(
    checkpointed: Trained, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_tables, "BLOCK_BYTES", 4 * 8 * 7)
    run = checkpointed.runs / "candidates"
    assert command("unshard", run, "--out", tmp_path / "out")[0] == 0
    saved, schema = tensors_of(step(run, 5)), json.loads((tmp_path / "out" / "schema.json").read_text())
    config = load_config(run / "config.toml")
    for name, spec in table_specs(config.schema, config.embeddings).items():
        table = pq.read_table(tmp_path / "out" / schema["tables"][name]["file"])
        assert table["row"].to_pylist() == list(range(spec.rows))
        assert torch.equal(torch.tensor(table["vector"].to_pylist()), saved[f"tables/{name}/weight"])
        assert table["reserved"].to_pylist()[:3] == ["missing", "unknown", None]
        raw = table["raw_id"].to_pylist()
        assert raw[:RESERVED_ROWS] == [None, None]
        if spec.mapping == "identity":
            assert raw[RESERVED_ROWS:] == list(range(spec.rows - RESERVED_ROWS))
        elif spec.mapping == "hash":
            assert not any(value is not None for value in raw)
        else:
            flat = saved[f"id_maps/{name}/ids"].flatten().tolist()
            assert raw[RESERVED_ROWS:] == [None if i == MISSING_ID else i for i in flat[RESERVED_ROWS:]]
            id_map = pq.read_table(tmp_path / "out" / schema["tables"][name]["id_map"])
            assert [(i, r) for r, i in enumerate(raw) if i is not None] == list(
                zip(id_map["id"].to_pylist(), id_map["row"].to_pylist(), strict=True)
            )
            assert len(id_map) > 10
    tower = load_file(tmp_path / "out" / "tower.safetensors")
    prefix = "dense/scorer.ranker."
    assert {prefix + name: tensor.sum().item() for name, tensor in tower.items()} == {
        name: tensor.sum().item() for name, tensor in saved.items() if name.startswith("dense/")
    }
    assert json.loads((tmp_path / "out" / "borders.json").read_text()) == {"age": [18.0, 30.0, 50.0]}


def test_unshard_of_some_tables_and_of_odd_names(run: Path, command: Command, tmp_path: Path) -> None:
    assert command("unshard", run, "--out", tmp_path / "some", "--tables", "hour, user_id")[0] == 0
    assert sorted(path.name for path in (tmp_path / "some" / "tables").iterdir()) == ["hour.parquet", "user_id.parquet"]
    schema = json.loads((tmp_path / "some" / "schema.json").read_text())
    assert schema["tables"]["author"]["file"] is None
    text = (run / "config.toml").read_text().replace("[embeddings.tables.hour]", '[embeddings.tables."../a b.c"]')
    assert '[schema.columns.hour]\nrole = "context"\nkind = "id"\ngroup = ""\ntable = ""' in text
    text = text.replace(
        '[schema.columns.hour]\nrole = "context"\nkind = "id"\ngroup = ""\ntable = ""',
        '[schema.columns.hour]\nrole = "context"\nkind = "id"\ngroup = ""\ntable = "../a b.c"',
    )
    (run / "config.toml").write_text(text)
    tensors = {name.replace("tables/hour/", "tables/../a b.c/"): t for name, t in tensors_of(GOLDEN_STEP).items()}
    config = load_config(run / "config.toml")
    save(step(run, 5), tensors, step=5, data_schema=config.schema)
    assert command("unshard", run, "--out", tmp_path / "odd")[0] == 0
    schema = json.loads((tmp_path / "odd" / "schema.json").read_text())
    file = schema["tables"]["../a b.c"]["file"]
    assert "/" not in file.removeprefix("tables/")
    assert len(pq.read_table(tmp_path / "odd" / file)) == 26
    assert command("verify", run)[0] == 0


def test_half_precision_tables_are_exported_without_loss(run: Path, command: Command, tmp_path: Path) -> None:
    tensors = tensors_of(GOLDEN_STEP)
    for name, dtype in {"author": torch.float16, "hour": torch.bfloat16}.items():
        tensors[f"tables/{name}/weight"] = tensors[f"tables/{name}/weight"].to(dtype)
    save(step(run, 5), tensors, step=5)
    assert command("verify", run)[0] == 0
    assert command("unshard", run, "--out", tmp_path / "out")[0] == 0
    assert command("reshard", run, "--world-size", 2, "--out", tmp_path / "resharded")[0] == 0
    assert differing(tensors_of(tmp_path / "resharded"), tensors) == []
    assert command("diff", 4, 5, "--run", run, "--out", tmp_path / "diff")[0] == 0
    for name in ("author", "hour"):
        expected = tensors[f"tables/{name}/weight"]
        for file in (tmp_path / "out" / "tables", tmp_path / "diff" / "rows"):
            found = pq.read_table(file / f"{name}.parquet")
            vectors = torch.tensor(found["vector"].to_pylist())
            assert torch.equal(vectors.to(expected.dtype), expected[found["row"].to_pylist()])


# what is refused


def test_what_cannot_be_done_is_one_line_and_leaves_nothing(run: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("somebody's")
    (tmp_path / "lone").mkdir()
    shutil.copytree(step(run, 4), tmp_path / "lone" / "copy")
    step(run, 6).mkdir()
    no_plan = tmp_path / "plan.json"
    no_plan.write_text("{}")
    out = tmp_path / "out"
    refused: list[tuple[tuple[object, ...], int, str]] = [
        (("verify", tmp_path / "absent"), 5, "neither a checkpoint nor a run directory"),
        (("verify", tmp_path / "empty"), 5, "neither a checkpoint nor a run directory"),
        (("verify", step(run, 6)), 5, "has no COMMIT"),
        (("verify", "--run", run, "--step", 6), 5, "has no COMMIT"),
        (("verify", "--run", run, "--step", 5), 5, "its steps are 4, 6"),
        (("verify",), 2, "PATH, or --run"),
        (("verify", run, "--all"), 2, "PATH, or --run"),
        (("verify", "--run", run, "--step", 4, "--all"), 2, "exclude each other"),
        (("list", "--run", tmp_path / "empty"), 5, "neither a checkpoint nor a run directory"),
        (("list", "--run", "nowhere://x"), 5, "cannot be read"),
        (("diff", run, run, "--out", tmp_path / "taken"), 2, "is not empty"),
        (("diff", 4, "x", "--run", run), 2, "give numbers"),
        (("reshard", run, "--world-size", 2, "--out", tmp_path / "taken"), 2, "is not empty"),
        (("reshard", run, "--world-size", 0, "--out", out), 2, "--world-size"),
        (("reshard", run, "--world-size", 2, "--out", out, "--plan", no_plan), 2, "cannot be used"),
        (("unshard", run, "--out", tmp_path / "taken"), 2, "is not empty"),
        (("unshard", run, "--out", "s3://bucket/x"), 2, "a folder of this machine"),
        (("unshard", run, "--out", out, "--tables", "hour,houre"), 5, "houre is not one"),
        (("unshard", tmp_path / "lone" / "copy", "--out", out), 2, "name it with --config F"),
    ]
    for arguments, code, words in refused:
        found, _, lines = command(*arguments)
        assert (found, len(lines)) == (code, 1), (arguments, lines)
        assert words in lines[0]
        assert "→" in lines[0]
    assert command("unshard", tmp_path / "lone" / "copy", "--out", out, "--config", run / "config.toml")[0] == 0
    shutil.rmtree(out)
    break_byte(step(run, 4))
    for arguments in (
        ("diff", step(run, 4), step(run, 4), "--out", out),
        ("reshard", step(run, 4), "--world-size", 2, "--out", out),
        ("unshard", step(run, 4), "--out", out),
    ):
        code, _, lines = command(*arguments)
        assert (code, len(lines)) == (5, 1)
        assert "another sha256" in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "lone", "plan.json", "run", "taken"]
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["file"]


def test_what_fails_half_way_leaves_nothing(
    run: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = SavedTensors.read
    calls = 0

    def fail_late(self: SavedTensors, name: str, *box: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise OSError(28, "No space left on device", "x")
        return read(self, name, *box)

    monkeypatch.setattr(SavedTensors, "read", fail_late)
    for arguments in (("reshard", run, "--world-size", 2), ("unshard", run), ("diff", run, run)):
        calls = 0
        code, _, lines = command(*arguments, "--out", tmp_path / "out")
        assert (code, len(lines)) == (2, 1)
        assert "No space left" in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
