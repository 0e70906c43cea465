"""`tokenformer checkpoint list` and `verify` on real runs: what is said is what is there. And what no verb does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.schema import MISSING_ID
from tests.trainer.saved_runs import GOLDEN, GOLDEN_STEP, Command, Tensors, break_byte, save, step, tensors_of
from tests.trainer.verb_runs import Trained
from trainer.checkpoint.reading import SavedTensors

# list


def test_list_says_what_each_checkpoint_is_and_why_one_is_not(
    checkpointed: Trained, run: Path, command: Command, tmp_path: Path
) -> None:
    code, said, _ = command("list", "--run", checkpointed.runs / "candidates")
    assert code == 0
    assert [line.split()[:2] for line in said.splitlines() if " · batch " in line] == [
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
