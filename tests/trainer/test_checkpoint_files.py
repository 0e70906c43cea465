"""`tokenformer checkpoint diff`, `reshard` and `unshard` on real runs: what is written is what was saved."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from embeddings.buckets import bucket_of
from embeddings.specs import RESERVED_ROWS, table_specs
from pipelines.schema import MISSING_ID
from tests.trainer.runs import differing
from tests.trainer.saved_runs import GOLDEN, GOLDEN_STEP, Command, save, step, tensors_of
from tests.trainer.verb_runs import Trained
from trainer.checkpoint import manifest
from trainer.checkpoint.reading import SavedTensors
from trainer.checkpoint.state import read_state
from trainer.checkpoint_verbs import resharding, saved_tables
from trainer.config import load_config

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
    words = pq.read_table(tmp_path / "out" / "rows" / "words.parquet").to_pylist()
    assert any(None not in (w["raw_id"], w["raw_id_before"]) and w["raw_id"] != w["raw_id_before"] for w in words)


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


def test_reshard_by_a_run_s_own_plan_gives_each_rank_what_it_had(
    checkpointed: Trained, command: Command, tmp_path: Path
) -> None:
    run = checkpointed.runs / "candidates"
    plan = run / "plan.json"
    assert command("reshard", step(run, 4), "--world-size", 2, "--out", tmp_path / "out", "--plan", plan)[0] == 0
    assert values_by_rank(tmp_path / "out") == values_by_rank(step(run, 4))


def values_by_rank(path: Path) -> dict[tuple[str, str, int], int]:
    """{(tensor, rank that wrote it, first column): how many values}."""
    found: dict[tuple[str, str, int], int] = {}
    with SavedTensors(path) as saved:
        for name, record in saved.tensors.items():
            for chunk in record.chunks if name.startswith(("tables/", "id_maps/")) else ():
                column = chunk.offsets[1] if len(chunk.offsets) > 1 else 0
                key = name, chunk.file[:10], column
                found[key] = found.get(key, 0) + math.prod(chunk.sizes)
    return found


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
