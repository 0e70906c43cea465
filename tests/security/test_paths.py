"""A path that comes from data or from a checkpoint stays where its folder is; nothing that is read is run."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.bad_rows import Bad
from pipelines.errors import DataError
from pipelines.manifest import read_manifest
from pipelines.quarantine import Entries, write_quarantine
from pipelines.segments import list_segments
from tests.security.watched import outcome, watching
from tests.trainer.saved_runs import GOLDEN
from trainer.checkpoint.manifest import DamagedError, read_commit
from trainer.checkpoint.reading import SavedTensors
from trainer.checkpoint_verbs.output import file_name
from trainer.cli import cli
from trainer.errors import CheckpointError
from trainer.prediction_files import read_manifest as read_predictions_manifest

ROOT = Path(__file__).parents[2]
CODE = ("trainer", "embeddings", "model", "pipelines", "docs")
NASTY = ("../up", "../../../etc/passwd", "/etc/passwd", "a/b", "..", ".", "a\\b", "\x00x", "x\n", ".hidden", "é/ü")
HANDED_OVER = {"payload.py", "frames.py"}  # what one run's processes give each other in memory; no file


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A checkpoint, in a run directory of its own."""
    shutil.copytree(GOLDEN, tmp_path / "case" / "run")
    return tmp_path / "case" / "run" / "checkpoints" / "step_00000004"


@pytest.mark.parametrize("name", [name for name in NASTY if name != "x\n"] + ["rank_00000_000.safetensors/../x"])
@pytest.mark.parametrize("where", ["files", "base", "chunk"])
def test_a_checkpoint_names_nothing_outside_its_folder(golden: Path, name: str, where: str) -> None:
    commit = json.loads((golden / "COMMIT").read_text())
    if where == "files":
        commit["files"][name] = {"bytes": 3, "sha256": "0" * 64}
    elif where == "base":
        commit["base"] = {"name": name, "sha256": "0" * 64}
    else:
        index = json.loads((golden / "metadata.json").read_text())
        next(iter(index["tensors"].values()))["chunks"][0]["file"] = name
        content = json.dumps(index).encode()
        (golden / "metadata.json").write_bytes(content)
        from trainer.checkpoint.manifest import record_of

        commit["files"]["metadata.json"] = record_of(content).model_dump()
    (golden / "COMMIT").write_text(json.dumps(commit))
    with pytest.raises(DamagedError, match="cannot be read"), SavedTensors(golden):
        pass


def test_predictions_name_nothing_outside_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    folder.mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "secret.parquet")
    manifest = {
        "format": 1, "run": "", "checkpoint": "", "step": 1, "data": "", "tasks": [], "request": [], "candidate": [],
        "boundaries": [], "parts": {"../secret.parquet": 1},
    }  # fmt: skip
    from dataclasses import MISSING, fields

    from trainer.prediction_files import Manifest

    for each in fields(Manifest):
        if each.name not in manifest and each.default is MISSING and each.default_factory is MISSING:
            manifest[each.name] = ""
    (folder / "_SUCCESS").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"names the file '\.\./secret\.parquet'"):
        read_predictions_manifest(str(folder))


@pytest.mark.parametrize("name", NASTY)
def test_what_is_written_for_a_name_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    """Segments name quarantine files and profiles, tables name exported ones."""
    from urllib.parse import quote

    for written in (f"{file_name(name)}.parquet", f"{quote(name, safe='')}.json"):
        assert os.path.basename(written) == written
        assert written.isprintable()
        assert written.strip(".") != ""
    root = tmp_path / "case"
    root.mkdir()
    entries = Entries()
    entries.add("f.parquet", np.array([0]), pa.table({"a": [1]}), [Bad("a", np.array([0]), ["1"], "why", "")])
    window: Any = type("Window", (), {"name": name, "evaluation": False, "epoch": 0, "index": 0})
    with watching(root):
        write_quarantine(str(root / "quarantine"), window, entries)
    [file] = [path for path in root.rglob("*") if path.is_file()]
    assert file.parent == root / "quarantine"


def test_a_segment_has_no_separator_and_a_pattern_stays_below_its_folder(tmp_path: Path) -> None:
    manifest = tmp_path / "files.json"
    manifest.write_text(json.dumps([{"path": "a.parquet", "segment": "../../x"}]))
    with pytest.raises(DataError, match="a name without '/'"):
        read_manifest(str(manifest))
    rows = tmp_path / "rows"
    rows.mkdir()
    pq.write_table(pa.table({"a": [1]}), rows / "in.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "out.parquet")
    [segment] = list_segments(str(rows / "*"))
    assert segment.files == (str(rows / "in.parquet"),)


class Bomb:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.flag),))


@pytest.mark.parametrize("target", ["rank_00000_000.safetensors", "metadata.json", "state.json", "COMMIT"])
def test_a_pickle_in_a_checkpoint_is_refused_by_every_verb_and_never_run(golden: Path, target: str) -> None:
    root, flag = golden.parents[2], golden.parents[2] / "executed"
    (golden / target).write_bytes(pickle.dumps(Bomb(flag)))
    run = str(golden.parents[1])
    if target != "COMMIT":
        commit = json.loads((golden / "COMMIT").read_text())
        from trainer.checkpoint.manifest import digest

        commit["files"][target] = digest(golden / target).model_dump()
        (golden / "COMMIT").write_text(json.dumps(commit))
        assert read_commit(golden)
    for arguments in (
        ["verify", run],
        ["reshard", str(golden), "--world-size", "1", "--out", str(root / "out")],
        ["unshard", str(golden), "--out", str(root / "out")],
        ["diff", str(golden), str(golden)],
    ):
        command = ["checkpoint", *arguments]
        assert outcome(lambda c=command: cli.main(c, prog_name="tokenformer", standalone_mode=False), root) == 5
    assert not flag.exists()


def test_a_pickle_as_data_is_no_parquet(tmp_path: Path) -> None:
    root = tmp_path / "case"
    root.mkdir()
    (root / "rows.parquet").write_bytes(pickle.dumps(Bomb(root / "executed")))
    (root / "files.json").write_bytes(pickle.dumps(Bomb(root / "executed")))
    for path in ("rows.parquet", "files.json"):
        command = ["data", "inspect", str(root / path)]
        assert outcome(lambda c=command: cli.main(c, prog_name="tokenformer", standalone_mode=False), root) == 3
    assert not (root / "executed").exists()


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """(dotted name, call) of everything called by name."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def dangers(source: str) -> list[str]:
    """Calls that run what they are given."""
    found = []
    for name, call in calls(ast.parse(source)):
        options = {option.arg: ast.unparse(option.value) for option in call.keywords}
        last = name.rpartition(".")[2]
        loads = last in ("load", "loads", "Unpickler") and name.split(".")[0] in (
            "pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve",
        )  # fmt: skip
        unsafe_yaml = name in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load")
        unsafe_torch = name == "torch.load" and options.get("weights_only") != "True"
        shell = options.get("shell", "False") != "False" or name in ("os.system", "os.popen", "subprocess.getoutput")
        plain = name in ("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec")
        arrays = options.get("allow_pickle", "False") != "False"
        if loads or unsafe_yaml or unsafe_torch or shell or plain or arrays:
            found.append(f"{call.lineno}: {ast.unparse(call)[:80]}")
    return found


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(f)", "cloudpickle.loads(b)", "pickle.Unpickler(f).load()", "torch.load(p)", "yaml.load(f, L)",
        "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)", "eval(text)", "exec(code, {})",
        "subprocess.run(c, shell=True)", "os.system(c)", "__import__(name)", "joblib.load(p)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(line: str) -> None:
    assert dangers(line)
    assert not dangers("torch.load(p, weights_only=True); yaml.safe_load(f); model.eval(); re.compile(x); json.load(f)")


def test_nothing_runs_what_it_reads() -> None:
    files = [path for folder in CODE for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 300
    found = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if path.name not in HANDED_OVER and (lines := dangers(path.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_shell_scripts_are_rendered_quoted_and_nothing_is_handed_to_a_shell() -> None:
    """Every value in the template is quoted, a number, or between names that the run file's pattern allows."""
    import re

    text = (ROOT / "trainer" / "submit" / "train.sbatch.j2").read_text(encoding="utf-8")
    plain = {value for value in re.findall(r"{{ (.*?) }}", text) if not value.endswith("| quoted")}
    numbers = r"launch\.(nodes|workers|grace_seconds|time_limit_minutes)|.*// launch\.nodes|.* or 1|.*\| int"
    assert {value for value in plain if not re.fullmatch(numbers, value)} == set()
